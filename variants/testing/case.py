"""A variant with one of its settings on one kind of layer: its training runs, each made once, and their history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from variants.core.adapters.adapter import Adapter
from variants.core.variant import Variant
from variants.testing.toys import STEPS, Trained, attach, through_disk, train


@dataclass(frozen=True)
class Moment:
    """The state of a variant after a step.

    trainable: parameters outside the head. effective, final: results of the hooks of these names.
    changed: name of a parameter that the forward or backward pass changed. loose: mismatch between model and optimizer,
    in words. decay: mismatch with `decays()`, in words. ranks: of `ranks()`. ranks_of_adapters: `rank` of the adapters.
    """

    trainable: int
    effective: int
    final: bool
    changed: str | None
    loose: str | None
    decay: str | None
    ranks: dict[str, int]
    ranks_of_adapters: dict[str, int]


@dataclass(frozen=True)
class Start:
    """The state before the first step.

    frozen: values of frozen parameters. formula: `closed_form`. trainable: as in `Moment`.
    """

    frozen: dict[str, torch.Tensor]
    formula: int | None
    trainable: int


@dataclass
class Case:
    """The input of the contract's checks. A check that changes one of the runs must restore it."""

    cls: type[Variant]
    params: Mapping[str, Any]
    kind: str = "Linear"

    def __str__(self) -> str:
        return f"{self.cls.__name__}({dict(self.params)}) on {self.kind}"

    @property
    def dtype(self) -> torch.dtype:
        # The other kinds differ from Linear only in layout, so one run in float64 is enough for all checks.
        return torch.float32 if self.kind == "Linear" else torch.float64

    def attached(self, dtype: torch.dtype | None = None, seed: int = 0, *, resumed: bool = False) -> Trained:
        """Return a new run, before any step. seed: for random numbers that `attach` draws. resumed: as in `attach`."""
        return attach(self.cls, self.params, dtype or self.dtype, seed, self.kind, resumed)

    @cached_property
    def refusal(self) -> str | None:
        """Why the method refuses layers of this kind with these settings; None if it does not."""
        if self.kind == "Linear":
            return None
        return self._begun if isinstance(self._begun, str) else None

    @cached_property
    def _begun(self) -> tuple[Trained, torch.Tensor] | str:
        """The undisturbed run before its first step with the state of the random numbers, or why it is refused."""
        try:
            return self.attached(), torch.get_rng_state()
        except ValueError as error:
            if self.kind == "Linear":
                raise
            return str(error)

    @property
    def straight(self) -> Trained:
        """An undisturbed run."""
        return self._watched[0]

    @property
    def start(self) -> Start:
        """The state of `straight` before its first step."""
        return self._watched[1]

    @property
    def moments(self) -> list[Moment]:
        """The state after each step of `straight`."""
        return self._watched[2]

    @cached_property
    def exact(self) -> Trained:
        """A run in float64."""
        return self.straight if self.dtype == torch.float64 else train(self.attached(torch.float64))

    @cached_property
    def output(self) -> torch.Tensor:
        """The output of `straight` at its end."""
        return self.straight.output()

    def ends_as(self, other: Trained) -> bool:
        """Whether the undisturbed run ended with the same bits as `other`."""
        return torch.equal(other.output(), self.output) and other.variant.ranks() == self.straight.variant.ranks()

    @cached_property
    def withstands_interruptions(self) -> bool:
        """Whether all interruptions at once change no loss and no bit of the end; if they do, a check tells which.

        Training is stopped after every step and resumed, evaluated between steps, and recomputes its blocks.
        """
        try:
            run, losses = interrupted(self, evaluated=True, checkpointed=True)
        except Exception:  # the check that is about it raises it again
            return False
        return losses == self.straight.losses and self.ends_as(run)

    @cached_property
    def _watched(self) -> tuple[Trained, Start, list[Moment]]:
        assert not isinstance(self._begun, str), self._begun
        run, random = self._begun
        torch.set_rng_state(random)
        frozen = {name: p.detach().clone() for name, p in run.model.named_parameters() if not p.requires_grad}
        start = Start(frozen, run.variant.closed_form(), trainable(run))
        watch = _Watch()
        train(run, watch=watch)
        return run, start, watch.moments


