"""Predicts the cost of a run before it starts: `python train.py … --dry-run`.

The run is assembled with its weights, but nothing is computed: the forward pass over the largest batch and one step of
the optimizer use torch's fake tensors, which have shapes and no values. So the counted bytes are those that autograd
and the optimizer really keep, for every method and optimizer, and even a batch that doesn't fit into memory can be
predicted. The shapes of some models depend on values (T5 searches the end of each text, a mixture of experts counts
tokens); their batch is computed for real and has to fit.

A growing method is counted at its largest size, with the same bytes for each added parameter as for the initial ones. A
shrinking method is counted at its initial size.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from trainer.loop import batches, cost
from trainer.loop.loop import Loop
from trainer.runs import assemble, teaching
from trainer.sweeps.estimate import words
from trainer.sweeps.plan import Planned
from variants.core.variant import Variant


@dataclass(frozen=True)
class Batch:
    """The batch with the most units (tokens, …), padding included."""

    rows: list[int]
    units: int  # of its longest row; of a source and a target those of the longest of both
    unit: str  # "token", …


@dataclass(frozen=True)
class Prediction:
    """Numbers of parameters, and peak bytes over the steps, named as in the record."""

    steps: int
    batch: Batch
    total: int  # parameters
    adapter: int  # trained at the start, without the head
    head: int
    more: int  # parameters that a growing method adds until its largest size
    weights: int
    gradients: int
    optimizer: int
    activations: int
    teacher: int = 0  # bytes of a teacher, which are among those of weights
    unknown: str = ""  # what of the method only the run shows, in words

    @property
    def memory(self) -> int:
        """Bytes that training needs, in total."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def lines(self) -> Iterator[str]:
        """Yields the printed lines."""
        batch = f"{len(self.batch.rows)} × {self.batch.units}"
        grown = f" (growing to about {self.adapter + self.more:,})" if self.more else ""
        yield f"  steps        {self.steps:,}, the largest batch {batch} {self.batch.unit}s"
        yield f"  parameters   {self.total:,}, trained: {self.adapter:,} in adapters{grown}, {self.head:,} in the head"
        for name in ("weights", "gradients", "optimizer", "activations"):
            of = f", of which the teacher {self.teacher / 2**20:,.1f}" if name == "weights" and self.teacher else ""
            yield f"  {name:<12} {getattr(self, name) / 2**20:9,.1f} MiB{of}"
        yield f"  {'together':<12} {self.memory / 2**20:9,.1f} MiB"
        if self.unknown:
            yield f"  not predicted: {self.unknown}"


def predict(planned: Planned) -> Prediction:
    """Predicts the cost of the run of `planned`. Raises the `ConfigError` that would prevent the run."""
    config = planned.config
    with assemble.apart(config), TemporaryDirectory() as folder:
        context = teaching.check(assemble.check(config))
        model = assemble.load(context)
        loop = teaching.loop(context, model, Path(folder), torch.device("cpu"))
        batch = largest_batch(loop)
        adapter, head = cost.trainable_parameters(model, context.head)
        more = context.variant.grows_by()
        activations = saved_activations(loop, batch) if loop.steps else 0
        gradients, optimizer = cost.trainable_bytes(model), optimizer_bytes(loop.optimizer)
        growth = more / (adapter + head) if more else 0
        return Prediction(
            steps=loop.steps,
            batch=batch,
            total=cost.parameters(model),
            adapter=adapter,
            head=head,
            more=more,
            weights=cost.weight_bytes(model) + loop.counters.teacher + round(gradients * growth),
            gradients=round(gradients * (1 + growth)),
            optimizer=round(optimizer * (1 + growth)),
            activations=activations,
            teacher=loop.counters.teacher,
            unknown=unknown(context.variant),
        )


def unknown(variant: Variant) -> str:
    """Returns in words what of the method only the run shows; empty for most methods."""
    if type(variant).before_training is not Variant.before_training:
        return "what passes before training decide; ranks, entries and memory are those before them"
    return variant.unpredicted


@dataclass(frozen=True)
class Row:
    """A setting of a sweep, or why its cost can't be predicted.

    runs: the number of its runs, one per seed. seconds: until they are done, were they alone; None if unknown.
    """

    setting: str
    runs: int
    prediction: Prediction | str
    seconds: float | None

    @property
    def unknown(self) -> str:
        """Returns in words what is not predicted; empty if all is."""
        return self.prediction if isinstance(self.prediction, str) else self.prediction.unknown


