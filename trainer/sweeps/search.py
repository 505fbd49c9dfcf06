"""A search with Optuna: chooses trials, prunes running ones and reports their results.

A trial is an ordinary run whose overrides come from Optuna; its record is in runs/ like any other. The objective is the
metric on the selection split at the step of the reported model, so that a search under `data.protocol=split` never
sees the rows of the reported metric.

Several searches may share one storage, and a killed search may be restarted. Each search holds a lock of its own. A
trial that is marked as running by a search whose lock is free was abandoned; it resumes from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.utils import instantiate
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from trainer.errors import ConfigError, Locked
from trainer.machine import lock
from trainer.record import Record

optuna.logging.set_verbosity(optuna.logging.WARNING)

_OWNER = "search"  # attribute of a trial: the lock of the search that carries it out
_PRUNER = "pruner"  # attribute of a study: the pruner's config, which its runs read


def open_storage(location: str) -> Any:
    """Optuna's storage at a SQLAlchemy URL or in a journal file; a journal also works on a shared file system."""
    return location if "://" in location else JournalStorage(JournalFileBackend(location))


def distribution(override: Override) -> BaseDistribution:
    """Optuna's distribution of a sweep override: choice(…), range(…), interval(…) or tag(log, …)."""
    value = override.value()
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, ChoiceSweep):
        return CategoricalDistribution([*map(_choice, value.list)])
    if isinstance(value, IntervalSweep):
        low: Any = value.start  # an int if it was written as one, although Hydra's annotation says float
        high: Any = value.end
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    if isinstance(value, RangeSweep):
        first: Any = value.start
        stop: Any = value.stop
        step: Any = value.step
        if isinstance(first, int) and isinstance(stop, int) and isinstance(step, int):
            last = first + (stop - 1 - first) // step * step  # stop is excluded as in Python
            return IntDistribution(first, last, step=step)
        count = math.ceil((stop - first) / step) - 1
        return FloatDistribution(float(first), first + count * step, step=step)
    raise ConfigError(f"{override.key_or_group}: {override.input_line}, allowed: choice(…), range(…), interval(…)")


def _choice(value: Any) -> bool | int | float | str | None:
    """A value of a choice in a form that Optuna stores. Raises `ConfigError` for a list or a mapping."""
    plain = value.text if isinstance(value, QuotedString) else value
    if plain is not None and not isinstance(plain, bool | int | float | str):
        raise ConfigError(f"hydra.sweeper.params: {plain!r} in a choice of a search, allowed: numbers, texts, null")
    return plain


@dataclass
class Search:
    """One process's view of a search. storage: see `open_storage`. folder: of the study. owner: this process's lock."""

    study: optuna.Study
    storage: str
    folder: Path
    space: dict[str, BaseDistribution]
    trials: int
    owner: str

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls,
        folder: Path,
        storage: str,
        name: str,
        space: dict[str, BaseDistribution],
        trials: int,
        maximize: bool,
        sampler: Any,
        pruner: Any,
    ) -> Iterator[Search]:
        """A new or an existing search. pruner: a mapping with `_target_`, or None."""
        folder.mkdir(parents=True, exist_ok=True)
        owner = f"search-{uuid.uuid4().hex[:12]}"
        with lock.locked(folder / owner):
            study = optuna.create_study(
                storage=open_storage(storage),
                study_name=name,
                direction="maximize" if maximize else "minimize",
                sampler=instantiate(sampler),
                pruner=instantiate(pruner) if pruner else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            study.set_user_attr(_PRUNER, json.dumps(pruner))
            yield cls(study, storage, folder, space, trials, owner)

    def next(self, count: int) -> list[FrozenTrial]:
        """Up to `count` trials to carry out: first those abandoned by a search that died, then new ones."""
        trials: list[FrozenTrial] = []
        with FileLock(self.folder / ".locks" / "search.lock"):  # one search asks at a time
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if len(trials) < count and self._take_over(trial):
                    trials.append(trial)
            while len(trials) < count and len(self.study.get_trials(deepcopy=False)) < self.trials:
                new = self.study.ask(self.space)
                new.set_user_attr(_OWNER, self.owner)
                trials.append(self.study.trials[new.number])
        return trials

    def _take_over(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(_OWNER, "")
        if owner == self.owner:
            return False
        try:
            # Without an owner: its search died inside `next`, which this process now has to itself.
            with lock.locked(self.folder / owner) if owner else contextlib.nullcontext():
                Trial(self.study, trial._trial_id).set_user_attr(_OWNER, self.owner)
        except Locked:
            return False
        return True

    def tell(self, trial: FrozenTrial, record: Record | None, folder: Path) -> None:
        """Reports the result of a trial, whose run is in `folder`, to Optuna."""
        if record is not None and record.status == "done":
            self.study.tell(trial.number, selected(record, folder), skip_if_finished=True)
            return
        pruned = record is not None and record.status == "pruned"
        # Without values it was another trial with the same settings that was pruned.
        reported = pruned and self.study.trials[trial.number].intermediate_values
        state = TrialState.PRUNED if reported else TrialState.FAIL
        self.study.tell(trial.number, state=state, skip_if_finished=True)

    def pruner_override(self, trial: FrozenTrial) -> str:
        """The override that connects the run of a trial to Optuna's pruner."""
        arguments = {"storage": self.storage, "name": self.study.study_name, "trial": trial.number}
        quoted = ",".join(f"{key}:{json.dumps(value)}" for key, value in arguments.items())
        return f"machine.judge={{_target_:{__name__}.TrialPruner,{quoted}}}"


def selected(record: Record, folder: Path) -> float:
    """The metric of the reported model on the selection split, read from metrics.jsonl."""
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["step"] == record.metric.step and f"eval/{record.metric.name}" in row:
            return float(row[f"eval/{record.metric.name}"])
    raise ConfigError(f"{folder}: metrics.jsonl has no evaluation of step {record.metric.step}, which the record names")


class TrialPruner:
    """Asks Optuna's pruner after each evaluation of a run; False from a call ends the run as pruned."""

    def __init__(self, storage: str, name: str, trial: int) -> None:
        study = optuna.load_study(study_name=name, storage=open_storage(storage))
        pruner = json.loads(study.user_attrs[_PRUNER])
        study.pruner = instantiate(pruner) if pruner else optuna.pruners.NopPruner()
        self._trial = Trial(study, study.trials[trial]._trial_id)

    def __call__(self, step: int, value: float) -> bool:
        if step not in self._trial.storage.get_trial(self._trial._trial_id).intermediate_values:
            self._trial.report(value, step)
        return not self._trial.should_prune()


def split(overrides: Sequence[Override]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """Overrides that all trials share, and the search space by field."""
    fixed, space = [], {}
    for override in overrides:
        if override.is_sweep_override():
            space[override.get_key_element()] = distribution(override)
        else:
            fixed.append(f"{override.get_key_element()}={override.get_value_element_as_str()}")
    if not space:
        raise ConfigError("hydra.sweeper.params: no field is searched, allowed: choice(…), range(…), interval(…)")
    return fixed, space
