"""The finished run that another starts from (`init_from`), and what of it the other is a function of. Imports no torch.

    origin = find("runs/mnli/0123456789ab")
    origin.identity()               # its run id and the hashes of its adapter: by content, never by path
    origin.refuse_another(identity) # one line where method, settings or backbone are others

Taken up are the adapter's parameters and the method's state, ranks that were pruned or grown included; the optimizer,
the schedule and the steps begin anew. The head is `trainer.runs.assemble`'s to decide.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import record
from trainer.data.sources.paths import expanded
from trainer.errors import ConfigError
from trainer.hashing import sha256
from trainer.identity import Identity
from trainer.record import ADAPTER, CorruptRecord, Record

# What method and backbone are without: names for tables, and what is done in training or to the head alone.
FREE = ("variant.name", "model.name", "model.dropout", "model.keep_head")


@dataclass(frozen=True)
class Origin:
    """A finished run whose adapter lies as it was written. weights, outline: sha256 of the adapter's two files."""

    folder: Path
    record: Record
    weights: str
    outline: str

    def identity(self) -> dict[str, Any]:
        """What stands for it in the identity of a run that starts from it; `run_id` first, which labels then show."""
        return {"run_id": self.record.run_id, "sha256": {"weights": self.weights, "outline": self.outline}}

    def refuse_another(self, identity: Identity) -> None:
        """Raises `ConfigError` where the run of `identity` has another method or model, or other settings."""
        known = bool(self.record.identity)
        there, here = (self.record.identity, identity.leaves) if known else (self.record.config, identity.settings)
        for name in sorted(there.keys() | here.keys()):
            if name.startswith(("variant.", "model.")) and name not in FREE and there.get(name) != here.get(name):
                was, now = there.get(name, self.record.config.get(name)), here.get(name, identity.settings.get(name))
                raise ConfigError(
                    f"init_from: {self.folder}: {name} is {was!r} in that run and {now!r} in this one; allowed: the "
                    "same method, settings and model"
                )


def find(folder: str | os.PathLike[str], field: str = "init_from: ") -> Origin:
    """The finished run in `folder`. field: what an error begins with.

    Raises `ConfigError` where there is none, and where the adapter is not the one that the run wrote; unknown for
    records of before.
    """
    place = expanded(os.fspath(folder))
    try:
        row = record.read(place)
    except (CorruptRecord, OSError) as error:
        raise ConfigError(f"{field}{error}") from None
    if row is None:
        raise ConfigError(f"{field}{place}: no finished run, which has a {record.FILENAME}")
    if row.status != "done":
        raise ConfigError(f"{field}{place}: the run has {row.status}: {row.error}")
    found = []
    for expected, name in ((row.files.weights, f"{ADAPTER}.safetensors"), (row.files.outline, f"{ADAPTER}.json")):
        try:
            found.append(sha256(place / name))
        except OSError as error:
            raise ConfigError(f"{field}{place / ADAPTER.parent}: not what this run trained: {error}") from None
        if expected not in (None, found[-1]):
            raise ConfigError(f"{field}{place / name}: not what this run trained: its hash is not that of the record")
    return Origin(place, row, *found)
