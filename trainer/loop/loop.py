"""The loop of a run: makes the steps of `variants.core.step`, and logs, evaluates and saves between them.

    resume                           # from the newest checkpoint, if one exists
    for each remaining step:
        make_step                    # hooks, forward and backward passes, optimizer: `variants.core.step.take`
        log                          # every machine.log_every steps
        evaluate                     # every train.eval_every steps, on the selection split; keeps the best model
        save                         # every machine.save_every steps, and before the run is stopped or pruned
    finish                           # restores the reported model and brings it to its final form

The number of the step alone determines when, so that a resumed run does the same as an uninterrupted one.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from trainer.data.rows import Rows, TaskSplits
from trainer.errors import Pruned, RunFailed
from trainer.instantiate import make
from trainer.loop import checkpoints, cost, loop_state, preparation, progress
from trainer.loop.batches import Batch, Batches, Collator, total_steps
from trainer.loop.counters import Counters
from trainer.loop.evaluation import Evaluation, Evaluator
from trainer.loop.memory_meter import MemoryMeter
from trainer.loop.network import Network
from trainer.loop.optim import build_optimizer, build_schedule, set_mode
from trainer.loop.rank_log import RankLog
from trainer.loop.selection import Selection
from trainer.loop.step_log import StepLog
from trainer.machine import processes, signals
from trainer.objectives.objective import Objective
from variants.core import collectives, state_files, training_state
from variants.core.step import Loss, take
from variants.core.target_modules import inside
from variants.core.variant import Step, Variant

log = logging.getLogger(__name__)


class Loop:
    """Trains one variant on one task. done: the number of steps made so far, of `steps`.

    task_loss: computes the task loss of a batch: the objective's, or one beside it.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        variant: Variant,
        head: Sequence[str],
        rows: TaskSplits,
        objective: Objective,
        loss: Callable[[Network, Batch], Loss],
        counters: Counters,
        config: DictConfig,
        folder: Path,
        source: Path,
        device: torch.device,
    ) -> None:
        train, machine = config.train, config.machine
        checkpoints.seed_all(config.seed)
        self.model, self.variant, self.head = model.to(device), variant, head
        self.rows, self.objective, self.cfg, self.device = rows, objective, config, device
        self.network = Network(self.model, source, device, train.autocast, getattr(torch, config.model.dtype))
        self.collate = Collator(objective.pad(source), objective.weigh)
        self.batches = Batches(rows.train, train, config.seed, self.collate, machine.workers, device)
        self.done, self.steps = 0, total_steps(len(rows.train), train, variant.trains)
        self.task_loss, self.counters = loss, counters
        self.memory = MemoryMeter(model, self.counters, machine.log_every)
        self.evaluator = Evaluator(self.network, objective, self.batches, train.eval_batch_size)
        self.checkpoints = checkpoints.Checkpoints(folder)
        self.selection = Selection(
            objective.asked[0],
            objective.higher_is_better,
            self.counters,
            checkpoints.Best(folder) if train.checkpoint == "best" else None,
            make("machine.judge", machine.judge) if machine.judge is not None else None,
        )
        first = processes.is_first()
        self.rank_log = RankLog(folder / "ranks.jsonl", writes=first)
        self.step_log = StepLog(folder / "metrics.jsonl", self.counters, self.batches.steps_per_epoch, writes=first)

    @functools.cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Built at its first use: passes before training, or a checkpoint, may change what is trained."""
        fused = self.cfg.machine.kernel == "fused"
        return build_optimizer(self.model, self.head, self.variant, self.cfg.optim, fused)

    @functools.cached_property
    def scheduler(self) -> Any:
        return build_schedule(self.optimizer, self.cfg.optim, self.steps)

    # -- training -----------------------------------------------------------------------------

    def fit(self) -> None:
        """Trains to the end, starting from the newest checkpoint if one exists."""
        if self.cfg.train.gradient_checkpointing:
            self.network.recompute_activations()
        processes.seed_apart(self.cfg.seed)
        self.resume()
        self.prepare()
        if self.done == 0:
            self.rank_log.write(0, self.variant.ranks())
        if not self.variant.trains:
            self.evaluate(0)
            return
        shown = self.cfg.machine.progress and processes.is_first()
        with progress.shown(shown, self.done, self.steps, self.step_log.shown) as advance:
            self._train(advance)

    def prepare(self) -> None:
        """Makes the passes before the first step; not for a run that starts from another, whose decisions it keeps."""
        passes = preparation.passes_over(self.model, self.batches, self.objective, self.network, self.forward)
        if self.done == 0 and self.cfg.init_from is None:
            self.counters.prepared = preparation.prepare(self.variant, self.model, self.head, passes, self.device)
        if self.variant.trains:
            preparation.hold(self.variant, passes)

    def _train(self, advance: Callable[[], None]) -> None:
        train, machine = self.cfg.train, self.cfg.machine
        eval_every = self.batches.steps_per_epoch if train.eval_every == "epoch" else train.eval_every
        begun = time.perf_counter()
        for index, batches in zip(range(self.done + 1, self.steps + 1), self.batches.steps(self.done), strict=False):
            if self.selection.is_over(train.early_stopping):
                return
            self.make_step(index, batches)
            last = self.is_last(index)
            self.counters.train_seconds += time.perf_counter() - begun
            self.end_step(index)
            advance()
            pruned = (index % eval_every == 0 or last) and self.evaluate(index) and not last
            asked = processes.any_of(signals.asked()) and not last  # to stop; after the last step the run finishes
            if (index % machine.save_every == 0 and not last) or asked or pruned:
                self.save()  # also when pruned, so that the run can be resumed
            if pruned:
                raise Pruned(f"pruned by the search after step {index} of {self.steps}")
            signals.check(saved=asked)
            if last:
                return
            begun = time.perf_counter()

    def is_last(self, index: int) -> bool:
        """Returns whether the step `index`, which has been made, is the last: of the run, or by the method's rule."""
        return index == self.steps or self.variant.is_over()

    def make_step(self, index: int, batches: Sequence[Batch]) -> None:
        """Makes step `index`: hooks, forward and backward pass, optimizer. Raises `RunFailed` for too many skipped."""
        step = self.view(index)
        set_mode(self.optimizer, "train")
        taken = take(
            step,
            self.variant,
            self.model,
            batches,
            self.loss,
            weight=processes.sum_of(sum(batch.weight for batch in batches)),
            max_norm=self.cfg.optim.max_grad_norm,
            # Memory is measured before the method acts, so that parameters that it removes are counted.
            watch=lambda event: self.memory.moved(step) if event == "moved" else None,
        )
        self.done = index
        self.step_log.add(taken)
        units = torch.stack([self.objective.units(batch) for batch in batches]).sum()
        self.counters.add_later(tokens=collectives.all_reduce_sum(units))
        allowed, skipped = self.cfg.train.max_skipped, self.counters.skipped
        if not taken.moved and skipped > allowed:
            raise RunFailed(
                f"train.max_skipped: {skipped} of {index} steps had a loss or gradient that is not finite, "
                f"allowed: {allowed}"
            )

    def loss(self, batch: Batch) -> Loss:
        """Computes the task loss of a training batch."""
        with self.memory.forward(self.objective.size(batch)):
            return self.forward(batch)

    def forward(self, batch: Batch) -> Loss:
        """Computes the task loss of a batch."""
        return self.task_loss(self.network, batch.to(self.device))

    def view(self, index: int) -> Step:
        """Returns the step `index` for the hooks."""
        return Step(index, self.steps, self.optimizer, self.scheduler)

    def end_step(self, index: int) -> None:
        """Writes the step's log lines if they are due."""
        logged = index % self.cfg.machine.log_every == 0 or self.is_last(index)
        if logged or not self.variant.counts_ranks_on_device:
            self.rank_log.write(index, self.variant.ranks())
        if logged:
            (rate, *_) = self.scheduler.get_last_lr()
            effective = cost.effective_parameters(self.model, self.variant, self.head, self.silent())
            self.step_log.write(index, rate, self.rank_log.ranks, effective, self.variant.sparsity())

    def silent(self) -> list[str]:
        """Returns the names of trained parameters outside the head that never had a gradient."""
        self.counters.read()
        return [name for name in self.counters.silent or () if not inside(name, self.head)]

    # -- evaluation ---------------------------------------------------------------------------

    def evaluate(self, index: int) -> bool:
        """Evaluates on the selection split, keeps the best model, and returns whether the search prunes the run."""
        set_mode(self.optimizer, "eval")
        evaluation = self.timed_evaluation(self.rows.select)
        self.step_log.write_evaluation(index, evaluation)
        within_budget = self.variant.is_final_form(self.view(index))
        return self.selection.add(index, evaluation, within_budget, self.weights)

    def timed_evaluation(self, rows: Rows) -> Evaluation:
        """Evaluates the model on `rows`, and counts the seconds as evaluation."""
        start = time.perf_counter()
        self.model.eval()
        evaluation = self.evaluator(rows, self.done)
        self.counters.eval_seconds += time.perf_counter() - start
        return evaluation

    def final_evaluation(self, rows: Rows, step: int) -> Evaluation:
        """Evaluates the model of `step` on `rows`; an evaluation during training is not repeated."""
        known = self.selection.evaluation(step) if rows is self.rows.select else None
        return known or self.timed_evaluation(rows)

    # -- checkpoints --------------------------------------------------------------------------

    def weights(self) -> dict[str, Any]:
        """Returns the trained parameters and the variant's state."""
        return training_state.weights(self.model, self.variant, self.optimizer)

    def save(self) -> None:
        """Writes a checkpoint of the last step: everything that a resumed run needs except the backbone."""
        if (state := loop_state.gathered(self)) is not None:
            self.checkpoints.try_write(self.done, state)

    def resume(self) -> None:
        """Restores the newest checkpoint, and drops the log lines after it."""
        newest = processes.from_first(lambda: self.checkpoints.newest(self.selection.best))
        self.done = checkpoints.step_of(newest) if newest is not None else 0
        last_line = self.done if newest is not None else -1  # without a checkpoint even the line of step 0 is dropped
        self.step_log.forget_after(last_line)
        self.rank_log.forget_after(last_line)
        if newest is not None:
            loop_state.restore(self, state_files.load(newest / checkpoints.STATE))
            log.info("resumes at step %d of %d", self.done, self.steps)

    def finish(self) -> int:
        """Restores the reported model, the best or the last, brings it to its final form, and returns its step."""
        step = self.done
        if self.cfg.train.checkpoint == "best":
            step, state = self.selection.best_model()
            training_state.restore_weights(self.model, self.variant, state)
        if type(self.variant).on_train_end is not Variant.on_train_end:
            self.selection.forget_evaluations()  # the method may change the model now, so it is evaluated again
        with collectives.same_draws():
            self.variant.on_train_end(self.view(self.done))
        processes.compare(self.weights(), self.model, self.done)
        self.rank_log.write(self.done, self.variant.ranks())
        return step
