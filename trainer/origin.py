"""The finished run whose adapter another run starts from (`init_from`). Imports no torch.

    origin = find("runs/mnli/0123456789ab")
    origin.identity()                 # run id and hashes of the adapter; no path
    origin.refuse_another(identity)   # raises one line if method, settings or backbone differ

The new run takes over the adapter's parameters and the method's state, pruned or grown ranks included. Optimizer,
schedule and steps start from zero. `trainer.runs.start` decides about the head.
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

# Settings that may differ: names for tables, and those that only affect training or the head.
FREE = ("variant.name", "model.name", "model.dropout", "model.keep_head")


@dataclass(frozen=True)
class Origin:
    """A finished run with an unmodified adapter. weights, outline: sha256 of the adapter's two files."""

    folder: Path
    record: Record
    weights: str
    outline: str

    def identity(self) -> dict[str, Any]:
        """Its part in the identity of a run that starts from it. `run_id` comes first, because labels show it."""
        return {"run_id": self.record.run_id, "sha256": {"weights": self.weights, "outline": self.outline}}

    def refuse_another(self, identity: Identity) -> None:
        """Raises `ConfigError` if the run of `identity` has another method, other settings or another model."""
        known = bool(self.record.identity)
        old, new = (self.record.identity, identity.leaves) if known else (self.record.config, identity.settings)
        for name in sorted(old.keys() | new.keys()):
            if name.startswith(("variant.", "model.")) and name not in FREE and old.get(name) != new.get(name):
                was, now = (
                    old.get(name, self.record.config.get(name)),
                    new.get(name, identity.settings.get(name)),
                )
                raise ConfigError(
                    f"init_from: {self.folder}: {name} is {was!r} in that run and {now!r} in this one; allowed: the "
                    "same method, settings and model"
                )


def find(folder: str | os.PathLike[str], field: str = "init_from: ") -> Origin:
    """The finished run in `folder`. field: the beginning of an error.

    Raises `ConfigError` if there is no finished run or if the adapter was modified; older records have no hash to
    compare with.
    """
    path = expanded(os.fspath(folder))
    try:
        row = record.read(path)
    except (CorruptRecord, OSError) as error:
        raise ConfigError(f"{field}{error}") from None
    if row is None:
        raise ConfigError(f"{field}{path}: not a finished run; {record.FILENAME} is missing")
    if row.status != "done":
        raise ConfigError(f"{field}{path}: the run has {row.status}: {row.error}")
    hashes = []
    for expected, name in ((row.files.weights, f"{ADAPTER}.safetensors"), (row.files.outline, f"{ADAPTER}.json")):
        try:
            hashes.append(sha256(path / name))
        except OSError as error:
            raise ConfigError(f"{field}{path / ADAPTER.parent}: not what this run trained: {error}") from None
        if expected not in (None, hashes[-1]):
            raise ConfigError(f"{field}{path / name}: not what this run trained: its hash is not that of the record")
    return Origin(path, row, *hashes)
