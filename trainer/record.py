"""`record.json`: one flat, versioned row per run, and the folder it lies in.

A run's folder is complete when `record.json` is in it: the record is written last, to a
temporary name, and renamed. A reader sees a whole record or none.

In Python a record is a tree of small dataclasses; on disk it is one flat object whose
names are the path through that tree, joined by dots (`metric.value`, `memory.optimizer`,
`config.variant.rank`). Numbers that were not measured are absent, never zero.

A record of version 1 is read like one of version 2; fields that version 1 lacks are blank. Unknown fields of a newer
version are kept as they are.

`analysis` reads with this module, so it imports little more than the standard library. `record_fields` lists the
fields, `record_row` checks a flat row, and `record_text` writes, hashes and parses its text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import orjson

from trainer import identity_v1
from trainer.identity import flatten, reduced
from trainer.identity import run_id as hashed
from trainer.record_fields import (
    FIELDS,
    GROUPS,
    OPEN_GROUPS,
    STATUSES,
    VERSION,
    Data,
    Fields,
    Files,
    Memory,
    Metric,
    Params,
    Rank,
    Retention,
    Steps,
    Time,
)
from trainer.record_row import MEASURED, NAMES, NULLABLE, check
from trainer.record_text import CHECKSUM, CorruptRecord, checksum, is_as_written, parse, text_of, write_json

__all__ = [
    "ADAPTER",
    "CHECKSUM",
    "CONFIG",
    "FIELDS",
    "FILENAME",
    "GROUPS",
    "OPEN_GROUPS",
    "REPLACED",
    "STATUSES",
    "VERSION",
    "CorruptRecord",
    "Data",
    "Fields",
    "Files",
    "Hold",
    "Memory",
    "Metric",
    "Params",
    "Rank",
    "Record",
    "Retention",
    "Steps",
    "Time",
    "checksum",
    "find",
    "flatten",
    "misplaced",
    "read",
    "refuse_unreadable",
    "write",
    "write_json",
]

FILENAME = "record.json"
CONFIG = "config.yaml"  # in a run's folder from its start
ADAPTER = Path("adapter") / "state"  # in a run's folder at its end: the parameters that training changed
REPLACED = ".replaced"  # in a study's folder: earlier results of runs that were repeated

_values: Callable[[Fields], tuple[Any, ...]] = attrgetter(*NAMES)


@dataclass(slots=True)
class Record(Fields):
    """The record of one run, and the flat row that it is on disk."""

    def identity_hash(self) -> str:
        """The run's name by its identity; equals `run_id` unless the record was edited."""
        return hashed(self.identity)

    def row(self) -> dict[str, Any]:
        """The flat row that is written to disk: the fields and their checksum."""
        fields = self.fields()
        return fields | {CHECKSUM: checksum(fields)}

    def fields(self, groups: Iterable[str] = OPEN_GROUPS) -> dict[str, Any]:
        """All fields by their dotted names. Absent numbers are left out; settings that are null stay.

        groups: which of `OPEN_GROUPS` to include.
        """
        row = {name: value for name, value in zip(NAMES, _values(self), strict=True) if value is not None}
        for group in groups:
            pairs = flatten(getattr(self, group), f"{group}.")
            row.update(pairs if group in NULLABLE else ((name, value) for name, value in pairs if value is not None))
        return row | self.extra

    @classmethod
    def from_row(cls, row: Mapping[str, Any], *, as_written: bool = False, hold: Hold | None = None) -> Record:
        """The record of a flat row. Raises `CorruptRecord`.

        as_written: whether the row's checksum has been verified. hold: as for `read`.
        """
        layout = check(row, as_written=as_written)
        hold = hold or _hold
        values = (*row.values(), None)
        config, identity, made_with = [hold(groups, of(values)) for groups, of in layout.shared]
        metrics, select, method, extra = [
            dict(zip(names, of(values), strict=True)) if names else {} for names, of in layout.open
        ]
        metric, *others = [group(*of(values)) for group, of in layout.groups]
        *plain, overrides = layout.plain(values)
        # By position, in the order of `Fields`: names would take a third longer.
        record = cls(  # type: ignore[call-arg]
            *plain, overrides or [], *config, *identity, *made_with, metric, metrics, select, method, *others, extra
        )
        if record.version == 1:
            leaves = reduced(*identity_v1.read(record.config))
            (record.identity,) = hold((("identity", tuple(leaves)),), tuple(leaves.values()))
        return record


# Makes the dictionaries of some groups. Arguments: the name of each group with the names of its entries, and the
# values of all groups in this order.
Hold = Callable[[tuple[tuple[str, tuple[str, ...]], ...], Sequence[Any]], Sequence[Any]]