def table(rows: Sequence[Row], together: float | None) -> Iterator[str]:
    """Yields a sweep's cost in lines: one per setting, then the number of runs, largest memory and total time.

    together: seconds of all runs, which may go side by side; None if unknown.

    The largest memory is a lower bound if a setting is not predicted.
    """
    cells = [("", "runs", "steps", "trained", "MiB", "time")]
    predictions = []
    for row in rows:
        steps = trained = mib = "?"
        if not isinstance(found := row.prediction, str):
            predictions.append(found)
            steps, trained, mib = f"{found.steps:,}", f"{found.adapter + found.more + found.head:,}", _mib(found.memory)
        cells.append((row.setting, str(row.runs), steps, trained, mib, _time(row.seconds)))
    if rows:
        largest = _mib(max(found.memory for found in predictions)) if predictions else "?"
        bound = "≥ " if 0 < len(predictions) < len(rows) else ""
        runs = str(sum(row.runs for row in rows))
        cells.append(("together, the largest memory", runs, "", "", f"{bound}{largest}", _time(together)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, *numbers in cells:
        right = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *right])
    if any(row.seconds is None for row in rows):
        yield "time ?: no run of the sweep is done, by which it could be estimated"
    for row in rows:
        if row.unknown:
            yield f"{row.setting}: not predicted: {row.unknown}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else words(seconds)


def largest_batch(loop: Loop) -> Batch:
    """Returns the batch of the run with the most units, padding included."""
    train, sampler, objective = loop.cfg.train, loop.batches.sampler, loop.objective
    parts = objective.padded_apart(loop.rows.train)
    unit = loop.objective.unit
    best, most = Batch([], 0, unit), 0
    batches = loop.steps * train.accumulate * (train.processes or 1)
    for epoch in range(math.ceil(loop.steps / loop.batches.steps_per_epoch)):
        sampler.epoch = epoch
        indices = list(sampler)
        for start in itertools.islice(range(0, len(indices), train.batch_size), batches):
            rows = indices[start : start + train.batch_size]
            own = [[lengths[row] for row in rows] for lengths in parts]
            size = sum(objective.size_of(lengths, loop.network.source) for lengths in own)
            if size > most:
                best, most = Batch(rows, sum(map(max, own)), unit), size
            batches -= 1
    return best


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Returns the bytes of the optimizer's state after a step. The optimizer can't be used afterwards."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _after_a_step(optimizer)
    except DataDependentOutputException:
        return _after_a_step(optimizer)  # an optimizer that reads values (Adafactor) gets real tensors


def _after_a_step(optimizer: torch.optim.Optimizer) -> int:
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["params"] = [torch.nn.Parameter(torch.zeros(p.shape, dtype=p.dtype)) for p in group["params"]]
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return cost.optimizer_bytes(optimizer)


def saved_activations(loop: Loop, batch: Batch) -> int:
    """Returns the bytes that autograd keeps between the forward and the backward pass over `batch`."""
    train = loop.cfg.train
    model: Any = loop.model
    model.train()
    loop.variant.on_step_begin(loop.view(1))
    if train.gradient_checkpointing:
        loop.network.recompute_activations()
    real = loop.collate([loop.rows.train[row] for row in batch.rows])
    # torch raises errors of many classes if fakes don't suffice; a model's own error is raised again below.
    with contextlib.suppress(RuntimeError), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        inputs = {name: fake.from_tensor(tensor) for name, tensor in real.inputs.items()}
        fakes = replace(real, inputs=inputs, labels=fake.from_tensor(real.labels))
        # Autograd keeps the model's own tensors as they are or as fakes; neither is counted.
        return _kept(loop, fakes, [fake.from_tensor(tensor) for tensor in cost.own_tensors(model)])
    return _kept(loop, real, [])


def _kept(loop: Loop, batch: batches.Batch, besides: list[torch.Tensor]) -> int:
    """Returns the bytes that a forward pass over `batch` keeps, without the model's tensors and those in `besides`."""
    counter = cost.SavedActivations(loop.model)
    with counter.counting(besides=besides):
        loop.forward(batch)
    return counter.bytes
