"""Selects the model that a run reports by its evaluations on the selection split, and ends runs that don't improve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trainer.errors import RunFailed
from trainer.loop.checkpoints import Best
from trainer.loop.counters import Counters
from trainer.loop.evaluation import Evaluation
from trainer.machine import processes

Pruner = Callable[[int, float], bool]  # step and metric to whether the run continues


class Selection:
    """Keeps the best evaluation in `counters` and, for a run that reports its best model, that model in `best`.

    metric: the name of the deciding metric. pruner: of a search; None for a run outside a search.
    """

    def __init__(
        self, metric: str, higher_is_better: bool, counters: Counters, best: Best | None, pruner: Pruner | None
    ) -> None:
        self.best = best
        self._metric, self._sign = metric, 1 if higher_is_better else -1
        self._counters, self._pruner = counters, pruner
        self._evaluations: dict[int, Evaluation] = {}  # by step: the best and the latest

    def add(self, step: int, evaluation: Evaluation, eligible: bool, weights: Callable[[], Mapping[str, Any]]) -> bool:
        """Compares an evaluation with the best one, and returns whether the search prunes the run.

        eligible: False for a model above its budget, which can't be the best. weights: returns the model's state.
        """
        counters = self._counters
        best_so_far = {s: kept for s, kept in self._evaluations.items() if s == counters.best_step}
        self._evaluations = {step: evaluation} | best_so_far
        if not eligible:
            return False
        metric = evaluation.metrics[self._metric]
        value = self._sign * metric
        if counters.best_value is None or value > counters.best_value:
            counters.best_value, counters.best_step, counters.worse = value, step, 0
            if self.best is not None and processes.is_first():
                self.best.write(step, weights())
        else:
            counters.worse += 1
        return self._pruner is not None and not self._pruner(step, metric)

    def is_over(self, patience: int | None) -> bool:
        """Whether the last `patience` evaluations have not improved on the best one; never without a patience."""
        return patience is not None and self._counters.worse >= patience

    def evaluation(self, step: int) -> Evaluation | None:
        """Returns the evaluation after `step` if it is the best or the latest one."""
        return self._evaluations.get(step)

    def forget_evaluations(self) -> None:
        """Drops the evaluations, because the model may change without a step."""
        self._evaluations.clear()

    def best_model(self) -> tuple[int, Any]:
        """Returns step and state of the best model. Raises `RunFailed` without one."""
        step = self._counters.best_step
        if self.best is None or step is None:
            raise RunFailed("train.checkpoint: best, but no evaluated model was within the method's budget")
        processes.wait()  # until the first process has written it
        return step, self.best.load(step)
