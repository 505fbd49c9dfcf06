"""The loop: transformers' Trainer, with the variant's hooks where `variants.core.variant` puts them.

transformers 5 runs a step as

    on_step_begin → forward, backward (for each accumulated batch) → clip → on_pre_optimizer_step
    → optimizer.step → on_optimizer_step → schedule → zero_grad → global_step += 1 → on_step_end

so the gradients are still there in on_optimizer_step, and the step being made has the number
global_step + 1 until on_step_end. When to log, evaluate and save is decided here, by step
numbers alone: then a run that goes on from a checkpoint does just what it would have done.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from omegaconf import DictConfig
from safetensors import SafetensorError
from torch import nn

from trainer import cost, evaluation, metrics, processes, saving, shard, stopping
from trainer.counters import Counters
from trainer.data import Order, Prepared, Rows, collator
from trainer.errors import Pruned, RunFailed
from trainer.evaluation import Evaluation
from trainer.instantiate import make
from trainer.journal import Journal
from trainer.optim import build_optimizer, build_schedule
from trainer.progress import Progress
from trainer.rank_log import RankLog
from variants.core import checkpoint, reduce
from variants.core import state as live
from variants.core.variant import Step, Variant

log = logging.getLogger(__name__)


def total_steps(rows: int, train: DictConfig) -> int:
    """Optimizer steps of a run over `rows` training rows."""
    if train.max_steps is not None:
        return train.max_steps
    return max(1, math.ceil(train.epochs * steps_per_epoch(rows, train)))


def steps_per_epoch(rows: int, train: DictConfig) -> int:
    batch = train.batch_size * (train.processes or 1)
    return math.ceil(math.ceil(rows / batch) / train.accumulate)


class Loop(transformers.Trainer):
    """Trains one variant on one task; see the module's text for the order of things."""

    def __init__(
        self,
        *,
        model: nn.Module,
        variant: Variant,
        head: Sequence[str],
        rows: Prepared,
        task: DictConfig,
        config: DictConfig,
        folder: Path,
        tokens: Path,
        device: torch.device,
    ) -> None:
        train, machine = config.train, config.machine
        self.variant, self.head, self.rows = variant, head, rows
        self.metric_names = list(task.metrics)
        self.classes = metrics.classes(rows.labels, task.get("positive"), self.metric_names)
        self.cfg = config
        self.counters = Counters()
        self.checkpoints = saving.Checkpoints(folder)
        self.best = saving.Best(folder)
        self.journal = Journal(folder / "metrics.jsonl", writes=processes.is_first())
        self.rank_log = RankLog(folder / "ranks.jsonl", writes=processes.is_first())
        self.steps = total_steps(len(rows.train), train)
        self.epoch_steps = steps_per_epoch(len(rows.train), train)
        group = train.batch_size * (train.processes or 1) * train.accumulate
        self.order = Order(rows.train, group, train.group_by_length, config.seed)
        self._sampler: torch.utils.data.Sampler = self.order
        train_rows: torch.utils.data.Dataset = rows.train
        if processes.count() > 1:
            self._sampler = shard.Shard(self.order, train.batch_size, processes.rank(), processes.count())
            train_rows = shard.SharedRows(rows.train)
        self._evaluated: dict[int, Evaluation] = {}  # on the selection split: the best so far, and the last
        self._grad_norm = 0.0
        self._unread: dict[str, list[torch.Tensor]] = {"task_loss": [], "penalty": [], "tokens": []}
        self._held: tuple[list[tuple[int, bool]], int] | None = None  # what trained when bytes were last counted
        self._saved_activations = cost.SavedActivations(model)
        self._judge = make("machine.judge", machine.judge) if machine.judge is not None else None
        self._pruned = self._asked = False
        super().__init__(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=str(folder),
                per_device_train_batch_size=train.batch_size,
                per_device_eval_batch_size=train.eval_batch_size,
                gradient_accumulation_steps=train.accumulate,
                max_steps=self.steps,
                max_grad_norm=config.optim.max_grad_norm,
                bf16=train.autocast,
                activation_checkpointing=train.gradient_checkpointing,
                activation_checkpointing_kwargs={"use_reentrant": False} if train.gradient_checkpointing else None,
                seed=config.seed,
                use_cpu=device.type == "cpu",
                dataloader_num_workers=machine.workers,
                dataloader_pin_memory=device.type != "cpu",
                eval_strategy="no",  # see the module's text
                save_strategy="no",
                logging_strategy="no",
                logging_nan_inf_filter=False,
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                label_names=["labels"],
            ),
            data_collator=shard.Collator(collator(tokens)),
            train_dataset=train_rows,
            eval_dataset=rows.select,
            callbacks=[_Hooks(self), Progress(machine.progress and processes.is_first(), self.postfix)],
        )
        self.remove_callback(transformers.PrinterCallback)
        self.model_accepts_loss_kwargs = False  # the loss is ours, a mean over the batch

    # -- loss ---------------------------------------------------------------------------------

    def task_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, or the mean squared error of a regression, in at least float32."""
        logits = logits if logits.dtype.itemsize >= 4 else logits.float()
        if self.rows.labels is None:
            return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        if not model.training:
            logits = model(**inputs).logits
            loss = self.task_loss(logits, labels)
            return (loss, {"logits": logits}) if return_outputs else loss
        share = float(inputs.pop("share")[0]) if "share" in inputs else 1.0  # of the batch that the processes share
        penalty = self.variant.penalty()
        tokens = inputs["input_ids"].numel()
        if tokens >= self.counters.largest_batch:
            self.counters.largest_batch = tokens
            with self._saved_activations.counting():
                loss = self.task_loss(model(**inputs).logits, labels)
            # Of two batches of one size the later may need more: ranks grow.
            self.counters.activations = max(self.counters.activations, self._saved_activations.bytes)
        else:
            loss = self.task_loss(model(**inputs).logits, labels)
        self._task_losses.append(loss.detach() * share)
        if penalty is not None:
            self._penalties.append(penalty.detach())
        mask = inputs.get("attention_mask")  # a model that takes none reads all places of a batch
        self._tokens.append(torch.tensor(tokens * (share > 0)) if mask is None else mask.sum() * (share > 0))
        loss = loss if penalty is None else loss + penalty
        return loss if share == 1.0 else loss * share

    def training_step(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        loss = super().training_step(*arguments, **keywords)
        if self.accelerator.sync_gradients:  # the last batch of the step
            processes.sum_gradients(self.model)
        return loss

    # -- one step -----------------------------------------------------------------------------

    def step(self) -> Step:
        """The step being made, as the hooks see it."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate's wrapper
        return Step(self.state.global_step + 1, self.state.max_steps, optimizer, self._schedule())

    def _schedule(self) -> Any:
        return getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # accelerate's wrapper

    def begin_step(self) -> None:
        self._task_losses: list[torch.Tensor] = []
        self._penalties: list[torch.Tensor] = []
        self._tokens: list[torch.Tensor] = []
        with processes.same_draws():
            self.variant.on_step_begin(self.step())

    def on_gradients(self) -> None:
        self._skip = not math.isfinite(self._grad_norm)
        if self._skip:
            # Without gradients the optimizer moves nothing: no parameter, no moment, no decay.
            self.model.zero_grad(set_to_none=True)
            return
        with processes.same_draws():
            self.variant.on_gradients(self.step())

    def on_update(self) -> None:
        counters = self.counters
        if self._skip:
            counters.skipped += 1
            if counters.skipped > self.cfg.train.max_skipped:
                raise RunFailed(
                    f"train.max_skipped: step {self.state.global_step + 1} is the {_nth(counters.skipped)} "
                    f"whose loss or gradient is not finite, allowed: {self.cfg.train.max_skipped}"
                )
            return
        step = self.step()
        self.counters.listen(self.model)
        self._count_bytes(step.optimizer)  # before the variant acts: what it is about to remove was there
        with processes.same_draws():
            self.variant.on_update(step)
        counters.logged_steps += 1
        self._unread["task_loss"].append(reduce.total(torch.stack(self._task_losses).mean()))
        if self._penalties:
            self._unread["penalty"].append(torch.stack(self._penalties).mean())

    def _read(self) -> None:
        """Takes what the steps since the last time computed into the counters.

        To read a number is to wait for the device. A step does so once, to see whether its gradients are finite;
        all else is read where it is logged or saved.
        """
        for name, values in self._unread.items():
            for value in values:
                setattr(self.counters, name, getattr(self.counters, name) + value.item())
            values.clear()
        self.counters.read()
        self.rank_log.write()

    def _count_bytes(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes what weights, gradients and optimizer hold now into their peaks.

        Counting all storages takes more than a percent of a small step. So it is done where what trains has changed
        since the last time, in number, size or state, and in every step that is logged.
        """
        trained = [(p.numel(), p.grad is None) for group in optimizer.param_groups for p in group["params"]]
        held = (trained, len(optimizer.state))
        if held == self._held and (self.state.global_step + 1) % self.cfg.machine.log_every:
            return
        self._held = held
        self.counters.count_bytes(self.model, optimizer)

    def end_step(self, control: transformers.TrainerControl) -> None:
        """After the schedule has moved on: global_step is the step that was made."""
        step, machine = self.state.global_step, self.cfg.machine
        self._unread["tokens"].append(reduce.total(torch.stack(self._tokens).sum()))
        now = time.perf_counter()
        self.counters.train_seconds += now - self._mark
        self.take_ranks()
        last = step >= self.state.max_steps
        if step % machine.log_every == 0 or last:
            self.log_step()
        every = self.cfg.train.eval_every
        control.should_evaluate = last or step % (self.epoch_steps if every == "epoch" else every) == 0
        self._asked = processes.any_of(stopping.asked())
        control.should_save = (step % machine.save_every == 0 or self._asked) and not last
        control.should_log = False

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self._grad_norm = float(norm)
        return norm

    def _run_epoch(self, **arguments: Any) -> None:
        self.order.epoch = arguments["epoch"]
        super()._run_epoch(**arguments)

    def _maybe_log_save_evaluate(self, *arguments: Any, **keywords: Any) -> None:
        super()._maybe_log_save_evaluate(*arguments, **keywords)
        if self._pruned:
            raise Pruned(f"pruned by the search after step {self.state.global_step} of {self.state.max_steps}")
        if not (self._asked and self.state.global_step >= self.state.max_steps):  # the end is near: go there
            stopping.check(elsewhere=self._asked)
        self._mark = time.perf_counter()  # evaluating and saving is not training

    # -- evaluation ---------------------------------------------------------------------------

    @property
    def higher_is_better(self) -> bool:
        return metrics.higher_is_better(self.metric_names[0])

    @property
    def positive(self) -> str | None:
        """The class that f1 is of, where it is of one."""
        return metrics.positive(self.metric_names, self.rows.labels, self.classes)

    def timed_evaluation(self, rows: Rows) -> Evaluation:
        """The model on `rows`, without the penalty; its seconds are counted as evaluation."""
        start = time.perf_counter()
        # A data loader draws a number, so that without this the dropout of all later steps would be another.
        random = saving.random_state()
        outputs, loss = evaluation.outputs(self.predict, rows, self.cfg.train.eval_batch_size, self.task_loss)
        saving.restore_random(random)
        self.counters.eval_seconds += time.perf_counter() - start
        if not np.isfinite(outputs).all():
            raise RunFailed(f"the model's outputs are not finite after step {self.state.global_step}")
        computed = metrics.compute(self.metric_names, self.predicted(outputs), rows.labels, self.classes)
        return Evaluation(computed, loss, outputs)

    def predicted(self, outputs: np.ndarray) -> np.ndarray:
        """Class ids, or values of a regression, from the model's raw outputs."""
        return outputs.reshape(-1) if self.rows.labels is None else outputs.argmax(-1)

    def _evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        """Evaluates on the selection split, keeps the best, and stops where nothing gets better."""
        counters, step = self.counters, self.state.global_step
        self.control.should_evaluate = False  # or the end of an epoch would evaluate once more
        found = self.timed_evaluation(self.rows.select)
        self._evaluated = {step: found} | {s: e for s, e in self._evaluated.items() if s == counters.best_step}
        named = {f"eval/{name}": value for name, value in found.metrics.items()}
        self.journal.write(step, epoch=self.epoch, **named, **{"eval/loss": found.loss})
        self.last_evaluation = found.metrics
        if not self.variant.is_final_form(replace(self.step(), index=step)):
            return found.metrics  # a model that is still above its budget competes with none
        if self._judge is not None and not self._judge(step, found.metrics[self.metric_names[0]]):
            self._pruned = step < self.state.max_steps
            self.control.should_save |= self._pruned  # whoever wants it all the same goes on from here
        value = found.metrics[self.metric_names[0]] * (1 if self.higher_is_better else -1)
        if counters.best_value is None or value > counters.best_value:
            counters.best_value, counters.best_step, counters.worse = value, step, 0
            if self.cfg.train.checkpoint == "best" and processes.is_first():
                self.best.write(step, self.weights())
        else:
            counters.worse += 1
            patience = self.cfg.train.early_stopping
            if patience is not None and counters.worse >= patience:
                self.control.should_training_stop = True
        return found.metrics

    def final_evaluation(self, rows: Rows, step: int) -> Evaluation:
        """The model as it was after `step` on `rows`; not computed again where training just did."""
        if rows is self.rows.select and step in self._evaluated:
            return self._evaluated[step]
        return self.timed_evaluation(rows)

    # -- logs ---------------------------------------------------------------------------------

    @property
    def epoch(self) -> float:
        return self.state.global_step / self.epoch_steps

    def log_step(self) -> None:
        self._read()
        counters = self.counters
        steps = max(1, counters.logged_steps)
        lr = self.lr_scheduler.get_last_lr()[0]
        values = {"train/task_loss": counters.task_loss / steps, "train/penalty": counters.penalty / steps}
        if not counters.logged_steps:
            values = dict.fromkeys(values)
        values |= {"lr": lr, "grad_norm": self._grad_norm, "skipped": counters.skipped}
        if self.rank_log.ranks:
            values["budget/total_rank"] = sum(self.rank_log.ranks.values())
        if (sparsity := self.variant.sparsity()) is not None:
            values["sparsity"] = sparsity
        self.journal.write(self.state.global_step, epoch=self.epoch, **values)
        self.last_loss = values["train/task_loss"]
        counters.logged_steps, counters.task_loss, counters.penalty = 0, 0.0, 0.0

    def take_ranks(self) -> None:
        self.rank_log.take(self.state.global_step, self.variant.ranks_later())

    def postfix(self) -> dict[str, str]:
        """What the progress bar shows beside the step."""
        shown = {}
        if (loss := getattr(self, "last_loss", None)) is not None:
            shown["loss"] = f"{loss:.3f}"
        for name, value in getattr(self, "last_evaluation", {}).items():
            shown[name] = f"{value:.3f}"
        if self.rank_log.ranks:
            shown["rank"] = str(sum(self.rank_log.ranks.values()))
        return shown

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: the journal has what transformers would log here."""

    # -- optimizer ----------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            fused = self.cfg.machine.kernel == "fused"
            self.optimizer = build_optimizer(self.model, self.head, self.variant, self.cfg.optim, fused)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = build_schedule(optimizer or self.optimizer, self.cfg.optim, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        return self._sampler

    # -- checkpoints --------------------------------------------------------------------------

    def weights(self) -> dict[str, Any]:
        return live.weights(self.model, self.variant, self.step().optimizer)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._read()
        weights = self.weights()
        processes.compare(weights, self.model, self.state.global_step)
        own = {"random": saving.random_state(), "counters": asdict(self.counters)}
        first, *others = processes.gathered(own)
        if not processes.is_first():
            return
        state = weights | {
            "optimizer": live.optimizer_state(self.model, self.step().optimizer),
            "scheduler": live.schedule_state(self._schedule()),
            "ranks": self.rank_log.ranks,
            **first,
            **{f"process {number}": other for number, other in enumerate(others, 1)},
        }
        try:
            self.checkpoints.write(self.state.global_step, state, self.state)
        except (OSError, SafetensorError) as error:  # a full disk: the run needs none to go on, and has the one before
            log.warning("no checkpoint of step %d: %s; the run goes on", self.state.global_step, error)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._resumed = checkpoint.load(Path(resume_from_checkpoint) / saving.STATE)
        live.restore_weights(self.model, self.variant, self._resumed)
        if not processes.is_first():
            self._resumed |= self._resumed[f"process {processes.rank()}"]
        self.counters = Counters(**self._resumed["counters"])
        self.rank_log.ranks = self._resumed["ranks"]
        step = int(Path(resume_from_checkpoint).name.partition("-")[2])
        self.journal.forget_after(step)
        self.rank_log.forget_after(step)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            live.restore_optimizer(self.model, self.step().optimizer, self._resumed["optimizer"])
            live.restore_schedule(self._schedule(), self._resumed["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            saving.restore_random(self._resumed["random"])

    def fit(self) -> None:
        """Trains to the end, from the newest checkpoint where there is one."""
        best = self.best if self.cfg.train.checkpoint == "best" else None
        newest = processes.from_first(lambda: self.checkpoints.newest(best))
        if newest is None:
            self.journal.forget_after(-1)
            self.rank_log.forget_after(-1)
        try:
            self.train(resume_from_checkpoint=str(newest) if newest else None)
        finally:
            self.rank_log.write()

    def hand_over(self) -> int:
        """Makes the model the one that is reported, the best or the last, in its final form; its step."""
        step = self.state.global_step
        if self.cfg.train.checkpoint == "best":
            if self.counters.best_step is None:
                raise RunFailed("train.checkpoint: best, but no evaluated model was within the method's budget")
            processes.wait()  # until it is written
            live.restore_weights(self.model, self.variant, self.best.load(self.counters.best_step))
            step = self.counters.best_step
        if type(self.variant).on_train_end is not Variant.on_train_end:
            self._evaluated.clear()  # the method may change the model now, so that its numbers are taken anew
        with processes.same_draws():
            self.variant.on_train_end(replace(self.step(), index=self.state.global_step))
        processes.compare(self.weights(), self.model, self.state.global_step)
        self.take_ranks()
        self.rank_log.write()
        return step


class _Hooks(transformers.TrainerCallback):
    """Calls the loop where transformers calls back."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop._mark = time.perf_counter()
        processes.part_ways(args.seed)
        self.loop.take_ranks()
        self.loop.rank_log.write()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.begin_step()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.on_gradients()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.on_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loop.end_step(control)


def _nth(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
