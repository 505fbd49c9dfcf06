"""A variant: its hyperparameters are its fields, and it acts through a few named hooks.

    model = variant.attach(model, head)      # wrap target layers, freeze the rest
    for step in 1 … total:                   # `variants.core.step.take`
        variant.on_step_begin(step)          # before the forward
        for batch in batches of the step:    # every row of a step weighs the same
            loss = task_loss(model(batch))
            (loss + variant.penalty()).backward()
        clip
        variant.on_gradients(step)           # gradients are there, nothing has moved
        optimizer.step()
        variant.on_update(step)              # moved, gradients still there: score, prune, grow
        schedule, zero_grad
    variant.on_train_end(step)               # the final budget holds, or it raises

Several processes may share a run, each with a part of every batch. `.grad` is summed over them before `clip`, so that
hooks see and do the same on all; what hooks draw with torch is the same, too. A method that takes gradients elsewhere
asks `variants.core.collectives.total` for the whole; `penalty` draws nothing.

A step whose gradients are not finite is left out: neither `on_gradients` nor `on_update`
is called for it, so no importance average ever sees such a number.

To write a method, derive from `AdapterVariant` and define `build`; everything else has a
default that does nothing. Methods that wrap no layer derive from `Variant` and define
`attach`.
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

from variants.core import field_checks, handover
from variants.core import layers as kinds
from variants.core import target_modules as targets
from variants.core.adapters.adapter import Adapter
from variants.core.handover import CannotHandOver

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One optimizer step, as the hooks see it.

    index: 1 for the first step of the run. total: steps that the run will take.
    optimizer, scheduler: live objects; a parameter that grows is entered in both.
    """

    index: int
    total: int
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler


