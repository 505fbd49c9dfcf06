"""The optimizer: one call for all parameters where its class can, and the same steps either way."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from trainer.errors import RunFailed
from trainer.loop.optim import build_optimizer
from variants.full import Full

ADAMW = {"_target_": "torch.optim.AdamW"}


def built(model: nn.Module, fused: bool, optimizer: dict[str, object]) -> torch.optim.Optimizer:
    optim = OmegaConf.create({"lr": 0.1, "head_lr": None, "weight_decay": 0.1, "optimizer": optimizer})
    return build_optimizer(model, (), Full(), optim, fused)


@pytest.mark.parametrize(
    ("fused", "optimizer", "found"),
    [
        (True, ADAMW, True),
        (False, ADAMW, None),
        (True, ADAMW | {"foreach": True}, None),
        (True, ADAMW | {"fused": False}, False),
        (True, {"_target_": "torch.optim.NAdam"}, None),
    ],
)
def test_it_steps_in_one_call_where_it_can_and_nothing_else_was_chosen(fused, optimizer, found):
    assert built(nn.Linear(2, 2), fused, optimizer).defaults.get("fused") is found


def test_the_steps_are_the_same_to_rounding():
    weights = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(5, 3).double()
        optimizer = built(model, fused, ADAMW)
        for _ in range(20):
            model(torch.randn(4, 5, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(model.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("fused", "chosen"), [(True, ADAMW), (False, ADAMW | {"fused": True})])
def test_moments_of_another_size_than_their_parameter_end_the_run(fused, chosen):
    model = nn.Linear(5, 3)
    optimizer = built(model, fused, chosen)
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    model.weight.data, model.weight.grad = torch.zeros(4, 5), torch.zeros(4, 5)
    with pytest.raises(RunFailed, match=r"optimizer: exp_avg of shape \(3, 5\), allowed: \(4, 5\)"):
        optimizer.step()
