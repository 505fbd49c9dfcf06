"""metrics.jsonl: a line for every few steps and a line for every evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainer.loop.counters import Counters
from trainer.loop.evaluation import Evaluation
from trainer.loop.jsonl_log import Journal
from variants.core.step import Taken


class StepLog:
    """Sums what steps computed and writes the means.

    shown: the latest of it, as a progress bar shows it.
    """

    def __init__(self, path: Path, counters: Counters, steps_per_epoch: int, writes: bool) -> None:
        self.shown: dict[str, str] = {}
        self._journal = Journal(path, writes=writes)
        self._counters = counters
        self._steps_per_epoch = steps_per_epoch
        self._grad_norm = 0.0

    def add(self, taken: Taken) -> None:
        """Takes note of a step. Its loss stays on the device: reading it would wait for that."""
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
        """Writes the means over the steps since the last time: null if all of them were skipped.

        effective: parameters in use after the step, counted as `params.effective` of the record is after the last.
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
        self._journal.write(step, epoch=self.epoch(step), **values)
        counters.logged_steps, counters.task_loss, counters.penalty = 0, 0.0, 0.0

    def write_evaluation(self, step: int, evaluation: Evaluation) -> None:
        named = {f"eval/{name}": value for name, value in evaluation.metrics.items()}
        self._journal.write(step, epoch=self.epoch(step), **(named | {"eval/loss": evaluation.loss}))
        self.shown |= {name: f"{value:.3f}" for name, value in evaluation.metrics.items()}

    def epoch(self, step: int) -> float:
        """Epochs that `step` steps are."""
        return step / self._steps_per_epoch

    def forget_after(self, step: int) -> None:
        """Removes the lines of later steps."""
        self._journal.forget_after(step)
