"""Variants in transformers' own Trainer: one callback attaches the method and calls its hooks.

    callback = VariantCallback(variant, head=["classifier"])
    trainer = Trainer(model=model, args=args, train_dataset=rows, callbacks=[callback])
    trainer.train()

A step is that of `variants.core.step.take`:

| the Trainer's event | what happens |
|---|---|
| `on_init_end` | checks, then `attach` |
| `on_train_begin` | `plan`; passes over the Trainer's data loader; the optimizer's groups; or all resumed |
| `on_step_begin`, `on_substep_end` | `on_step_begin`; the gradient of the penalty, once a step |
| `on_pre_optimizer_step` | gradients are clipped: `on_gradients`, or the step is left out if they aren't finite |
| `on_optimizer_step` | parameters have moved, the schedule has not: `on_update` |
| `on_save` | optimizer and schedule by the names of parameters, in place of the Trainer's files of them |
| `on_train_end` | `on_train_end` |

The penalty is not part of the loss that the Trainer sees and logs. Its gradient is added by a backward pass of its own,
so that it counts once a step however a model, `compute_loss_func`, label smoothing or a subclass makes the loss. While
training lasts, the model's `state_dict` holds the method's state, and loading one restores it before any parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.errors import ConfigError
from trainer.instantiate import named
from trainer.loop import checkpoints
from trainer.loop.loader_passes import passes_over
from trainer.loop.optim import watch_moments
from trainer.loop.rank_log import RankLog
from variants.core import state_files, training_state
from variants.core.parameter_groups import parameter_groups
from variants.core.placement import typed
from variants.core.variant import Step, Variant

STATE = "variant"  # of a checkpoint: variant.safetensors and variant.json
_KEY = "variant_state."  # of the model's state_dict
_REPLACED = ("optimizer.pt", "scheduler.pt")
_CHANGES = ("on_step_begin", "penalty", "on_gradients", "on_update", "before_training")


class VariantCallback(TrainerCallback):
    """Trains `variant` in transformers' Trainer, or in a subclass such as TRL's SFTTrainer.

    head: dotted names of the task's modules, which are trained but not adapted. Ranks are written to `ranks.jsonl` in
    `output_dir` whenever they change; the Trainer's log gets `total_rank`, `penalty` and `skipped`, the number of steps
    so far that were left out because their gradients were not finite, unless it is 0.

    Raises `ConfigError`, one line, before anything is trained for what can't be right: several processes with a method
    that changes in training (DistributedDataParallel averages only gradients of the parameters that it was given at the
    start), sharded or replicated models, an optimizer made elsewhere, a schedule that is no `LambdaLR`, reentrant
    gradient checkpointing, and models that are above their budget as candidates for the best.
    """

    def __init__(self, variant: Variant, head: Sequence[str] = ()) -> None:
        self.variant, self.head = variant, tuple(head)
        self._model: nn.Module | None = None
        self._trains = self._trained = False
        self._loaded = False  # a state_dict with the method's state was loaded
        self._moved = True
        self._skipped = 0  # steps since `train` whose gradients were not finite
        self._batches = 1  # of the step
        self._penalty: torch.Tensor | None = None  # summed over the steps since the last line of the log
        self._logged_steps = 0
        self._updates_per_epoch = 0
        self._ranks: RankLog | None = None

    # -- before the first step ----------------------------------------------------------------

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Attaches the variant. Raises `ConfigError`."""
        model = kwargs["model"]
        self._refuse(args, model, kwargs["optimizer"], kwargs["lr_scheduler"])
        device = next(model.parameters()).device
        model.to("cpu")  # what is drawn and decomposed there does not depend on the device
        attached = named("variant", self.variant.attach, model, self.head)
        if attached is not model:
            raise ConfigError(
                f"variant: {type(self.variant).__name__} wraps the whole model, allowed: a method of this package; "
                "the Trainer takes PEFT's own models as they are"
            )
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.dtype.itemsize < 4:
                raise ConfigError(f"model: {name} is trained in {parameter.dtype}, allowed: float32, with bf16=True")
        model.to(device)
        model.register_state_dict_post_hook(lambda *of_hook: self._add_state(*of_hook))  # it sets an attribute
        model.register_load_state_dict_pre_hook(self._load_state)
        self._model = model

    def _refuse(self, args: TrainingArguments, model: nn.Module, optimizer: Any, scheduler: Any) -> None:
        cls = type(self.variant)
        if self._model is not None:
            raise ConfigError("callbacks: this VariantCallback belongs to another Trainer, allowed: a new one")
        if not self.variant.trains:
            raise ConfigError(f"variant: {cls.__name__} trains nothing, allowed: a method that does")
        if optimizer is not None or scheduler is not None:
            raise ConfigError("optimizers: given, allowed: (None, None); a method has groups of parameters of its own")
        for name in ("deepspeed", "fsdp"):
            if getattr(args, name, None):
                raise ConfigError(f"args.{name}: {getattr(args, name)!r}, allowed: none; hooks need whole parameters")
        if args.n_gpu > 1:
            raise ConfigError(f"args.n_gpu: {args.n_gpu} in one process, allowed: 1; set CUDA_VISIBLE_DEVICES")
        if args.world_size > 1 and (hooks := [name for name in _CHANGES if _has(cls, name)]):
            raise ConfigError(
                f"args.world_size: {args.world_size} with {cls.__name__}, which has {', '.join(hooks)}, allowed: 1; "
                f"{typed('python train.py')} trains it in several processes"
            )
        if args.load_best_model_at_end and _has(cls, "is_final_form"):
            raise ConfigError(
                f"args.load_best_model_at_end: True with {cls.__name__}, allowed: False; "
                "the best model could be one above its budget"
            )
        devices = {parameter.device for parameter in model.parameters()}
        if len(devices) > 1:
            raise ConfigError(f"model: on {len(devices)} devices, allowed: one")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prepares the method and the optimizer, or restores both from the checkpoint that is resumed."""
        model: nn.Module = kwargs["model"]
        loader, folder = kwargs["train_dataloader"], Path(str(args.output_dir))
        if model is not self._model:
            raise ConfigError("model_init: given, allowed: model; a new model would be without the method")
        if _recomputes_reentrantly(model):
            raise ConfigError(
                "model: its gradient checkpointing is reentrant, allowed: use_reentrant=False; "
                "adapters in a block whose input has no gradient would get none"
            )
        resumed = state.global_step > 0
        if self._trained and not resumed:
            raise ConfigError("train: called again, allowed: a new model, variant and VariantCallback for a new run")
        named("variant", self.variant.plan, state.max_steps)
        self._updates_per_epoch = self._check_loader(args, loader)
        accumulated = args.gradient_accumulation_steps
        if resumed and args.ignore_data_skip and accumulated > 1 and _has(type(self.variant), "penalty"):
            raise ConfigError(
                f"args.ignore_data_skip: True with gradient_accumulation_steps: {accumulated} and a penalty, "
                "allowed: False; the number of a step must say where in its epoch it is"
            )
        optimizer, scheduler = _inner(kwargs["optimizer"]), kwargs["lr_scheduler"]
        self._check_optimizer(args, optimizer, scheduler)
        watch_moments(optimizer)
        folder.mkdir(parents=True, exist_ok=True)
        self._ranks = RankLog(folder / "ranks.jsonl", writes=state.is_world_process_zero)
        self._ranks.forget_after(state.global_step if resumed else -1)
        saved = self._saved(args, state, model) if resumed else None
        self._prepare(args, model, loader, [] if saved is not None else ["before_training"])
        _regroup(
            optimizer,
            scheduler,
            parameter_groups(model, self.head, self.variant, args.learning_rate, None, args.weight_decay),
        )
        if saved is None:
            self._ranks.write(0, self.variant.ranks())
        else:
            training_state.restore_optimizer(model, optimizer, saved["optimizer"])
            training_state.restore_schedule(scheduler, saved["scheduler"])
            self._ranks.ranks = saved["ranks"]
        self._trains = self._trained = True

    def _check_loader(self, args: TrainingArguments, loader: Any) -> int:
        """Returns the number of steps in an epoch; 0 if no one knows."""
        try:
            return math.ceil(len(loader) / args.gradient_accumulation_steps)
        except TypeError:
            if args.gradient_accumulation_steps > 1 and _has(type(self.variant), "penalty"):
                raise ConfigError(
                    f"args.gradient_accumulation_steps: {args.gradient_accumulation_steps} with a penalty and a "
                    "train_dataset without a length, allowed: 1"
                ) from None
            return 0

    @staticmethod
    def _check_optimizer(args: TrainingArguments, optimizer: Any, scheduler: Any) -> None:
        if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            raise ConfigError(
                f"args.lr_scheduler_type: {args.lr_scheduler_type}, allowed: linear, cosine, constant and others that "
                "are a LambdaLR"
            )
        options = [_options(group) for group in optimizer.param_groups]
        if any(one != options[0] for one in options[1:]):
            raise ConfigError(f"args.optim: {args.optim} makes groups of its own, allowed: such as adamw_torch")

    def _prepare(self, args: TrainingArguments, model: nn.Module, loader: Any, first: list[str]) -> None:
        """Calls the hooks that are given passes. first: those of a new run alone."""
        for hook in (*first, "hold_passes"):
            if not _has(type(self.variant), hook):
                continue
            if args.label_smoothing_factor:
                raise ConfigError(
                    f"args.label_smoothing_factor: {args.label_smoothing_factor} with {type(self.variant).__name__}, "
                    "allowed: 0; its passes over training rows use the model's own loss"
                )
            random = checkpoints.random_state()
            named("variant", getattr(self.variant, hook), passes_over(loader, model, args))
            checkpoints.restore_random(random)

    # -- a step -------------------------------------------------------------------------------

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, accumulated = kwargs["model"], args.gradient_accumulation_steps
        model.train()
        self.variant.on_step_begin(self._step(state, kwargs))
        self._batches = accumulated
        self._logged_steps += 1
        if self._updates_per_epoch:
            left = len(kwargs["train_dataloader"]) - state.global_step % self._updates_per_epoch * accumulated
            self._batches = min(accumulated, left)
        self._add_penalty(kwargs["optimizer"])

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._add_penalty(kwargs["optimizer"])

    def _add_penalty(self, optimizer: Any) -> None:
        """Adds the gradient of the next batch's part of the penalty, which is computed before the batch's forward."""
        penalty = self.variant.penalty()
        if penalty is None:
            return
        part = penalty.detach() / self._batches
        self._penalty = part if self._penalty is None else self._penalty + part
        if penalty.requires_grad:
            scaler = getattr(optimizer, "scaler", None)  # of float16: gradients are divided by it before clipping
            loss = penalty / self._batches
            (loss if scaler is None else scaler.scale(loss)).backward()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = kwargs["model"]
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self._moved = math.isfinite(nn.utils.get_total_norm(gradients))
        if self._moved:
            self.variant.on_gradients(self._step(state, kwargs))
        else:
            self._skipped += 1
            model.zero_grad()  # the optimizer then changes neither parameters nor moments

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._moved:
            self.variant.on_update(self._step(state, kwargs))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self._ranks is not None
        if not self.variant.counts_ranks_on_device:
            self._ranks.write(state.global_step, self.variant.ranks())
        if self.variant.is_over():
            control.should_training_stop = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds ranks and penalty to the line of a training loss, for the log history and the callbacks after it."""
        logs = kwargs["logs"]
        if self._ranks is None or "loss" not in logs:
            return
        self._ranks.write(state.global_step, self.variant.ranks())
        more: dict[str, Any] = {}
        if ranks := self._ranks.ranks:
            more["total_rank"] = sum(ranks.values())
        if self._penalty is not None:
            more["penalty"] = float(self._penalty) / self._logged_steps
        if self._skipped:
            more["skipped"] = self._skipped  # the Trainer logs another loss in place of one that is not finite
        self._penalty, self._logged_steps = None, 0
        logs |= more
        if state.log_history:
            state.log_history[-1] |= more

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self._ranks is not None
        self._trains = False
        step = Step(state.global_step, state.max_steps, _inner(kwargs["optimizer"]), kwargs["lr_scheduler"])
        self.variant.on_train_end(step)
        self._ranks.write(state.global_step, self.variant.ranks())

    @staticmethod
    def _step(state: TrainerState, kwargs: Mapping[str, Any]) -> Step:
        """Returns the step that is being made."""
        return Step(state.global_step + 1, state.max_steps, _inner(kwargs["optimizer"]), kwargs["lr_scheduler"])

    # -- checkpoints --------------------------------------------------------------------------

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.save_only_model or not state.is_world_process_zero or self._ranks is None:
            return
        model, optimizer = kwargs["model"], _inner(kwargs["optimizer"])
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        saved = training_state.weights(model, self.variant, optimizer) | {
            "optimizer": training_state.optimizer_state(model, optimizer),
            "scheduler": training_state.schedule_state(kwargs["lr_scheduler"]),
            "ranks": self._ranks.ranks,
        }
        state_files.save(saved, folder / STATE)
        for name in _REPLACED:
            (folder / name).unlink(missing_ok=True)

    def _saved(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> dict[str, Any]:
        """Returns what `on_save` wrote for the weights that the Trainer has loaded. Raises `ConfigError`."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        allowed = f"allowed: a checkpoint of this callback in args.output_dir, {args.output_dir}"
        if not self._loaded:
            raise ConfigError(f"resume_from_checkpoint: its model holds no state of a method, {allowed}")
        try:
            saved: dict[str, Any] = state_files.load(folder / STATE)
        except state_files.CorruptState as error:
            raise ConfigError(f"resume_from_checkpoint: {error}, {allowed}") from None
        now = dict(model.named_parameters())
        for name, value in saved["parameters"].items():
            if name not in now or not torch.equal(now[name].detach().cpu(), value):
                raise ConfigError(f"resume_from_checkpoint: {name} is not that of {folder}, {allowed}")
        return saved

    def _add_state(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
        if self._trains:
            packed = state_files.packed(self.variant.state_dict())
            state_dict.update({f"{prefix}{_KEY}{name}": tensor for name, tensor in packed.items()})

    def _load_state(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        start = prefix + _KEY
        packed = {name.removeprefix(start): state_dict.pop(name) for name in list(state_dict) if name.startswith(start)}
        if packed:
            self.variant.load_state_dict(state_files.unpacked(packed))
            self._loaded = True


def _has(cls: type[Variant], hook: str) -> bool:
    """Whether a method has a hook of its own."""
    return getattr(cls, hook) is not getattr(Variant, hook)


def _recomputes_reentrantly(model: nn.Module) -> bool:
    """Whether blocks are recomputed in torch's reentrant way, which is what it takes where nothing is said."""
    return any(
        getattr(module, "gradient_checkpointing", False)
        and getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {}).get("use_reentrant")
        is not False
        for module in model.modules()
    )


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """Returns the optimizer inside accelerate's wrapper, whose groups and state a method may change."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a group that are the same for all parameters."""
    own = ("params", "lr", "initial_lr", "weight_decay")
    return {name: value for name, value in group.items() if name not in own}


def _regroup(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LambdaLR, groups: list[dict[str, Any]]
) -> None:
    """Replaces the Trainer's two groups before the first step, with their curve of the learning rate."""
    shared, curve = _options(optimizer.param_groups[0]), scheduler.lr_lambdas[0]
    optimizer.param_groups[:] = [{**shared, **group, "initial_lr": group["lr"]} for group in groups]
    scheduler.base_lrs = [group["lr"] for group in groups]
    scheduler.lr_lambdas = [curve] * len(groups)
    for group, base in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["lr"] = base * curve(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


__all__ = ["VariantCallback"]
