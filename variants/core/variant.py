"""A variant: its hyperparameters are its fields, and it acts through a few named hooks.

    model = variant.attach(model, head)      # wrap target layers, freeze the rest
    variant.before_training(passes)          # passes over training rows; not for a run that is resumed or taken up
    optimizer = …                            # over the parameters that are trained now
    for step in 1 … total:                   # `variants.core.step.take`
        variant.on_step_begin(step)          # before the forward
        for batch in batches of the step:    # every row of a step weighs the same
            loss = task_loss(model(batch))
            (loss + variant.penalty()).backward()
        clip
        variant.on_gradients(step)           # gradients are there, nothing has moved
        optimizer.step()
        variant.on_update(step)              # moved, gradients still there: score, prune, grow
        schedule, zero_grad              # and the end, if variant.is_over()
    variant.on_train_end(step)               # the final budget holds, or it raises

Several processes may share a run; each has a part of every batch. `.grad` is summed over them before `clip`, so hooks
see the same gradients on all processes. What hooks draw with torch is the same, too. A method that takes gradients
elsewhere sums them with `variants.core.collectives.all_reduce_sum`. `penalty` must draw nothing.

`before_training` sees the base model's gradients and inputs for the first training rows (`variants.core.passes`) and
may resize parameters. What it decides is part of `state_dict`, so that a resumed run makes no pass.

A step whose gradients are not finite is skipped: neither `on_gradients` nor `on_update` is called, so importance
averages stay finite.

A method that wraps layers derives from `AdapterVariant`; one that wraps none derives from `Variant`.

| | AdapterVariant | Variant |
|---|---|---|
| must be defined | `build` | `attach` |
| with hyperparameters | `test_params`, `__post_init__` for their checks | the same |
| with a schedule or sizes to check | `plan`, `check` | the same |
| if it decides by passes before training | `before_training`, `state_dict`, `load_state_dict` | the same |
| if it changes during training | `on_*` hooks, `state_dict`, `load_state_dict`, `is_final_form` | the same |
| rarely | the others | `ranks`, `effective_parameters`, `disabled`, `merged`, `to_peft` |
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import nn

from variants.core import attention, field_checks, handover
from variants.core import layers as kinds
from variants.core import target_modules as targets
from variants.core.adapters.adapter import Adapter
from variants.core.handover import CannotHandOver
from variants.core.passes import Passes

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One optimizer step, as the hooks see it.

    index: 1 for the first step of the run. total: number of steps of the run.
    optimizer, scheduler: the run's own objects; a method that adds parameters adds them to both.
    """

    index: int
    total: int
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler


