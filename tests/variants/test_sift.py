"""SIFT: its mask, and training beside dense weights whose gradients are masked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from variants.masked import Masked
from variants.sift import SIFT
from variants.testing.toys import LR, STEPS, Toy, attach, data, train


def test_the_mask_and_the_trajectory_are_those_of_dense_training_under_it() -> None:
    x, y = data(torch.float64)
    y, toy = y.double(), Toy(torch.float64)
    run = attach(SIFT, {"density": 0.2}, torch.float64)
    F.mse_loss(toy(x[:16]), y[:16]).backward()
    masks = {}
    for name, adapter in run.variant.adapters.items():
        size = toy.get_submodule(name).weight.grad.abs().flatten()
        order = size.argsort(descending=True)[: int(0.2 * 96) + 1]
        assert adapter.indices.tolist() == sorted(order.tolist())
        masks[name] = torch.zeros(96, dtype=torch.float64).index_fill(0, order, 1.0).view(adapter.weight.shape)
    toy.requires_grad_(False)
    dense = [*(toy.get_submodule(name).weight for name in masks), *toy.head.parameters()]
    for p in dense:
        p.requires_grad_().grad = None
    optimizer = torch.optim.AdamW(dense, LR, weight_decay=0.0)
    for step in range(1, STEPS + 1):
        F.mse_loss(toy(x), y).backward()
        for name, mask in masks.items():
            toy.get_submodule(name).weight.grad *= mask
        optimizer.step()
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = LR * (1 - 0.5 * step / STEPS)
    train(run)
    for name, adapter in run.variant.adapters.items():
        torch.testing.assert_close(
            adapter.weight + adapter.delta_weight(), toy.get_submodule(name).weight, rtol=1e-9, atol=1e-12
        )


def test_of_a_budget_it_is_the_composed_mask_to_the_bit() -> None:
    settings = {"source": "gradient", "collect": 2, "budget": 101}
    ours, theirs = (train(attach(*case)) for case in ((SIFT, {"budget": 101, "batches": 2}), (Masked, settings)))
    for name, adapter in ours.variant.adapters.items():
        assert torch.equal(adapter.delta(), theirs.variant.adapters[name].delta())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 1.0}, "density: 1.0, allowed: 0 < density < 1"),
        ({"batches": 0}, "batches: 0, allowed: a whole number ≥ 1"),
        ({"density": 0.1, "budget": 30}, "density: 0.1 with budget: 30"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SIFT(**settings)
