"""One step: what counts how much, in which order things happen, and what a step that is not finite leaves alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from variants.core.step import Loss, take
from variants.lora import LoRA
from variants.testing import toys


@dataclass(kw_only=True)
class Pulled(LoRA):
    """LoRA with a penalty; it notes its hooks."""

    def __post_init__(self):
        super().__post_init__()
        self.called: list[str] = []

    def penalty(self):
        return torch.stack([adapter.A.square().sum() for adapter in self.adapters.values()]).sum()

    def on_step_begin(self, step):
        self.called.append("begin")

    def on_gradients(self, step):
        self.called.append("gradients")

    def on_update(self, step):
        self.called.append("update")


def stepped(*sizes: int, factor: float = 1.0, **options: Any):
    """(run, taken) of a step on 11 rows in batches of `sizes`; one of 0 rows goes through the first row instead."""
    run = toys.attach(Pulled, {"rank": 2}, torch.float64)
    x, y = (rows[:11] for rows in toys.data(torch.float64))
    batches = list(zip(x.split(sizes), y.split(sizes), sizes, strict=True))

    def loss(batch):
        inputs, labels, rows = batch
        if not rows:
            inputs, labels = x[:1], y[:1]
        return Loss(factor * F.mse_loss(run.model(inputs), labels.double(), reduction="none").mean(1).sum(), rows)

    return run, take(run.step(1), run.variant, run.model, batches, loss, 11, **options)


@pytest.mark.parametrize("sizes", [(4, 4, 3), (1, 10), (5, 0, 6), (2, 2, 2, 2, 2, 1)])
def test_a_step_is_the_same_into_whatever_batches_its_rows_are_divided(sizes):
    (whole, one), (divided, many) = stepped(11), stepped(*sizes)
    assert many.task_loss.item() == pytest.approx(one.task_loss.item(), rel=1e-12)
    assert many.norm == pytest.approx(one.norm, rel=1e-12)
    assert many.penalty.item() == pytest.approx(one.penalty.item(), rel=1e-12), "a step has one"
    for name, parameter in whole.model.named_parameters():
        torch.testing.assert_close(divided.model.get_parameter(name), parameter, rtol=1e-12, atol=1e-12, msg=name)


def test_the_order_of_a_step():
    events: list[str] = []
    run, taken = stepped(6, 5, watch=events.append)
    assert events == ["begun", "gradients", "scored", "moved", "updated"]
    assert run.variant.called == ["begin", "gradients", "update"] and taken.moved
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_told():
    seen: list[float] = []

    def watch(event: str) -> None:
        if event == "gradients":
            found = [p.grad for p in run.model.parameters() if p.grad is not None]
            seen.append(float(torch.nn.utils.get_total_norm(found)))

    run = toys.attach(Pulled, {"rank": 2}, torch.float64)
    x, y = toys.data(torch.float64)
    loss = lambda batch: Loss(F.mse_loss(run.model(x), y.double(), reduction="sum"), y.numel())  # noqa: E731
    taken = take(run.step(1), run.variant, run.model, [None], loss, y.numel(), max_norm=0.01, watch=watch)
    assert taken.norm > 0.01 and seen == [pytest.approx(0.01, rel=1e-3)]


def test_a_step_that_is_not_finite_moves_nothing_and_calls_no_further_hook():
    events: list[str] = []
    start = toys.attach(Pulled, {"rank": 2}, torch.float64)
    run, taken = stepped(6, 5, factor=float("nan"), watch=events.append)
    assert not taken.moved and events == ["begun", "gradients"] and run.variant.called == ["begin"]
    assert not run.optimizer.state and run.scheduler.last_epoch == 1
    for name, parameter in start.model.named_parameters():
        assert torch.equal(run.model.get_parameter(name), parameter), name
