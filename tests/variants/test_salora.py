"""SaLoRA: gates and multiplier beside dense tensors, the cut, what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from variants.salora import SaLoRA
from variants.testing.toys import LR, Toy, attach, data, train

SETTINGS = {"rank": 4, "target_rank": 2, "final_steps": 4}


def test_gates_and_multiplier_are_those_of_dense_tensors() -> None:
    run = attach(SaLoRA, {**SETTINGS, "multiplier_rate": 0.5}, torch.float64)
    toy, (x, y), noises = Toy(torch.float64), data(torch.float64), []
    parts = {n: [p.detach().clone().requires_grad_() for p in (a.A, a.B, a.e)] for n, a in run.variant.adapters.items()}

    def watch(event: str, run) -> None:
        if event == "begun":
            noises.append({name: adapter.drawn for name, adapter in run.variant.adapters.items()})

    train(run, 3, watch=watch)
    toy.requires_grad_(False)
    head = list(toy.head.requires_grad_().parameters())
    groups = [
        {"params": [*(p for a, b, _ in parts.values() for p in (a, b)), *head], "lr": LR},
        {"params": [e for _, _, e in parts.values()], "lr": 10 * LR},
    ]
    optimizer, multiplier = torch.optim.AdamW(groups, weight_decay=0.0), 0.0
    shift = torch.log(torch.tensor(0.1 / 1.1, dtype=torch.float64))
    for step in range(1, 4):
        weights = {}
        for name, (a, b, e) in parts.items():
            z = (1.2 * torch.sigmoid(e + noises[step - 1][name]) - 0.1).clamp(0, 1)
            weights[f"{name}.weight"] = toy.get_submodule(name).weight + 16 / 4 * (b * z) @ a
        excess = sum(torch.sigmoid(e - shift).sum() for _, _, e in parts.values()) / 8 - 1
        loss = F.mse_loss(torch.func.functional_call(toy, weights, (x,)), y.double())
        (loss + multiplier * excess.clamp(min=0)).backward()
        optimizer.step()
        optimizer.zero_grad()
        after = sum(torch.sigmoid(e - shift).sum() for _, _, e in parts.values()).item() / 8 - 1
        multiplier = max(0.0, multiplier + 0.5 * after)
        for group, rate in zip(optimizer.param_groups, (LR, 10 * LR), strict=True):
            group["lr"] = rate * (1 - 0.5 * step / 12)
    for name, adapter in run.variant.adapters.items():
        for found, expected in zip((adapter.A, adapter.B, adapter.e), parts[name], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)
    assert float(run.variant._multiplier) == pytest.approx(multiplier, rel=1e-9) and multiplier > 1


def test_the_most_open_components_remain_and_keep_their_product() -> None:
    run = train(attach(SaLoRA, SETTINGS, torch.float64), 7)
    variant = run.variant
    logits = torch.cat([adapter.e.detach() for adapter in variant.adapters.values()])
    least = logits.topk(8).values.min()
    expected = {}
    for name, adapter in variant.adapters.items():
        z = (1.2 * torch.sigmoid(adapter.e.detach()) - 0.1).clamp(0, 1) * (adapter.e.detach() >= least)
        expected[name] = (adapter.B.detach() * z) @ adapter.A.detach() * adapter.scale
    variant._choose(run.optimizer)
    for name, adapter in variant.adapters.items():
        torch.testing.assert_close(adapter.delta().detach(), expected[name], rtol=1e-9, atol=1e-13)
        assert not adapter.gated and adapter.closed_form() == adapter.rank * 20
    assert sum(variant.ranks().values()) == 8


def test_a_larger_multiplier_closes_more_gates() -> None:
    found = []
    for rate in (1e-6, 5.0):
        run = train(attach(SaLoRA, {**SETTINGS, "gate_lr_scale": 50.0, "multiplier_rate": rate}), 7)
        found.append(float(run.variant.excess()))
    assert found[1] < found[0] - 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 4}, "target_rank: 8, allowed: at most rank, which is 4"),
        ({"multiplier_rate": 0.0}, "multiplier_rate: 0.0, allowed: a number > 0"),
        ({"final_steps": 0}, "final_steps: 0, allowed: a whole number ≥ 1"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SaLoRA(**settings)


def test_final_steps_as_long_as_the_run_are_refused() -> None:
    with pytest.raises(ValueError, match="final_steps: 60, allowed: fewer than the run's 60 steps"):
        SaLoRA(final_steps=60).plan(60)