def _hold(groups: tuple[tuple[str, tuple[str, ...]], ...], values: Sequence[Any]) -> list[dict[str, Any]]:
    remaining = iter(values)
    return [dict(zip(names, remaining, strict=False)) for _, names in groups]


def write(record: Record, folder: str | os.PathLike[str]) -> Path:
    """Writes `folder/record.json` atomically: a reader sees the whole record or none."""
    row = record.row()
    check(row)
    return write_json(Path(folder) / FILENAME, row)


def refuse_unreadable(record: Record) -> None:
    """Raises `CorruptRecord` if `read` would not return this record as it is written.

    It is called before training: faulty names and settings are known by then, measured numbers are not.
    """
    row = {name: value for name, value in record.fields().items() if not name.startswith(MEASURED)}
    row["status"] = "failed"  # a failed record needs no metric
    try:
        row[CHECKSUM] = checksum(row)
        again = Record.from_row(parse(text_of(row))).row()
    except (ValueError, TypeError) as error:
        raise CorruptRecord(str(error)) from None
    for name, value in row.items():
        if again.get(name) != value:
            raise CorruptRecord(f"{name}: {value!r} would be read as {again.get(name)!r}")


def read(folder: str | os.PathLike[str], hold: Hold | None = None) -> Record | None:
    """The record in a run's folder, or None if the folder holds none.

    hold: makes the dictionaries of the open groups; a reader of many records lets equal ones share an object.
    Raises `CorruptRecord`, which names the file, if the record can't be trusted.
    """
    path = f"{os.fspath(folder)}{os.sep}{FILENAME}"
    try:
        content = _content(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorruptRecord(f"{path}: {error.strerror or error}") from None
    try:
        as_written = is_as_written(content)
        # orjson is four times as fast as json but turns integers above 64 bits into floats.
        row = orjson.loads(content) if as_written and not _has_long(content) else parse(str(content, "utf-8"))
        return Record.from_row(row, as_written=as_written, hold=hold)
    except (ValueError, RecursionError) as error:
        raise CorruptRecord(f"{path}: {error}") from None


def _content(path: str) -> bytes:
    # Records have a few kilobytes: creating a Python file object would take longer than the read itself.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        content = part = os.read(handle, _CHUNK)
        while len(part) == _CHUNK:
            part = os.read(handle, _CHUNK)
            content += part
        return content
    finally:
        os.close(handle)


_CHUNK = 1 << 16


def misplaced(run_id: str, folder: str | os.PathLike[str]) -> str | None:
    """One line if `folder` does not have the run's name, so that its record is not trusted; else None.

    The parent folder may have any name, because whole studies are copied.
    """
    name = os.path.basename(folder)
    if name != run_id:  # the path may end in "." or in a link
        name = os.path.basename(os.path.realpath(folder))
    return None if name == run_id else f"{os.path.join(folder, FILENAME)}: run_id: {run_id!r} in the folder of {name!r}"


def _has_long(content: bytes) -> bool:
    """Whether a record's text may contain an integer of 19 digits or more."""
    return b" " + b"0" * 19 in content.translate(_ANY_DIGIT)  # a tenth of the time of a regular expression


_ANY_DIGIT = bytes.maketrans(b"-123456789", b" 000000000")
_HYDRA = f"{os.sep}.hydra"  # Hydra's own folder holds a config.yaml too
_SEPARATORS = (os.sep, *filter(None, [os.altsep]))


def find(
    *roots: str | os.PathLike[str],
    unread: Callable[[OSError], None] | None = None,
    begun: Callable[[str], None] | None = None,
) -> Iterator[str]:
    """Folders at or below `roots` that hold a record, in sorted order. Links to folders are not followed.

    unread: called with the error of a folder that can't be listed. begun: called with the folder of a run that has
    started and has no record.
    """
    for root in roots:
        # A stack of folders and the names in them still to visit, last first; names take less memory than paths.
        waiting = [("", [os.fspath(root)])]
        while waiting:
            above, names = waiting[-1]
            if not names:
                waiting.pop()
                continue
            folder = above + names.pop()
            below: list[str] = []
            recorded = configured = False
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name == FILENAME:
                            recorded = True
                        elif entry.name != REPLACED and entry.is_dir(follow_symlinks=False):
                            below.append(entry.name)
                        elif entry.name == CONFIG:
                            configured = True
            except OSError as error:
                if unread is not None:
                    unread(error)
                continue
            if recorded:
                yield folder
            elif configured and begun is not None and not folder.endswith(_HYDRA):
                begun(folder)
            if not below:
                continue
            below.sort(reverse=True)
            waiting.append((folder if folder.endswith(_SEPARATORS) else folder + os.sep, below))
