"""A run's checkpoints: everything but the backbone, written whole or not at all.

    checkpoints/step-00000050/    state.safetensors, state.json    see `trainer.loop.loop.Loop.save`
                                  run.json                         whose it is: run and step
                                  sha256.json                      of all these, for a disk that changed a bit
    best/                         state.safetensors, state.json    parameters and variant only
                                  run.json, sha256.json

The last two checkpoints are kept; one that can't be read is passed over for the one before. So is one that needs a
`best/` that is damaged, gone or of another step: the run goes on from before it, or starts again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.errors import RunFailed
from trainer.hashing import sha256
from trainer.loop import unfinished
from trainer.record_text import write_json
from variants.core import state_files

log = logging.getLogger(__name__)

KEPT = 2
STATE = "state"
SUMS = "sha256.json"
OWNER = "run.json"
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


class Best:
    """The best model of the run in `folder` so far: the one that is reported."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._run = folder / unfinished.BEST, folder.name
        self._new = folder / unfinished.NEW_BEST

    def write(self, step: int, weights: Mapping[str, Any]) -> None:
        """Keeps the model of `step` in place of the one before, which is there until this one is whole."""
        with _sealed(self._new, self._run, step):
            state_files.save(weights, self._new / STATE)
        self._put()

    def load(self, step: int) -> Any:
        """The model of `step`. Raises `RunFailed` where it is not there as it was written."""
        if fault := self.fault(step, step):
            raise RunFailed(f"best/: {fault}; the same command goes on from before it")
        return state_files.load(self.folder / STATE)

    def settle(self) -> None:
        """Puts a model into its place whose process died before it did."""
        with contextlib.suppress(state_files.CorruptState):
            _verify(self._new, self._run)
            self._put()
        shutil.rmtree(self._new, ignore_errors=True)

    def fault(self, best_step: int | None, step: int) -> str | None:
        """Why a run that goes on after `step`, where the best was that of `best_step`, would not end with its best.

        One of a later step is made again on the way, whatever has become of it.
        """
        if best_step is None:
            return None
        try:
            written = _owner(self.folder, self._run)["step"]
        except state_files.CorruptState as error:
            return str(error)
        if written > step:
            return None
        if damage := self.damage():
            return damage
        return None if written == best_step else f"the model of step {written}, not of {best_step}"

    def damage(self) -> str | None:
        """What is wrong with the files that are there; None for nothing."""
        try:
            _verify(self.folder, self._run)
        except state_files.CorruptState as error:
            return str(error)
        return None

    def _put(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(self._new, self.folder)


class Checkpoints:
    """The checkpoints of the run in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._run = folder / unfinished.CHECKPOINTS, folder.name

    def write(self, step: int, state: Mapping[str, Any]) -> None:
        """Adds the checkpoint of `step` and drops the oldest. state: `counters` says which step was the best."""
        temporary = self.folder / ".writing"
        with _sealed(temporary, self._run, step):
            state_files.save({"format": FORMAT, **state}, temporary / STATE)
        target = self.folder / f"step-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        for old in sorted(self.folder.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self, best: Best | None = None) -> Path | None:
        """The newest checkpoint from which a run can go on, or None; others are removed and said so.

        best: of a run that reports its best model, which must be there for a checkpoint that has passed it.
        """
        if best is not None:
            best.settle()
        fault = None
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            try:
                step = _verify(folder, self._run)["step"]
                state = state_files.load(folder / STATE)
                if state.get("format") != FORMAT:
                    raise state_files.CorruptState("another version of this code has written it")
            except state_files.CorruptState as error:
                log.warning("%s can't be read and is left out: %s", folder.name, error)
                shutil.rmtree(folder, ignore_errors=True)
                continue
            found = best.fault(state["counters"]["best_step"], step) if best is not None else None
            if found is None:
                if best is not None and best.folder.exists():  # said, too, where it is made again on the way
                    fault = fault or best.damage()
                if fault:
                    log.warning("best/: %s; the run goes on from before it, after step %d", fault, step)
                return folder
            fault = fault or found
            shutil.rmtree(folder, ignore_errors=True)
        if fault:
            log.warning("best/: %s; the run starts again", fault)
        return None


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(folder.name.partition("-")[2])


@contextlib.contextmanager
def _sealed(folder: Path, run: str, step: int) -> Iterator[None]:
    """What is written to `folder` within it is of this run and step, and hashed; nothing is left of a half."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
        write_json(folder / OWNER, {"run": run, "step": step})
        write_json(folder / SUMS, {path.name: sha256(path) for path in folder.iterdir()})
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _verify(folder: Path, run: str) -> dict[str, Any]:
    """Who wrote a folder. Raises `CorruptState` where a file is not what was written, or was by another run."""
    return _owner(folder, run, every_file=True)


def _owner(folder: Path, run: str, every_file: bool = False) -> dict[str, Any]:
    """As `_verify`; of the files only the one that says it, unless all are asked for."""
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        names = {OWNER, *sums} if every_file else {OWNER}
        changed = sorted(name for name in names if sums.get(name) != sha256(folder / name))
        if changed:
            raise state_files.CorruptState(f"{', '.join(changed)}: not what was written")
        owner: dict[str, Any] = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        if owner["run"] != run:
            raise state_files.CorruptState(f"{OWNER}: of the run {owner['run']}, not of {run}")
    except state_files.CorruptState:
        raise
    except OSError as error:
        raise state_files.CorruptState(f"{Path(error.filename or SUMS).name}: {error.strerror or error}") from None
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise state_files.CorruptState(f"{SUMS}: {error}") from None
    return owner
