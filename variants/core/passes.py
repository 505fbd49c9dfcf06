"""Passes over training rows besides a run's steps.

A method that decides by them before the first step (ranks, a mask, a start) overrides `Variant.before_training` and is
given `Passes`. One that measures losses between its steps overrides `Variant.hold_passes`. Adapters are switched off,
so that the numbers are those of the base model, but for `accumulate`, `loss` and `squared_updates`. The model is in
evaluation mode, but for `accumulate`, so that no pass draws a random number. Nothing moves, but what a method trains
within `trial`, which takes it back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import nn

from variants.core import collectives
from variants.core.adapters.adapter import Adapter, Factored

if TYPE_CHECKING:
    from variants.core.step import Loss

Batch = TypeVar("Batch")


class Passes(Generic[Batch]):
    """The training rows in the order of the run's first steps, and the model's gradients and inputs for them.

    model: with the method attached. steps: steps(count) yields the batches of each of the first `count` steps of
    training, of which every process has its part. rows: rows(count) yields this process's share of the first `count`
    rows, one a batch; it raises `ValueError` if there are fewer. loss: the task loss of a batch. weight: of a batch,
    over all processes.
    real: (rows, places), which places of a batch hold something of a row that counts; None for all.
    logits: (rows, classes) of a batch; None for a task without classes.
    count: passes so far over the rows of a step. single: over rows of this process alone.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: Callable[[int], Iterator[Sequence[Batch]]],
        rows: Callable[[int], Iterator[Batch]],
        loss: Callable[[Batch], Loss],
        weight: Callable[[Batch], float],
        real: Callable[[Batch], torch.Tensor | None] = lambda batch: None,
        logits: Callable[[Batch], torch.Tensor | None] = lambda batch: None,
    ) -> None:
        self.model, self.steps, self.rows = model, steps, rows
        self._loss, self._weight, self._real, self._logits = loss, weight, real, logits
        self.count, self.single = 0, 0

    def accumulate(self, batches: Sequence[Batch]) -> None:
        """Add the gradients of a step's mean loss to `.grad`, of the model as it is, adapters and mode included.

        For methods that train before training; they sum them with `collectives.sum_gradients`.
        """
        self.count += 1
        weight = sum(map(self._weight, batches))
        for batch in batches:
            (self._loss(batch).sum / weight).backward()

    @contextlib.contextmanager
    def trial(self) -> Iterator[None]:
        """Context in which the model may be trained; afterwards parameters and statistics of norms are as before."""
        training, trained = self.model.training, [p for p in self.model.parameters() if p.requires_grad]
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        moved = [*trained, *(buffer for norm in norms for buffer in norm.buffers())]
        before = [tensor.detach().clone() for tensor in moved]
        self.model.train()
        try:
            yield
        finally:
            self.model.train(training)
            for tensor, value in zip(moved, before, strict=True):
                tensor.data.copy_(value)
            for p in trained:
                p.grad = None

    @torch.no_grad()
    def loss(self, batches: Sequence[Batch]) -> torch.Tensor:
        """Return a step's mean loss (a scalar), of all processes, of the model as it is, adapters included."""
        self.count += 1
        training, weight = self.model.training, sum(map(self._weight, batches))
        self.model.eval()
        try:
            total = torch.stack([self._loss(batch).sum for batch in batches]).sum()
        finally:
            self.model.train(training)
        return collectives.all_reduce_sum(total / weight)

    def gradients(self, adapters: Mapping[str, Adapter], batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Return ∂L/∂W (out, in) of a step's mean loss, by layer, summed over the processes.

        In the order in which the backward pass reaches the layers; those that it doesn't reach are left out, which no
        step may do (`all_reached`). Above a half-precision base they are float32.
        """
        self.count += 1
        weight, found = sum(map(self._weight, batches)), dict[str, torch.Tensor]()
        for batch in batches:

            def part(batch: Batch = batch) -> torch.Tensor:
                return self._loss(batch).sum / weight

            of_batch = self._backward(adapters, part, biases=False)
            found |= {name: found[name] + g if name in found else g for name, g in of_batch.items()}
        if collectives.count() == 1:
            return found
        order = [name for name in found if name in adapters] + [name for name in adapters if name not in found]
        reached = torch.tensor([float(name in found) for name in adapters], device=next(iter(found.values())).device)
        somewhere = dict(zip(adapters, collectives.all_reduce_sum(reached).tolist(), strict=True))
        # In one order on all processes, whichever layers their rows reach.
        there = [name for name in adapters if somewhere[name]]
        summed = {n: collectives.all_reduce_sum(self._zero(adapters[n], found.get(n))) for n in there}
        return {name: summed[name] for name in order if name in summed}

    @staticmethod
    def _zero(adapter: Adapter, gradient: torch.Tensor | None) -> torch.Tensor:
        """Return `gradient`, or zeros (out, in) for a layer that no row of this process reaches."""
        if gradient is not None:
            return gradient
        size, weight = (adapter.out_features, adapter.in_features), adapter.weight
        return torch.zeros(size, dtype=_precision(weight), device=weight.device)

    def of_row(self, adapters: Mapping[str, Adapter], row: Batch) -> dict[str, torch.Tensor]:
        """Return ∂L/∂W (out, in) by layer, and ∂L/∂bias (out,) by "layer.bias", of one row of this process."""
        self.single += 1
        return self._backward(adapters, lambda: self._loss(row).mean, biases=True)

    def of_classes(
        self, adapters: Mapping[str, Adapter], row: Batch, setting: str
    ) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """Yield, for each class, its probability p (a scalar) and `of_row` of −log p in place of the task's loss.

        setting: field and value that ask for it, for the error. Raises `ValueError` for a task without classes.
        """
        with torch.no_grad(), self._switched_off(adapters):
            logits = self._logits(row)
        self.single += 1
        if logits is None or logits.shape[-1] < 2:
            raise ValueError(f"{setting} on a task without classes, allowed: the empirical Fisher information")
        probabilities = logits.float() if logits.dtype.itemsize < 4 else logits
        for number, p in enumerate(probabilities.softmax(-1)[0]):

            def surprise(number: int = number) -> torch.Tensor:
                again = self._logits(row)
                assert again is not None
                return -again.log_softmax(-1)[0, number]

            self.single += 1
            yield p, self._backward(adapters, surprise, biases=True)

    @torch.no_grad()
    def inputs(self, adapters: Mapping[str, Adapter], batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Return the inputs (tokens, in) of layers in a step, by name: those of all processes, without padding."""
        self.count += 1
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in adapters}
        for batch in batches:
            real = self._real(batch)
            with contextlib.ExitStack() as stack:
                for name, adapter in adapters.items():

                    def keep(module: nn.Module, arguments: tuple[Any, ...], name: str = name, real: Any = real) -> None:
                        seen[name].append(_tokens(arguments[0], real))

                    stack.callback(adapter.register_forward_pre_hook(keep).remove)
                stack.enter_context(self._switched_off(adapters))
                self._loss(batch)
        for name, parts in seen.items():
            if not parts:
                raise ValueError(f"targets: {name} is not part of the loss; exclude it")
        return {name: collectives.gather_rows(torch.cat(parts)) for name, parts in seen.items()}

    @torch.no_grad()
    def squared_inputs(self, adapters: Mapping[str, Adapter], batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Return Σ x_j² (out, in) by layer: over the places of a step where entry (i, j) of its weight reads x_j.

        All rows i are equal, but in a convolution in groups. Summed over the processes, without padding.
        """
        self.count += 1
        found: dict[str, torch.Tensor] = {}
        for batch in batches:
            real = self._real(batch)
            with contextlib.ExitStack() as stack:
                for name, adapter in adapters.items():

                    def add(
                        module: nn.Module, arguments: Any, y: torch.Tensor, name: str = name, real: Any = real
                    ) -> None:
                        x, ones = arguments[0], torch.ones_like(y, dtype=_precision(y)) * _counts(y, real)
                        x = x.to(ones.dtype).square() if x.is_floating_point() else x
                        part = adapters[name].layer_kind.gradient(x, ones)
                        found[name] = found[name] + part if name in found else part

                    stack.callback(adapter.register_forward_hook(add).remove)
                stack.enter_context(self._switched_off(adapters))
                self._loss(batch)
        all_reached(found, adapters)
        return {name: collectives.all_reduce_sum(found[name]) for name in adapters}

    @torch.no_grad()
    def squared_updates(self, adapters: Mapping[str, Factored], batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
        """Return Σ ‖ΔW x‖² (a scalar, float64) by layer in a step of the model as it is, adapters included.

        Summed over the processes, without padding.
        """
        self.count += 1
        found: dict[str, torch.Tensor] = {}
        training = self.model.training
        self.model.eval()
        try:
            for batch in batches:
                real = self._real(batch)
                with contextlib.ExitStack() as stack:
                    for name, adapter in adapters.items():

                        def add(module: nn.Module, arguments: Any, y: Any, name: str = name, real: Any = real) -> None:
                            moved = adapters[name].update(arguments[0]).double()
                            part = (moved * _counts(moved, real)).square().sum()
                            found[name] = found[name] + part if name in found else part

                        stack.callback(adapter.register_forward_hook(add).remove)
                    self._loss(batch)
        finally:
            self.model.train(training)
        all_reached(found, adapters)
        return {name: collectives.all_reduce_sum(found[name]) for name in adapters}

    def _backward(
        self, adapters: Mapping[str, Adapter], compute: Callable[[], torch.Tensor], biases: bool
    ) -> dict[str, torch.Tensor]:
        """Return the gradients of what `compute` returns; those of all uses of a layer are summed."""
        found: dict[str, torch.Tensor] = {}

        def add(name: str, part: torch.Tensor) -> None:
            found[name] = found[name] + part if name in found else part

        def watch(name: str, adapter: Adapter, arguments: tuple[Any, ...], y: torch.Tensor) -> None:
            x, dtype, kind = arguments[0].detach(), _precision(y), adapter.layer_kind
            has_bias = biases and getattr(kind.layer, "bias", None) is not None

            def collect(gradient: torch.Tensor) -> None:
                of_output = gradient.to(dtype)
                add(name, kind.gradient(x.to(dtype) if x.is_floating_point() else x, of_output))
                if has_bias:
                    add(f"{name}.bias", kind.over_places(of_output))

            y.requires_grad_()  # before the first adapted layer nothing does
            y.register_hook(collect)

        with contextlib.ExitStack() as stack:
            for name, adapter in adapters.items():

                def hook(module: nn.Module, arguments: Any, y: torch.Tensor, name: str = name) -> None:
                    watch(name, adapters[name], arguments, y)

                stack.callback(adapter.register_forward_hook(hook).remove)
            stack.enter_context(self._switched_off(adapters))
            loss = compute()
        loss.backward()
        self.model.zero_grad()
        return found

    @contextlib.contextmanager
    def _switched_off(self, adapters: Mapping[str, Adapter]) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            with contextlib.ExitStack() as stack:
                for adapter in adapters.values():
                    stack.enter_context(adapter.disabled())
                yield
        finally:
            self.model.train(training)


def all_reached(gradients: Mapping[str, torch.Tensor], adapters: Mapping[str, Adapter]) -> None:
    """Raise `ValueError` for a layer without a gradient in any batch."""
    for name in adapters:
        if name not in gradients:
            raise ValueError(f"targets: {name} is not part of the loss; exclude it")


def _tokens(x: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Return the inputs (tokens, in) that are `real` (rows, places) of x (…, in), in single precision or more."""
    x = x.detach().to(_precision(x))
    if real is None:
        return x.flatten(0, -2)
    if x.shape[: real.ndim] == real.shape:
        return x[real]
    return x.flatten(0, -2) if bool(real.any()) else x.flatten(0, -2)[:0]  # none of a row that does not count


def _counts(y: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor | float:
    """Return what y (rows, places, …) is multiplied by, so that places that are not `real` (rows, places) are zero."""
    if real is None:
        return 1.0
    return real[(..., *(None,) * (y.ndim - real.ndim))] if y.shape[: real.ndim] == real.shape else real.any()


def _precision(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


__all__ = ["Passes", "all_reached"]
