"""What a run will cost, before it starts: `python train.py … --dry-run`.

The run is put together as for training, weights and all, and then nothing is computed: the forward pass over the
largest batch that it will see goes through torch's fake tensors, which have shapes and no numbers, and a step of the
optimizer is made on such, too. So what is counted is what autograd and the optimizer really keep, for every
method and every optimizer, and a batch that would not fit into memory can be asked for. A model whose shapes depend
on its numbers (T5 looks for the end of each text, a mixture of experts counts tokens) has no such forward pass: there
the batch is computed, and has to fit.

A method that grows is counted at its largest, with as many bytes for each parameter that it adds as for those that
it starts with; one that shrinks is counted before it does.
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
from trainer.runs import assemble
from trainer.sweeps.estimate import words
from trainer.sweeps.plan import Planned


@dataclass(frozen=True)
class Batch:
    """The batch with the most units (tokens, …), padding included."""

    rows: list[int]
    units: int  # of its longest row
    unit: str  # what they are


@dataclass(frozen=True)
class Prediction:
    """Parameters, and bytes at their peak over the steps, as the record will name them."""

    steps: int
    batch: Batch
    total: int  # parameters
    adapter: int  # trained at the start, the head apart
    head: int
    more: int  # that a method which grows will train at its largest
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def memory(self) -> int:
        """Bytes that training needs."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def lines(self) -> Iterator[str]:
        """As they are printed."""
        batch = f"{len(self.batch.rows)} × {self.batch.units}"
        grown = f" (growing to about {self.adapter + self.more:,})" if self.more else ""
        yield f"  steps        {self.steps:,}, the largest batch {batch} {self.batch.unit}s"
        yield f"  parameters   {self.total:,}, trained: {self.adapter:,} in adapters{grown}, {self.head:,} in the head"
        for name in ("weights", "gradients", "optimizer", "activations"):
            yield f"  {name:<12} {getattr(self, name) / 2**20:9,.1f} MiB"
        yield f"  {'together':<12} {self.memory / 2**20:9,.1f} MiB"


def predict(planned: Planned) -> Prediction:
    """What the run of `planned` will need. Raises `ConfigError` for what the run would be refused for."""
    config = planned.config
    with assemble.apart(config), TemporaryDirectory() as folder:
        parts = assemble.check(config)
        model = assemble.load(parts)
        loop = assemble.loop(parts, model, Path(folder), torch.device("cpu"))
        batch = largest_batch(loop)
        adapter, head = cost.trainable_parameters(model, parts.head)
        more = parts.variant.grows_by()
        activations = saved_activations(loop, batch)
        gradients, optimizer = cost.trainable_bytes(model), optimizer_bytes(loop.optimizer)
        growth = more / (adapter + head)
        return Prediction(
            steps=loop.steps,
            batch=batch,
            total=sum(p.numel() for p in model.parameters()),
            adapter=adapter,
            head=head,
            more=more,
            weights=cost.weight_bytes(model) + round(gradients * growth),
            gradients=round(gradients * (1 + growth)),
            optimizer=round(optimizer * (1 + growth)),
            activations=activations,
        )


@dataclass(frozen=True)
class Row:
    """A setting of a sweep. runs: how many have it, with other seeds. seconds: of all of them, None where unknown."""

    setting: str
    runs: int
    prediction: Prediction
    seconds: float | None


def table(rows: Sequence[Row]) -> Iterator[str]:
    """What a sweep will cost, in lines: its settings and, last, the number of runs, the largest memory and the time."""
    cells = [("", "runs", "steps", "trained", "MiB", "time")]
    for row in rows:
        found = row.prediction
        trained = f"{found.adapter + found.more + found.head:,}"
        cells.append((row.setting, str(row.runs), f"{found.steps:,}", trained, _mib(found), _time(row.seconds)))
    if rows:
        known = [row.seconds for row in rows if row.seconds is not None]
        largest = max((row.prediction for row in rows), key=lambda found: found.memory)
        seconds = sum(known) if len(known) == len(rows) else None
        runs = str(sum(row.runs for row in rows))
        cells.append(("together, the largest memory", runs, "", "", _mib(largest), _time(seconds)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, *numbers in cells:
        right = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *right])


def _mib(prediction: Prediction) -> str:
    return f"{prediction.memory / 2**20:,.1f}"


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else words(seconds)


def largest_batch(loop: Loop) -> Batch:
    """Of all batches of the run the one with the most units, padding included."""
    train, lengths, order = loop.cfg.train, loop.rows.train.lengths, loop.batches.order
    unit = loop.objective.unit
    best = Batch([], 0, unit)
    batches = loop.steps * train.accumulate * (train.processes or 1)
    for epoch in range(math.ceil(loop.steps / loop.batches.steps_per_epoch)):
        order.epoch = epoch
        indices = list(order)
        for start in itertools.islice(range(0, len(indices), train.batch_size), batches):
            rows = indices[start : start + train.batch_size]
            longest = max(lengths[row] for row in rows)
            if len(rows) * longest > len(best.rows) * best.units:
                best = Batch(rows, longest, unit)
            batches -= 1
    return best


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the state that a step leaves in `optimizer`, which is used up."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return _after_a_step(optimizer)
    except DataDependentOutputException:
        return _after_a_step(optimizer)  # one that looks at its numbers (Adafactor) gets some


def _after_a_step(optimizer: torch.optim.Optimizer) -> int:
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["params"] = [torch.nn.Parameter(torch.zeros(p.shape, dtype=p.dtype)) for p in group["params"]]
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return cost.optimizer_bytes(optimizer)


def saved_activations(loop: Loop, batch: Batch) -> int:
    """Bytes that autograd keeps between the forward and the backward pass over `batch`."""
    train = loop.cfg.train
    model: Any = loop.model
    model.train()
    loop.variant.on_step_begin(loop.view(1))
    if train.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    found = loop.collate([loop.rows.train[row] for row in batch.rows])
    # What torch raises where fakes won't do is of many kinds; an error of the model's own comes again.
    with contextlib.suppress(RuntimeError), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        inputs = {name: fake.from_tensor(tensor) for name, tensor in found.inputs.items()}
        fakes = replace(found, inputs=inputs, labels=fake.from_tensor(found.labels))
        # The model's own tensors are kept as they are, or as the fakes that stand for them.
        return _kept(loop, fakes, [fake.from_tensor(tensor) for tensor in cost.own_tensors(model)])
    return _kept(loop, found, [])


def _kept(loop: Loop, batch: batches.Batch, besides: list[torch.Tensor]) -> int:
    """Bytes that a forward pass over `batch` keeps; the model's tensors and those in `besides` are not counted."""
    counter = cost.SavedActivations(loop.model)
    with counter.counting(besides=besides):
        loop.forward(batch)
    return counter.bytes