@dataclass(kw_only=True)
class Variant:
    """The hooks, each with a default that does nothing; `attach` alone must be written.

    name: what tables call the method. adapters: of the wrapped layers, by name; a method may wrap none.
    """

    exact_at_start: ClassVar[bool] = True  # the attached model's first output equals the base model's
    same_in_batches: ClassVar[bool] = True  # a step is the same into however many batches its rows are split

    name: str = ""

    adapters: dict[str, Adapter] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __new__(cls, *_: Any, **settings: Any) -> Self:
        field_checks.check_types(cls, settings)  # before `__post_init__`, which compares them
        return super().__new__(cls)

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        """Settings that the contract is checked with; small enough for layers of width 8."""
        return [{}]

    def plan(self, total_steps: int) -> None:
        """Called before any model is loaded. Raises `ValueError` where the schedule doesn't fit."""

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        """Called with the model's modules on the meta device, before any weight is loaded.

        Raises `ValueError` for targets or sizes that `attach` would refuse.
        """

    def leaves_out(self, model: nn.Module, head: Sequence[str] = ()) -> dict[str, int]:
        """Numbers in parameters, by name, that the method's word for what it trains promises and doesn't reach.

        model: as for `check`. Empty for most methods and models.
        """
        return {}

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        """Prepares `model` in place: trainable is what the method trains, and the head.

        head: dotted names of the modules that belong to the task, which stay as they are and
        are trained. Returns the model to call, which only a bridge to another library changes.
        """
        raise NotImplementedError(f"{type(self).__name__}.attach")

    def on_step_begin(self, step: Step) -> None:
        """Before the forward pass of a step (once per step, however many batches it accumulates)."""

    def penalty(self) -> torch.Tensor | None:
        """A scalar added to the task loss in training, logged apart; None for no penalty.

        Asked for each batch of a step, and weighed as the batch is, so that one step adds it once.
        """
        return None

    def on_gradients(self, step: Step) -> None:
        """The gradients are final (summed, clipped) and no parameter has moved."""

    def on_update(self, step: Step) -> None:
        """The optimizer has moved the parameters; the gradients that moved them are still there."""

    def is_final_form(self, step: Step) -> bool:
        """Whether the model after this step is one that the method may hand over.

        False while ranks are still above or below their budget: such a model is evaluated, but it
        is no candidate for the best checkpoint and does not count for early stopping.
        """
        return True

    def on_train_end(self, step: Step) -> None:
        """After the last step, on the model that is handed over (the best checkpoint, or the last).

        Raises `RuntimeError` where the promised budget was not met.
        """

    def optimizer_options(self, name: str) -> Mapping[str, Any]:
        """Optimizer options in which the parameter `name` departs from the run's.

        `lr_scale` multiplies the run's learning rate; any other name (`weight_decay`, `eps`)
        replaces the optimizer's own.
        """
        return {}

    def decays(self, name: str) -> bool | None:
        """Whether the run's weight decay acts on the trained parameter `name`, which is none of the head's.

        The name decides and not the shape, for a matrix may be kept as a flat vector of its entries. None is for a
        weight of the model's own: the usual rule decides, by which matrices decay, biases and other vectors do not.
        """
        return None

    def needs_whole_weights(self) -> str | None:
        """The field by whose value a hook reads the base weights in training; None where forward passes alone do.

        Between forward and backward passes a process of several may hold but a part of each base weight.
        """
        return None

    def virtual_tokens(self) -> int:
        """Tokens that the method puts in front of every text; each takes one of the model's positions."""
        return 0

    def needs_cache(self) -> str | None:
        """The field by whose value the model gets what is trained as cached keys and values; None where it doesn't.

        A model that computes its activations again in the backward pass drops them.
        """
        return None

    def ranks(self) -> dict[str, int]:
        """Rank in use of every adapted layer; empty for a method without ranks."""
        return {}

    @property
    def counts_ranks_on_device(self) -> bool:
        """Whether `ranks` always reads numbers from the device, such as gates that may have become zero in any step.

        Such ranks are read at logged steps only, because reading them synchronises with the device. All others are
        read after every step: they change with decisions of the method, and the host knows them in between.
        """
        return False

    def closed_form(self) -> int | None:
        """Trainable parameters at the start by the method's formula; None where there is none."""
        return None

    def grows_by(self) -> int:
        """Parameters that the method will train at its largest beyond those at the start; 0 where it never grows.

        Where it depends on the run which layers grow, this is for layers of the mean size.
        """
        return 0

    def effective_parameters(self) -> int | None:
        """Parameters that still act, counted by real shapes; None: all that are trainable do."""
        return None

    def sparsity(self) -> float | None:
        """Share of the entries of its sparse matrices that are zero by their place; None for a method without them."""
        return None

    def report(self) -> dict[str, float]:
        """Numbers that the method has to say about itself once it is trained; they stand in the record."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the method needs to go on besides its parameters: nested dicts of tensors and scalars."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up `state`, before the parameters are loaded: here grown or pruned ones are reshaped."""
        if state:
            raise ValueError(f"{self.name or type(self).__name__}: has no state, found {sorted(state)}")

    def start_from(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of a finished run of the same settings, from whose adapter a new run starts.

        As `load_state_dict`, which it is by default; but the optimizer, the steps and the task are new. So what was
        decided stays (ranks, masks), and what was measured in between (averages, ages) begins anew. Raises `ValueError`
        where the method can't go on from what it left.
        """
        self.load_state_dict(state)

    def disabled(self) -> contextlib.AbstractContextManager[None]:
        """Within it the model computes what the base model does (the head stays as trained)."""
        raise ValueError(f"{self.name or type(self).__name__}: trains the model's own weights; nothing to disable")

    def merged(self, model: nn.Module) -> nn.Module:
        """The plain model, with what was trained in its own weights (rounded to their dtype).

        `model`, and with it the variant, is used up. Raises `CannotHandOver`.
        """
        return model

    def to_peft(self, model: nn.Module, head: Sequence[str] = ()) -> Any:
        """A `peft.PeftModel` that computes what `model` does; its `save_pretrained` writes head and adapters.

        `model`, and with it the variant, is used up. Raises `CannotHandOver`.
        """
        raise CannotHandOver(f"{self.name or type(self).__name__} wraps no layer; allowed: merged")


@dataclass(kw_only=True)
class AdapterVariant(Variant):
    """A method that wraps target layers in adapters: `build` makes the adapter of one layer.

    targets: "all-linear", or names: a module is meant when its dotted name ends in one of them
        (`query`, `attention.output.dense`); `*` stands for anything.
    exclude: names, read in the same way, that are left out.
    layers: [first, last] block numbers, both included, counted from 0; null for all.
    """

    targets: Sequence[str] | str = "all-linear"
    exclude: Sequence[str] = ()
    layers: Sequence[int] | None = None

    def build(self, name: str, layer: nn.Module) -> Adapter:
        """The adapter for the layer `name`; ΔW is zero where the method starts from the base model."""
        raise NotImplementedError(f"{type(self).__name__}.build")

    def select(self, model: nn.Module, head: Sequence[str] = ()) -> dict[str, nn.Module]:
        """The layers that `attach` will wrap, by name.

        Raises `ValueError` as `targets.select` does, and for a `dropout` on layers that can't have one.
        """
        found = targets.select(model, self.targets, exclude=self.exclude, layers=self.layers, head=head)
        if dropout := getattr(self, "dropout", 0.0):
            for name, layer in found.items():
                if not kinds.takes_dropout(layer):
                    kind = type(layer).__name__
                    raise ValueError(f"dropout: {dropout} on the {kind} {name}, allowed: 0; its input is a row number")
        return found

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        self.select(model, head)

    def leaves_out(self, model: nn.Module, head: Sequence[str] = ()) -> dict[str, int]:
        return targets.not_linear(model, head) if self.targets == targets.ALL_LINEAR else {}

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        self.check(model, head)
        found = self.select(model, head)
        freeze(model, head)
        self.adapters = {name: self.build(name, layer) for name, layer in found.items()}
        for name, adapter in self.adapters.items():
            targets.replace(model, name, adapter)
        return model

    def decays(self, name: str) -> bool | None:
        """All of an adapter decays, vectors too: so do the released codes, whose trainers spare biases and norms alone.

        A method that does otherwise has a `weight_decay` in its `optimizer_options`, or says it here.
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
        found = [counts for adapter in self.adapters.values() if (counts := adapter.places_taken()) is not None]
        return 1 - sum(taken for taken, _ in found) / sum(places for _, places in found) if found else None

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
    """Copies of `vectors`, each (n,), in host memory: one transfer for all of them."""
    if not vectors:
        return {}
    together = torch.cat([vector.detach() for vector in vectors.values()]).cpu().numpy()
    ends = itertools.accumulate(map(len, vectors.values()))
    return dict(zip(vectors, np.split(together, list(ends)[:-1]), strict=True))


def freeze(model: nn.Module, head: Sequence[str] = ()) -> None:
    """Makes the modules named in `head` trainable and every other parameter not."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(targets.inside(name, head))


def pattern_value(patterns: Mapping[str, T], name: str, default: T) -> T:
    """The value of the first pattern that `name` ends in, else `default`.

    patterns: as in `AdapterVariant.targets`, e.g. {"query": 16, "layer.0.*": 4}.
    """
    for pattern, value in patterns.items():
        if targets.matches(name, pattern):
            return value
    return default


def field_names(cls: type[Variant]) -> list[str]:
    """The hyperparameters of a variant: what its YAML may set."""
    return [f.name for f in dataclasses.fields(cls) if f.init]


__all__ = ["AdapterVariant", "Step", "Variant", "field_names", "freeze", "pattern_value", "to_host"]
