"""A run's checkpoints: everything but the backbone, written whole or not at all.

    checkpoints/step-00000050/    state.safetensors, state.json    see `trainer.loop.Loop.save`
                                  sha256.json                      of the two, for a disk that changed a bit
    best/                         state.safetensors, state.json    parameters and variant only

The last two checkpoints are kept; one that can't be read is passed over for the one before.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.record import write_json
from trainer.sources.content import sha256
from variants.core import checkpoint

log = logging.getLogger(__name__)

KEPT = 2
STATE = "state"
SUMS = "sha256.json"
FORMAT = 2  # of what a checkpoint holds and of how steps are made from it


def seed_all(seed: int) -> None:
    """Seeds every generator that training draws from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # of all devices


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from."""
    numpy_state = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random(state: Mapping[str, Any]) -> None:
    """Puts back what `random_state` took."""
    random.setstate(state["python"])
    kept = state["numpy"]
    key = kept["key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, kept["pos"], kept["has_gauss"], kept["gauss"]))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class Checkpoints:
    """The checkpoints of one run, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, step: int, state: Mapping[str, Any]) -> None:
        """Adds the checkpoint of `step` and drops the oldest."""
        temporary = self.folder / ".writing"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            checkpoint.save({"format": FORMAT, **state}, temporary / STATE)
            write_json(temporary / SUMS, {path.name: sha256(path) for path in temporary.iterdir()})
            target = self.folder / f"step-{step:08d}"
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for old in sorted(self.folder.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> Path | None:
        """The newest checkpoint that can be read, or None; broken ones are removed and said so."""
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            try:
                _verify(folder)
                if checkpoint.load(folder / STATE).get("format") != FORMAT:
                    raise checkpoint.CorruptState("another version of this code has written it")
                return folder
            except checkpoint.CorruptState as error:
                log.warning("%s can't be read and is left out: %s", folder.name, error)
                shutil.rmtree(folder, ignore_errors=True)
        return None


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(folder.name.partition("-")[2])


def _verify(folder: Path) -> None:
    """Raises `CorruptState` where a file of a checkpoint is not what was written."""
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        changed = [name for name, digest in sums.items() if sha256(folder / name) != digest]
    except (OSError, ValueError, AttributeError) as error:
        raise checkpoint.CorruptState(f"{SUMS}: {error}") from None
    if changed:
        raise checkpoint.CorruptState(f"{', '.join(changed)}: not what was written")
