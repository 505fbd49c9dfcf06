"""Writes metrics.jsonl: one line per logged step and one per evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainer.loop.counters import Counters
from trainer.loop.evaluation import Evaluation
from trainer.loop.jsonl_log import JsonlLog
from variants.core.step import Taken


class StepLog:
    """Sums the losses of steps and writes their means.

    shown: the latest values, formatted for the progress bar.
    """

    def __init__(self, path: Path, counters: Counters, steps_per_epoch: int, writes: bool) -> None:
        self.shown: dict[str, str] = {}
        self._log = JsonlLog(path, writes=writes)
        self._counters = counters
        self._steps_per_epoch = steps_per_epoch
        self._grad_norm = 0.0

    def add(self, taken: Taken) -> None:
        """Adds a step. Its loss stays on the device, because reading it would synchronise."""
        self._grad_norm = taken.norm
        if not taken.moved:
            self._counters.skipped += 1
            return
        self._counters.logged_steps += 1
        self._counters.add_later(task_loss=taken.task_loss)
        if taken.penalty is not None:
            self._counters.add_later(penalty=taken.penalty)

    def write(
        self, step: int, lr: float, ranks: Mapping[str, int] | None, effective: int, sparsity: float | None
    ) -> None:
        """Writes the means over the steps since the last line; null if all of them were skipped.

        effective: the number of effective parameters after the step, counted as the record's `params.effective`.
        """
        counters = self._counters
        counters.read()
        steps = counters.logged_steps
        loss, penalty = (counters.task_loss / steps, counters.penalty / steps) if steps else (None, None)
        values = {"train/task_loss": loss, "train/penalty": penalty}
        values |= {"lr": lr, "grad_norm": self._grad_norm, "skipped": counters.skipped}
        values["params/effective"] = effective
        if loss is not None:
            self.shown["loss"] = f"{loss:.3f}"
        if ranks:
            values["budget/total_rank"] = sum(ranks.values())
            self.shown["rank"] = str(sum(ranks.values()))
        if sparsity is not None:
            values["sparsity"] = sparsity
        self._log.write(step, epoch=self.epoch(step), **values)
        counters.logged_steps, counters.task_loss, counters.penalty = 0, 0.0, 0.0

    def write_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Writes the metrics and the mean task loss of an evaluation."""
        metrics = {f"eval/{name}": value for name, value in evaluation.metrics.items()}
        self._log.write(step, epoch=self.epoch(step), **(metrics | {"eval/loss": evaluation.loss}))
        self.shown |= {name: f"{value:.3f}" for name, value in evaluation.metrics.items()}

    def epoch(self, step: int) -> float:
        """Returns the number of epochs in `step` steps."""
        return step / self._steps_per_epoch

    def forget_after(self, step: int) -> None:
        """Removes the lines of later steps."""
        self._log.forget_after(step)