@dataclass(kw_only=True)
class Variant:
    """Base class with hooks that do nothing; a subclass must define `attach`.

    name: the method's name in tables. adapters: the adapters of the wrapped layers, by layer name; may be empty.
    """

    exact_at_start: ClassVar[bool] = True  # the attached model's first output equals the base model's
    trains: ClassVar[bool] = True  # False: a run makes no step and evaluates the model once
    unpredicted: ClassVar[str] = ""  # memory that only a run shows, in words; a dry run says so
    same_in_batches: ClassVar[bool] = True  # splitting a step's rows into more batches does not change the step

    name: str = ""

    adapters: dict[str, Adapter] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __new__(cls, *_: Any, **settings: Any) -> Self:
        field_checks.check_types(cls, settings)  # before `__post_init__`, which compares values
        return super().__new__(cls)

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        """Return the settings that the contract is checked with; they must fit layers of width 8."""
        return [{}]

    def plan(self, total_steps: int) -> None:
        """Check the schedule before any model is loaded. Raises `ValueError` if it does not fit `total_steps`."""

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        """Check the model's modules, which are on the meta device, before any weight is loaded.

        Raises `ValueError` for targets or sizes that `attach` would refuse.
        """

    def leaves_out(self, model: nn.Module, head: Sequence[str] = ()) -> dict[str, int]:
        """Return the sizes of the parameters, by name, that `targets` seems to include and the method does not reach.

        model: as for `check`. Empty for most methods and models.
        """
        return {}

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        """Prepare `model` in place: afterwards only the method's parameters and the head require gradients.

        head: dotted names of the task's modules, which are trained but not adapted.
        Returns the model to call: `model` itself, unless a bridge to another library wraps it.
        """
        raise NotImplementedError(f"{type(self).__name__}.attach")

    def before_training(self, passes: Passes[Any]) -> None:
        """Runs before the first step of a new run, before the optimizer is made: passes over the first training rows.

        Raises `ValueError` for rows or gradients that it can't decide by.
        """

    def on_step_begin(self, step: Step) -> None:
        """Runs before the forward passes of a step: once per step, however many batches it accumulates."""

    def penalty(self) -> torch.Tensor | None:
        """Return the method's regularizer, a scalar that is added to the training loss and logged separately; or None.

        It is computed for each batch of a step and weighted like the batch, so a step adds it once.
        """
        return None

    def on_gradients(self, step: Step) -> None:
        """Runs when the gradients are final (summed and clipped), before the optimizer moves any parameter."""

    def on_update(self, step: Step) -> None:
        """Runs after the optimizer has moved the parameters, while their gradients are still available."""

    def is_final_form(self, step: Step) -> bool:
        """Whether the model after this step meets the method's budget.

        While this is False (ranks are still above or below their budget) the model is evaluated, but it is not a
        candidate for the best checkpoint and does not count for early stopping.
        """
        return True

    def is_over(self) -> bool:
        """Whether nothing is left to train, by the method's own rule: the step that was made is then the run's last."""
        return False

    def on_train_end(self, step: Step) -> None:
        """Runs after the last step, on the model that is reported (the best checkpoint, or the last).

        Raises `RuntimeError` if the promised budget was not met.
        """

    def optimizer_options(self, name: str) -> Mapping[str, Any]:
        """Return the optimizer options of the parameter `name` that differ from the run's.

        `lr_scale` multiplies the run's learning rate; any other key (`weight_decay`, `eps`) replaces the optimizer's
        value.
        """
        return {}

    def decays(self, name: str) -> bool | None:
        """Whether the run's weight decay acts on the trained parameter `name`, which lies outside the head.

        The name decides, not the shape, because a matrix may be stored as a flat vector of its entries. None is for
        weights of the base model: there the usual rule holds (matrices decay; biases and other vectors do not).
        """
        return None

    def needs_whole_weights(self) -> str | None:
        """Return the field whose value makes a hook read base weights during training; None if only forward passes do.

        With sharded weights a process holds only a part of each base weight between forward and backward passes.
        """
        return None

    def virtual_tokens(self) -> int:
        """Return how many tokens the method puts before every text; each takes one of the model's positions."""
        return 0

    def needs_cache(self) -> str | None:
        """Return the field whose value makes the model receive trained keys and values as a cache; None if it does not.

        Gradient checkpointing drops such a cache.
        """
        return None

    def ranks(self) -> dict[str, int]:
        """Return the rank in use of every adapted layer, by name; empty for a method without ranks."""
        return {}

    @property
    def counts_ranks_on_device(self) -> bool:
        """Whether `ranks` always reads numbers from the device, such as gates that may have become zero in any step.

        Such ranks are read at logged steps only, because reading them synchronises with the device. All others are
        read after every step: they change with decisions of the method, and the host knows them in between.
        """
        return False

    def closed_form(self) -> int | None:
        """Return the number of trainable parameters at the start by the method's formula; None if it has none."""
        return None

    def grows_by(self) -> int:
        """Return how many parameters the method adds during training, at its largest; 0 if it never grows.

        If the run decides which layers grow, layers of the mean size are assumed.
        """
        return 0

    def effective_parameters(self) -> int | None:
        """Return how many trained parameters affect the output, counted by real shapes; None if all of them do."""
        return None

    def sparsity(self) -> float | None:
        """Return the fraction of its sparse matrices' entries that the mask leaves out; None without such matrices."""
        return None

    def report(self) -> dict[str, float]:
        """Return further numbers about the trained method, by name, for the run's record."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what the method needs to resume besides its parameters: nested dicts of tensors and scalars."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load `state`. Runs before parameters are loaded, so it must reshape those that have grown or were pruned."""
        if state:
            raise ValueError(f"{self.name or type(self).__name__}: has no state, found {sorted(state)}")

    def start_from(self, state: Mapping[str, Any]) -> None:
        """Load the state of a finished run with the same settings, as the start of a new run.

        By default the same as `load_state_dict`. But optimizer, steps and task are new: a method keeps its decisions
        (ranks, masks) and resets its measurements (averages, ages). Raises `ValueError` if it can't start from there.
        """
        self.load_state_dict(state)

    def disabled(self) -> contextlib.AbstractContextManager[None]:
        """Context in which the model computes what the base model does; the trained head stays."""
        raise ValueError(f"{self.name or type(self).__name__}: trains the model's own weights; nothing to disable")

    def merged(self, model: nn.Module) -> nn.Module:
        """Return the plain model with the update added to its weights (rounded to their dtype).

        `model` and the variant can't be used afterwards. Raises `CannotHandOver`.
        """
        return model

    def to_peft(self, model: nn.Module, head: Sequence[str] = ()) -> Any:
        """Return a `peft.PeftModel` that computes what `model` does; its `save_pretrained` writes head and adapters.

        `model` and the variant can't be used afterwards. Raises `CannotHandOver`.
        """
        raise CannotHandOver(f"{self.name or type(self).__name__} wraps no layer; allowed: merged")


