"""The loop of a run: makes the steps of `variants.core.step`, and logs, evaluates and saves between them.

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
from safetensors import SafetensorError
from torch import nn

from trainer.data.rows import Rows, TaskSplits
from trainer.errors import Pruned, RunFailed
from trainer.instantiate import make
from trainer.loop import checkpoints, cost, progress
from trainer.loop.batches import Batch, Batches, Collator, total_steps
from trainer.loop.counters import Counters
from trainer.loop.evaluation import Evaluation, Evaluator
from trainer.loop.network import Network
from trainer.loop.optim import build_optimizer, build_schedule
from trainer.loop.rank_log import RankLog
from trainer.loop.step_log import StepLog
from trainer.machine import processes, signals
from trainer.objectives.objective import Objective
from variants.core import collectives, state_files
from variants.core import training_state as live
from variants.core.step import Loss, take
from variants.core.target_modules import inside
from variants.core.variant import Step, Variant

log = logging.getLogger(__name__)


class Loop:
    """Trains one variant on one task.

    done: the number of steps made so far, of `steps`. best: the best model so far, for a run that reports it.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        variant: Variant,
        head: Sequence[str],
        rows: TaskSplits,
        objective: Objective,
        config: DictConfig,
        folder: Path,
        source: Path,
        device: torch.device,
    ) -> None:
        train, machine = config.train, config.machine
        checkpoints.seed_all(config.seed)
        self.model, self.variant, self.head = model.to(device), variant, head
        if (described := getattr(model, "config", None)) is not None:
            described.use_cache = False  # the cache of keys and values serves only generation
        self.rows, self.cfg, self.device = rows, config, device
        self.objective = objective
        self.network = Network(self.model, source, device, train.autocast)
        self.collate = Collator(objective.pad(source), objective.weigh)
        self.batches = Batches(rows.train, train, config.seed, self.collate, machine.workers, device)
        self.evaluator = Evaluator(self.network, objective, self.batches, train.eval_batch_size)
        self.done, self.steps = 0, total_steps(len(rows.train), train, variant.trains)
        self.counters = Counters()
        self.checkpoints = checkpoints.Checkpoints(folder)
        self.best = checkpoints.Best(folder)
        self.rank_log = RankLog(folder / "ranks.jsonl", writes=processes.is_first())
        self.step_log = StepLog(
            folder / "metrics.jsonl", self.counters, self.batches.steps_per_epoch, writes=processes.is_first()
        )
        self._evaluated: dict[int, Evaluation] = {}  # on the selection split, by step: the best and the latest
        self._pruner = make("machine.judge", machine.judge) if machine.judge is not None else None
        self._activations = cost.SavedActivations(model)
        self._held: Any = None  # the trained tensors when bytes were last counted

    @functools.cached_property
    def _optimization(self) -> tuple[torch.optim.Optimizer, Any]:
        """Both are built together at their first use, because building a schedule sets the optimizer's rates."""
        fused = self.cfg.machine.kernel == "fused"
        optimizer = build_optimizer(self.model, self.head, self.variant, self.cfg.optim, fused)
        return optimizer, build_schedule(optimizer, self.cfg.optim, self.steps)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimization[0]

    @property
    def scheduler(self) -> Any:
        return self._optimization[1]

    # -- training -----------------------------------------------------------------------------

    def fit(self) -> None:
        """Trains to the end, starting from the newest checkpoint if one exists."""
        if self.cfg.train.gradient_checkpointing:
            model: Any = self.model
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        processes.seed_apart(self.cfg.seed)
        self.resume()
        if self.done == 0:
            self.rank_log.write(0, self.variant.ranks())
        if not self.variant.trains:
            self.evaluate(0)
            return
        shown = self.cfg.machine.progress and processes.is_first()
        with progress.shown(shown, self.done, self.steps, self.step_log.shown) as advance:
            self._train(advance)

    def _train(self, advance: Callable[[], None]) -> None:
        counters, train, machine = self.counters, self.cfg.train, self.cfg.machine
        every = self.batches.steps_per_epoch if train.eval_every == "epoch" else train.eval_every
        begun = time.perf_counter()
        for index, batches in zip(range(self.done + 1, self.steps + 1), self.batches.steps(self.done), strict=False):
            if train.early_stopping is not None and counters.worse >= train.early_stopping:
                return
            last, pruned = index == self.steps, False
            self.make_step(index, batches)
            counters.train_seconds += time.perf_counter() - begun
            self.end_step(index)
            advance()
            if index % every == 0 or last:
                pruned = self.evaluate(index) and not last
            asked = (
                processes.any_of(signals.asked()) and not last
            )  # to stop; after the last step the run finishes instead
            if (index % machine.save_every == 0 and not last) or asked or pruned:
                self.save()  # also when pruned, so that the run can be resumed
            if pruned:
                raise Pruned(f"pruned by the search after step {index} of {self.steps}")
            signals.check(saved=asked)
            begun = time.perf_counter()

    def make_step(self, index: int, batches: Sequence[Batch]) -> None:
        """Makes step `index`: hooks, forward and backward pass, optimizer. Raises `RunFailed` for too many skipped."""
        counters, view = self.counters, self.view(index)
        set_mode(view.optimizer, "train")
        taken = take(
            view,
            self.variant,
            self.model,
            batches,
            self.loss,
            weight=processes.sum_of(sum(batch.weight for batch in batches)),
            max_norm=self.cfg.optim.max_grad_norm,
            # Before the method acts, so that parameters that it removes are counted.
            watch=lambda event: self._watch(view) if event == "moved" else None,
        )
        self.done = index
        self.step_log.add(taken)
        units = torch.stack([self.objective.units(batch) for batch in batches]).sum()
        counters.add_later(tokens=collectives.all_reduce_sum(units))
        if not taken.moved and counters.skipped > self.cfg.train.max_skipped:
            raise RunFailed(
                f"train.max_skipped: step {index} is the {_nth(counters.skipped)} "
                f"whose loss or gradient is not finite, allowed: {self.cfg.train.max_skipped}"
            )

    def end_step(self, index: int) -> None:
        """Writes the step's log lines if they are due."""
        logged = index % self.cfg.machine.log_every == 0 or index == self.steps
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

    def view(self, index: int) -> Step:
        """Returns the step `index` for the hooks."""
        return Step(index, self.steps, self.optimizer, self.scheduler)

    def loss(self, batch: Batch) -> Loss:
        """Computes the task loss of a training batch, and counts the saved activations if it is the largest so far."""
        counters, size = self.counters, self.objective.size(batch)
        if size < counters.largest_batch:
            return self.forward(batch)
        counters.largest_batch = size
        with self._activations.counting():
            loss = self.forward(batch)
        # A later batch of the same size may need more, because ranks grow.
        counters.activations = max(counters.activations, self._activations.bytes)
        return loss

    def forward(self, batch: Batch) -> Loss:
        """Computes the task loss of a batch."""
        return self.objective.loss(self.network, batch.to(self.device))

    def _watch(self, step: Step) -> None:
        self.counters.observe_gradients(self.model)
        self._count_bytes(step)

    def _count_bytes(self, step: Step) -> None:
        """Updates the peaks of weights, gradients and optimizer state.

        Counting all storages takes more than a percent of a small step. So it is done only in logged steps, and when
        the trained tensors have changed in number, size or state since the last count.
        """
        optimizer = step.optimizer
        trained = [(p.numel(), p.grad is None) for group in optimizer.param_groups for p in group["params"]]
        held = (trained, len(optimizer.state))
        if held != self._held or step.index % self.cfg.machine.log_every == 0:
            self._held = held
            self.counters.count_bytes(self.model, optimizer)

    # -- evaluation ---------------------------------------------------------------------------

    def timed_evaluation(self, rows: Rows) -> Evaluation:
        """Evaluates the model on `rows`, and counts the seconds as evaluation."""
        start = time.perf_counter()
        self.model.eval()
        evaluation = self.evaluator(rows, self.done)
        self.counters.eval_seconds += time.perf_counter() - start
        return evaluation

    def evaluate(self, index: int) -> bool:
        """Evaluates on the selection split, keeps the best model, and returns whether the search prunes the run."""
        counters = self.counters
        set_mode(self.optimizer, "eval")
        evaluation = self.timed_evaluation(self.rows.select)
        self._evaluated = {index: evaluation} | {s: e for s, e in self._evaluated.items() if s == counters.best_step}
        self.step_log.write_evaluation(index, evaluation)
        if not self.variant.is_final_form(self.view(index)):
            return False  # not a candidate for the best model while above its budget
        metric = evaluation.metrics[self.objective.asked[0]]
        value = metric * (1 if self.objective.higher_is_better else -1)
        if counters.best_value is None or value > counters.best_value:
            counters.best_value, counters.best_step, counters.worse = value, index, 0
            if self.cfg.train.checkpoint == "best" and processes.is_first():
                self.best.write(index, self.weights())
        else:
            counters.worse += 1
        return self._pruner is not None and not self._pruner(index, metric)

    def final_evaluation(self, rows: Rows, step: int) -> Evaluation:
        """Evaluates the model of `step` on `rows`; an evaluation during training is not repeated."""
        if rows is self.rows.select and step in self._evaluated:
            return self._evaluated[step]
        return self.timed_evaluation(rows)

    # -- checkpoints --------------------------------------------------------------------------

    def weights(self) -> dict[str, Any]:
        return live.weights(self.model, self.variant, self.optimizer)

    def save(self) -> None:
        """Writes a checkpoint of the last step: everything that a resumed run needs except the backbone."""
        weights = self.weights()
        processes.compare(weights, self.model, self.done)
        first, *others = processes.gathered({"random": checkpoints.random_state(), "counters": self.counters.saved()})
        if not processes.is_first():
            return
        state = weights | {
            "optimizer": live.optimizer_state(self.model, self.optimizer),
            "scheduler": live.schedule_state(self.scheduler),
            "ranks": self.rank_log.ranks,
            **first,
            **{f"process {number}": other for number, other in enumerate(others, 1)},
        }
        try:
            self.checkpoints.write(self.done, state)
        except (OSError, SafetensorError) as error:  # a full disk: the run continues without this checkpoint
            log.warning("no checkpoint of step %d: %s; the run continues", self.done, error)

    def resume(self) -> None:
        """Restores the newest checkpoint, and drops the log lines after it."""
        best = self.best if self.cfg.train.checkpoint == "best" else None
        newest = processes.from_first(lambda: self.checkpoints.newest(best))
        self.done = checkpoints.step_of(newest) if newest is not None else 0
        before = self.done if newest is not None else -1  # without a checkpoint even the line of step 0 is dropped
        self.step_log.forget_after(before)
        self.rank_log.forget_after(before)
        if newest is None:
            return
        state = state_files.load(newest / checkpoints.STATE)
        live.restore_weights(self.model, self.variant, state)
        live.restore_optimizer(self.model, self.optimizer, state["optimizer"])
        live.restore_schedule(self.scheduler, state["scheduler"])
        self.rank_log.ranks = state["ranks"]
        own = state if processes.is_first() else state[f"process {processes.rank()}"]
        self.counters.restore(own["counters"])
        checkpoints.restore_random(own["random"])
        log.info("resumes at step %d of %d", self.done, self.steps)

    def finish(self) -> int:
        """Restores the reported model, the best or the last, brings it to its final form, and returns its step."""
        step = self.done
        if self.cfg.train.checkpoint == "best":
            if self.counters.best_step is None:
                raise RunFailed("train.checkpoint: best, but no evaluated model was within the method's budget")
            processes.wait()  # until the first process has written it
            live.restore_weights(self.model, self.variant, self.best.load(self.counters.best_step))
            step = self.counters.best_step
        if type(self.variant).on_train_end is not Variant.on_train_end:
            self._evaluated.clear()  # the method may change the model now, so it is evaluated again
        with collectives.same_draws():
            self.variant.on_train_end(self.view(self.done))
        processes.compare(self.weights(), self.model, self.done)
        self.rank_log.write(self.done, self.variant.ranks())
        return step


def set_mode(optimizer: torch.optim.Optimizer, mode: str) -> None:
    """Calls `train` or `eval` of an optimizer with such modes, such as a schedule-free one."""
    if callable(switch := getattr(optimizer, mode, None)):
        switch()


def _nth(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