def interrupted(
    case: Case, *, evaluated: bool = False, checkpointed: bool = False, resumed: bool = True
) -> tuple[Trained, list[float]]:
    """Return a run at its end and its losses.

    evaluated: whether the model is evaluated after every step. checkpointed: whether its blocks are recomputed in the
    backward pass. resumed: whether it is stopped after every step and resumed, once through files.
    """
    run, losses = case.attached(), list[float]()

    def evaluate(event: str, run: Trained) -> None:
        if event == "updated":
            run.output()

    for stop in range(1, STEPS + 1) if resumed else [STEPS]:
        run.toy.checkpointing = checkpointed
        train(run, stop, watch=evaluate if evaluated else None)
        losses += run.losses
        if stop < STEPS:
            left = run.snapshot()
            run = case.attached(resumed=True).restore(through_disk(left) if stop == 7 else left)
            if evaluated:
                run.output()  # what it leaves in memory meets the next step, which a resumed run would have lost
    return run, losses


class _Watch:
    """Records the history of a run."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.begun: dict[str, tuple[torch.Tensor, torch.Tensor, bool]] = {}
        self.changed: str | None = None

    def __call__(self, event: str, run: Trained) -> None:
        now = dict(run.model.named_parameters())
        if event == "begun":
            self.begun = {name: (p, p.detach().clone(), p.requires_grad) for name, p in now.items()}
        elif event == "gradients":
            came_or_went = self.begun.keys() ^ now.keys()
            changed = (
                name
                for name, (before, value, trained) in self.begun.items()
                if now.get(name) is not before or before.requires_grad != trained or not torch.equal(before, value)
            )
            self.changed = next(iter(came_or_went), None) or next(changed, None)
        else:
            count, effective = trainable(run), run.variant.effective_parameters()
            final = run.variant.is_final_form(run.step(run.steps_done))
            used = count if effective is None else effective
            of_adapters = {name: adapter.rank for name, adapter in adapters(run)}
            fits = loose_ends(run), decay_astray(run)
            self.moments.append(Moment(count, used, final, self.changed, *fits, run.variant.ranks(), of_adapters))


def adapters(run: Trained) -> Iterator[tuple[str, Adapter]]:
    """Return the adapters in a model, by name."""
    return ((name, module) for name, module in run.model.named_modules() if isinstance(module, Adapter))


def trainable(run: Trained) -> int:
    """Return the number of trainable parameters outside the head."""
    return sum(parameter.numel() for parameter in run.trainable().values())


def loose_ends(run: Trained) -> str | None:
    """Return a mismatch between the model and its optimizer in words, or None."""
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    held = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    for name, parameter in run.trainable().items():
        if id(parameter) not in held:
            return f"{name} is trainable and in no group of the optimizer"
    if held - names.keys():
        return "the optimizer holds a parameter that has left the model"
    for owner, entry in run.optimizer.state.items():
        if id(owner) not in held:
            return "the optimizer has a state for a parameter that it does not hold"
        for key, moment in entry.items():
            if isinstance(moment, torch.Tensor) and moment.ndim and moment.shape != owner.shape:
                shapes = f"{tuple(moment.shape)}, allowed: {tuple(owner.shape)}"
                return f"the optimizer's {key} of {names[id(owner)]} has shape {shapes}"
    return None


def decay_astray(run: Trained) -> str | None:
    """Return a mismatch between `decays()` and the optimizer's groups in words, or None."""
    groups = {id(parameter): group for group in run.optimizer.param_groups for parameter in group["params"]}
    adapted = {f"{name}." for name, _ in adapters(run)}
    for name, parameter in run.trainable().items():
        said, group = run.variant.decays(name), groups.get(id(parameter), {})
        if said is None and any(name.startswith(adapter) for adapter in adapted):
            return f"decays() says neither True nor False of {name}"
        if group.get("decays", said) != said:
            return f"{name} is in a group for which decays() has said {group['decays']}, of it {said}"
        own = run.variant.optimizer_options(name).get("weight_decay", 0.0)
        if group and group["weight_decay"] != own:
            return f"{name} is in a group whose weight_decay is {group['weight_decay']}, its own is {own}"
    return None


def same(one: Any, other: Any) -> bool:
    """Whether two nested structures of tensors and plain values are equal bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def finite(tree: Any) -> bool:
    """Whether all tensors in a nested structure are finite."""
    if isinstance(tree, torch.Tensor):
        return bool(torch.isfinite(tree).all())
    if isinstance(tree, Mapping):
        return all(map(finite, tree.values()))
    return all(map(finite, tree)) if isinstance(tree, list | tuple) else True