@dataclass(kw_only=True)
class AdapterVariant(Variant):
    """A method that wraps target layers in adapters; `build` makes the adapter of one layer.

    targets: "all-linear", or names: every module whose dotted name ends in one of them is a target
        (`query`, `attention.output.dense`); `*` matches anything.
    exclude: names, matched in the same way, of modules that are not adapted.
    layers: [first, last] block numbers, both included, counted from 0; null for all blocks.
    """

    targets: Sequence[str] | str = "all-linear"
    exclude: Sequence[str] = ()
    layers: Sequence[int] | None = None

    def build(self, name: str, layer: nn.Module) -> Adapter:
        """Return the adapter of the layer `name`; its ΔW must be zero if the method is `exact_at_start`."""
        raise NotImplementedError(f"{type(self).__name__}.build")

    def select(self, model: nn.Module, head: Sequence[str] = ()) -> dict[str, nn.Module]:
        """Return the layers that `attach` will wrap, by name; those of torch's attention are without weights before.

        Raises `ValueError` as `target_modules.select` does, and for `dropout` on layers whose input can't be dropped.
        """
        selected = targets.select(
            model, self.targets, exclude=self.exclude, layers=self.layers, head=head, in_attention=True
        )
        if dropout := getattr(self, "dropout", 0.0):
            for name, layer in selected.items():
                if not kinds.takes_dropout(layer):
                    kind = type(layer).__name__
                    raise ValueError(f"dropout: {dropout} on the {kind} {name}, allowed: 0; its input is an index")
        return selected

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        self.select(model, head)

    def leaves_out(self, model: nn.Module, head: Sequence[str] = ()) -> dict[str, int]:
        return targets.not_linear(model, head, in_attention=True) if self.targets == targets.ALL_LINEAR else {}

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        self.check(model, head)
        attention.open_up(model, self.select(model, head))
        selected = self.select(model, head)
        freeze(model, head)
        self.adapters = {name: self.build(name, layer) for name, layer in selected.items()}
        for name, adapter in self.adapters.items():
            targets.replace(model, name, adapter)
        return model

    def decays(self, name: str) -> bool | None:
        """All adapter parameters decay, vectors too, as in released codes, whose trainers exempt only biases and norms.

        A method that differs returns a `weight_decay` from `optimizer_options`, or overrides this.
        """
        return True

    @property
    def counts_ranks_on_device(self) -> bool:
        return any(adapter.counts_rank_on_device for adapter in self.adapters.values())

    def _rank_sources(self) -> dict[str, np.ndarray]:
        """Every adapter's `rank_source` in host memory, where it has one: one transfer for all of them."""
        return to_host({name: source for name, a in self.adapters.items() if (source := a.rank_source()) is not None})

    def ranks(self) -> dict[str, int]:
        on_host = self._rank_sources()
        return {
            name: adapter.rank_from(on_host[name]) if name in on_host else adapter.rank
            for name, adapter in self.adapters.items()
        }

    def closed_form(self) -> int:
        return sum(adapter.closed_form() for adapter in self.adapters.values())

    def effective_parameters(self) -> int:
        on_host = self._rank_sources()
        return sum(
            adapter.effective_from(on_host[name]) if name in on_host else adapter.effective_parameters()
            for name, adapter in self.adapters.items()
        )

    def sparsity(self) -> float | None:
        counts = [pair for adapter in self.adapters.values() if (pair := adapter.entry_counts()) is not None]
        return 1 - sum(inside for inside, _ in counts) / sum(size for _, size in counts) if counts else None

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for adapter in self.adapters.values():
                stack.enter_context(adapter.disabled())
            yield

    def merged(self, model: nn.Module) -> nn.Module:
        for adapter in self.adapters.values():
            adapter.merge()
        handover.unwrap(model, self.adapters)
        return model

    def to_peft(self, model: nn.Module, head: Sequence[str] = ()) -> Any:
        return handover.to_peft(model, self.adapters, head)


def to_host(vectors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copy `vectors`, each (n,), to host memory in one transfer."""
    if not vectors:
        return {}
    together = torch.cat([vector.detach() for vector in vectors.values()]).cpu().numpy()
    ends = itertools.accumulate(map(len, vectors.values()))
    return dict(zip(vectors, np.split(together, list(ends)[:-1]), strict=True))


def freeze(model: nn.Module, head: Sequence[str] = ()) -> None:
    """Make the parameters of the modules in `head` trainable and freeze all others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(targets.inside(name, head))


def pattern_value(patterns: Mapping[str, T], name: str, default: T) -> T:
    """Return the value of the first pattern that matches the end of `name`, else `default`.

    patterns: as in `AdapterVariant.targets`, e.g. {"query": 16, "layer.0.*": 4}.
    """
    for pattern, value in patterns.items():
        if targets.matches(name, pattern):
            return value
    return default


def field_names(cls: type[Variant]) -> list[str]:
    """Return the names of a variant's hyperparameters, which its YAML may set."""
    return [f.name for f in dataclasses.fields(cls) if f.init]


__all__ = ["AdapterVariant", "Step", "Variant", "field_names", "freeze", "pattern_value", "to_host"]
