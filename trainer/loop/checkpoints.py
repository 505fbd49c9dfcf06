"""Writes and reads a run's checkpoints: the complete training state without the backbone, written atomically.

    checkpoints/step-00000050/    state.safetensors, state.json    see `trainer.loop.loop_state`
                                  run.json                         the run and step that it belongs to
                                  sha256.json                      hashes of these files, which detect changed bits
    best/                         state.safetensors, state.json    only parameters and variant
                                  run.json, sha256.json

The last two checkpoints are kept. If one can't be read, the run resumes from the one before. The same holds if a
checkpoint needs a `best/` that is damaged, missing or of another step. Without a usable checkpoint the run starts
again.
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
from safetensors import SafetensorError

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
FORMAT = 2  # increase it when the content of a checkpoint or the steps computed from it change


def seed_all(seed: int) -> None:
    """Seeds every random generator that training uses."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # of all devices


def random_state() -> dict[str, Any]:
    """Returns the state of every random generator that training uses."""
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
    """Restores the state that `random_state` returned."""
    random.setstate(state["python"])
    mersenne = state["numpy"]
    key = mersenne["key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, mersenne["pos"], mersenne["has_gauss"], mersenne["gauss"]))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class Best:
    """The best model so far of the run in `folder`, which the run reports."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._run = folder / unfinished.BEST, folder.name
        self._new = folder / unfinished.NEW_BEST

    def write(self, step: int, weights: Mapping[str, Any]) -> None:
        """Replaces the best model by that of `step`; the old one stays until the new one is complete."""
        with _sealed(self._new, self._run, step):
            state_files.save(weights, self._new / STATE)
        self._replace()

    def load(self, step: int) -> Any:
        """Loads the model of `step`. Raises `RunFailed` if it is missing or changed."""
        if fault := self.fault(step, step):
            raise RunFailed(f"best/: {fault}; the same command resumes from an earlier step")
        return state_files.load(self.folder / STATE)

    def recover(self) -> None:
        """Completes `write` for a model whose process died before replacing the old one."""
        with contextlib.suppress(state_files.CorruptState):
            _verify(self._new, self._run)
            self._replace()
        shutil.rmtree(self._new, ignore_errors=True)

    def fault(self, best_step: int | None, step: int) -> str | None:
        """Describes why a run resumed after `step`, with its best model at `best_step`, would lose that model.

        Returns None without a fault. A best model of a later step is computed again, so its state doesn't matter.
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
        """Describes the damage to the existing files; None for none."""
        try:
            _verify(self.folder, self._run)
        except state_files.CorruptState as error:
            return str(error)
        return None

    def _replace(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(self._new, self.folder)


class Checkpoints:
    """The checkpoints of the run in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._run = folder / unfinished.CHECKPOINTS, folder.name

    def write(self, step: int, state: Mapping[str, Any]) -> None:
        """Adds the checkpoint of `step` and removes the oldest. state: its `counters` include the best step."""
        temporary = self.folder / ".writing"
        with _sealed(temporary, self._run, step):
            state_files.save({"format": FORMAT, **state}, temporary / STATE)
        target = self.folder / f"step-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        for old in sorted(self.folder.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def try_write(self, step: int, state: Mapping[str, Any]) -> None:
        """Writes the checkpoint of `step`; on a full disk it logs a warning, and the run continues without it."""
        try:
            self.write(step, state)
        except (OSError, SafetensorError) as error:
            log.warning("no checkpoint of step %d: %s; the run continues", step, error)

    def newest(self, best: Best | None = None) -> Path | None:
        """Returns the newest checkpoint that the run can resume from, or None; removes unusable ones with a warning.

        best: the best model, for a run that reports it; a checkpoint of a later step needs it.
        """
        if best is not None:
            best.recover()
        fault = None
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            try:
                step = _verify(folder, self._run)["step"]
                state = state_files.load(folder / STATE)
                if state.get("format") != FORMAT:
                    raise state_files.CorruptState("it was written by another version of this code")
            except state_files.CorruptState as error:
                log.warning("%s can't be read and is ignored: %s", folder.name, error)
                shutil.rmtree(folder, ignore_errors=True)
                continue
            fault_here = best.fault(state["counters"]["best_step"], step) if best is not None else None
            if fault_here is None:
                if best is not None and best.folder.exists():  # logged even if the run computes it again
                    fault = fault or best.damage()
                if fault:
                    log.warning("best/: %s; the run resumes from an earlier checkpoint, after step %d", fault, step)
                return folder
            fault = fault or fault_here
            shutil.rmtree(folder, ignore_errors=True)
        if fault:
            log.warning("best/: %s; the run starts again", fault)
        return None


def step_of(folder: Path) -> int:
    """Returns the step after which a checkpoint was written."""
    return int(folder.name.partition("-")[2])


@contextlib.contextmanager
def _sealed(folder: Path, run: str, step: int) -> Iterator[None]:
    """Labels and hashes the files that its body writes to `folder`; removes the folder if the body raises."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
        write_json(folder / OWNER, {"run": run, "step": step})
        write_json(folder / SUMS, {path.name: sha256(path) for path in folder.iterdir()})
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _verify(folder: Path, run: str) -> dict[str, Any]:
    """Returns the run and step of a folder. Raises `CorruptState` for a changed file or a folder of another run."""
    return _owner(folder, run, every_file=True)


def _owner(folder: Path, run: str, every_file: bool = False) -> dict[str, Any]:
    """Does the same as `_verify`, but checks only run.json unless `every_file`."""
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        names = {OWNER, *sums} if every_file else {OWNER}
        changed = sorted(name for name in names if sums.get(name) != sha256(folder / name))
        if changed:
            raise state_files.CorruptState(f"{', '.join(changed)}: changed since it was written")
        owner: dict[str, Any] = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        if owner["run"] != run:
            raise state_files.CorruptState(f"{OWNER}: it belongs to the run {owner['run']}, not to {run}")
    except state_files.CorruptState:
        raise
    except OSError as error:
        raise state_files.CorruptState(f"{Path(error.filename or SUMS).name}: {error.strerror or error}") from None
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise state_files.CorruptState(f"{SUMS}: {error}") from None
    return owner
