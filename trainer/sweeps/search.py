"""A search with Optuna: which trials there are, and what an evaluation says about one that still runs.

A trial is an ordinary run: its overrides come from Optuna, its record lies in runs/ like every other. What is searched
for is the metric on the selection split, at the step whose model is reported, so that a search under
`data.protocol=split` never sees the rows that it will be judged on.

Several searches may work on one storage, and one may be killed and started again. Each holds a lock of its own; a trial
that runs in the name of a search whose lock is free was left by it, and goes on from its last checkpoint.
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

from trainer.errors import ConfigError, Held
from trainer.machine import lock
from trainer.record import Record

optuna.logging.set_verbosity(optuna.logging.WARNING)

_OWNER = "search"  # attribute of a trial: the lock of the search that carries it out
_PRUNER = "pruner"  # attribute of a study, for the runs that ask


def open_storage(place: str) -> Any:
    """A URL as SQLAlchemy takes it, or the path of a journal, which also works where files are shared by machines."""
    return place if "://" in place else JournalStorage(JournalFileBackend(place))


def distribution(override: Override) -> BaseDistribution:
    """The values that a sweep on Hydra's command line stands for: choice(…), range(…), interval(…), tag(log, …)."""
    value = override.value()
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, ChoiceSweep):
        return CategoricalDistribution([*map(_choice, value.list)])
    if isinstance(value, IntervalSweep):
        low: Any = value.start  # a whole number where it was written so, whatever Hydra's annotation says
        high: Any = value.end
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    if isinstance(value, RangeSweep):
        first: Any = value.start
        stop: Any = value.stop
        step: Any = value.step
        if isinstance(first, int) and isinstance(stop, int) and isinstance(step, int):
            last = first + (stop - 1 - first) // step * step  # as Python's, without stop
            return IntDistribution(first, last, step=step)
        count = math.ceil((stop - first) / step) - 1
        return FloatDistribution(float(first), first + count * step, step=step)
    raise ConfigError(f"{override.key_or_group}: {override.input_line}, allowed: choice(…), range(…), interval(…)")


def _choice(value: Any) -> bool | int | float | str | None:
    """One of a choice, as Optuna keeps it. Raises `ConfigError` for a list or a mapping."""
    plain = value.text if isinstance(value, QuotedString) else value
    if plain is not None and not isinstance(plain, bool | int | float | str):
        raise ConfigError(f"hydra.sweeper.params: {plain!r} in a choice of a search, allowed: numbers, texts, null")
    return plain


@dataclass
class Search:
    """One search of a study, as one process sees it. folder: the study's."""

    study: optuna.Study
    place: str
    folder: Path
    space: dict[str, BaseDistribution]
    trials: int
    owner: str

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls,
        folder: Path,
        place: str,
        name: str,
        space: dict[str, BaseDistribution],
        trials: int,
        maximize: bool,
        sampler: Any,
        pruner: Any,
    ) -> Iterator[Search]:
        """The search, new or taken up again. pruner: a mapping with its `_target_`, or None."""
        folder.mkdir(parents=True, exist_ok=True)
        owner = f"search-{uuid.uuid4().hex[:12]}"
        with lock.alone(folder / owner):
            study = optuna.create_study(
                storage=open_storage(place),
                study_name=name,
                direction="maximize" if maximize else "minimize",
                sampler=instantiate(sampler),
                pruner=instantiate(pruner) if pruner else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            study.set_user_attr(_PRUNER, json.dumps(pruner))
            yield cls(study, place, folder, space, trials, owner)

    def next(self, count: int) -> list[FrozenTrial]:
        """Up to `count` trials to carry out: first those that a search left when it died, then new ones."""
        taken: list[FrozenTrial] = []
        with FileLock(self.folder / ".locks" / "search.lock"):  # the others ask one after the other
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if len(taken) < count and self._take_over(trial):
                    taken.append(trial)
            while len(taken) < count and len(self.study.get_trials(deepcopy=False)) < self.trials:
                new = self.study.ask(self.space)
                new.set_user_attr(_OWNER, self.owner)
                taken.append(self.study.trials[new.number])
        return taken

    def _take_over(self, trial: FrozenTrial) -> bool:
        other = trial.user_attrs.get(_OWNER, "")
        if other == self.owner:
            return False
        try:
            # Without a name: its search died between two lines of `next`, which no other is in now.
            with lock.alone(self.folder / other) if other else contextlib.nullcontext():
                Trial(self.study, trial._trial_id).set_user_attr(_OWNER, self.owner)
        except Held:
            return False
        return True

    def tell(self, trial: FrozenTrial, record: Record | None, folder: Path) -> None:
        """Says what became of a trial whose run is in `folder`."""
        if record is not None and record.status == "done":
            self.study.tell(trial.number, selected(record, folder), skip_if_finished=True)
            return
        pruned = record is not None and record.status == "pruned"
        judged = pruned and self.study.trials[trial.number].intermediate_values  # or another trial of this run was
        state = TrialState.PRUNED if judged else TrialState.FAIL
        self.study.tell(trial.number, state=state, skip_if_finished=True)

    def judge(self, trial: FrozenTrial) -> str:
        """The override that lets the run of a trial ask whether it goes on."""
        arguments = {"place": self.place, "name": self.study.study_name, "trial": trial.number}
        quoted = ",".join(f"{key}:{json.dumps(value)}" for key, value in arguments.items())
        return f"machine.judge={{_target_:{__name__}.Judge,{quoted}}}"


def selected(record: Record, folder: Path) -> float:
    """The metric of the reported model on the selection split, from the run's log."""
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["step"] == record.metric.step and f"eval/{record.metric.name}" in row:
            return float(row[f"eval/{record.metric.name}"])
    raise ConfigError(f"{folder}: its log has no evaluation of step {record.metric.step}, which its record names")


class Judge:
    """What a run asks after each evaluation: whether Optuna's pruner lets it go on."""

    def __init__(self, place: str, name: str, trial: int) -> None:
        study = optuna.load_study(study_name=name, storage=open_storage(place))
        pruner = json.loads(study.user_attrs[_PRUNER])
        study.pruner = instantiate(pruner) if pruner else optuna.pruners.NopPruner()
        self._trial = Trial(study, study.trials[trial]._trial_id)

    def __call__(self, step: int, value: float) -> bool:
        if step not in self._trial.storage.get_trial(self._trial._trial_id).intermediate_values:
            self._trial.report(value, step)
        return not self._trial.should_prune()


def split(overrides: Sequence[Override]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """What all trials have in common, and the space that is searched."""
    fixed, space = [], {}
    for override in overrides:
        if override.is_sweep_override():
            space[override.get_key_element()] = distribution(override)
        else:
            fixed.append(f"{override.get_key_element()}={override.get_value_element_as_str()}")
    if not space:
        raise ConfigError("hydra.sweeper.params: nothing to search over, allowed: choice(…), range(…), interval(…)")
    return fixed, space
