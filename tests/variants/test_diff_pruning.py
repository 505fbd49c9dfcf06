"""Diff pruning and its gates: the gated phase beside dense tensors, what remains, what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from variants.core import hard_concrete
from variants.diff_pruning import DiffPruning
from variants.testing.toys import LR, Toy, attach, data, train


def test_gates_are_clamped_and_open_as_often_as_they_say() -> None:
    torch.manual_seed(0)
    a = torch.tensor([-9.0, 0.0, 0.7, 9.0], dtype=torch.float64)
    assert hard_concrete.gate(a, -1.5, 1.5)[[0, 3]].tolist() == [0.0, 1.0]
    torch.testing.assert_close(hard_concrete.gate(a[2], -0.1, 1.1), 1.2 * a[2].sigmoid() - 0.1)
    drawn = hard_concrete.noise(torch.empty(40_000, dtype=torch.float64))
    for low, high in ((-1.5, 1.5), (-0.1, 1.1)):
        often = (hard_concrete.gate(a[2].expand(40_000), low, high, drawn) > 0).double().mean()
        torch.testing.assert_close(often, hard_concrete.open_probability(a[2], low, high), atol=0.01, rtol=0)


def test_the_gated_phase_is_that_of_dense_tensors() -> None:
    run = attach(DiffPruning, {"density": 0.3, "gated_steps": 4, "l0": 0.01}, torch.float64)
    toy, (x, y) = Toy(torch.float64), data(torch.float64)
    y, noises, steps = y.double(), [], 3

    def watch(event: str, run) -> None:
        if event == "begun":
            noises.append({name: adapter.drawn for name, adapter in run.variant.adapters.items()})

    train(run, steps, watch=watch)
    names = list(run.variant.adapters)
    start = {name: toy.get_submodule(name).weight.detach().clone() for name in names}
    v = {name: torch.zeros_like(weight).requires_grad_() for name, weight in start.items()}
    a = {name: torch.full_like(weight, 5.0).requires_grad_() for name, weight in start.items()}
    a_whole = {name: torch.full((1,), 5.0, dtype=torch.float64).requires_grad_() for name in names}
    toy.requires_grad_(False)
    head = list(toy.head.requires_grad_().parameters())
    groups = [{"params": [*v.values(), *head], "lr": LR}, {"params": [*a.values(), *a_whole.values()], "lr": 0.1}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)

    def hard(logit: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return (3 * torch.sigmoid(logit + noise.view(logit.shape)) - 1.5).clamp(0, 1)

    for step in range(1, steps + 1):
        drawn = noises[step - 1]
        weights = {
            f"{n}.weight": start[n] + hard(a[n], drawn[n][0]) * hard(a_whole[n], drawn[n][1]) * v[n] for n in names
        }
        penalty = 0.01 * sum(t.sigmoid().sum() for t in (*a.values(), *a_whole.values()))
        (F.mse_loss(torch.func.functional_call(toy, weights, (x,)), y) + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
        for group, rate in zip(optimizer.param_groups, (LR, 0.1), strict=True):
            group["lr"] = rate * (1 - 0.5 * step / 12)
    for name, adapter in run.variant.adapters.items():
        torch.testing.assert_close(adapter.values.view_as(v[name]), v[name], rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(adapter.gates.view_as(v[name]), a[name], rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(adapter.weight_gate, a_whole[name], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_the_largest_gated_entries_remain(profile: str) -> None:
    settings = {"density": 0.3, "gated_steps": 4, "gate_lr": 2.0, "l0": 1.0, "profile": profile}
    run = train(attach(DiffPruning, settings, torch.float64), 3)
    seen = {}
    keep = type(next(iter(run.variant.adapters.values()))).keep

    def kept(adapter, index, optimizer):
        seen[id(adapter)] = adapter.values.detach().clone(), adapter.delta().detach().flatten(), index
        keep(adapter, index, optimizer)

    for adapter in run.variant.adapters.values():
        adapter.keep = lambda index, optimizer, adapter=adapter: kept(adapter, index, optimizer)
    train(run, 4)
    gated = torch.cat([delta for _, delta, _ in seen.values()]).abs()
    smallest = gated.topk(int(0.3 * 384)).values.min()
    for adapter in run.variant.adapters.values():
        values, delta, index = seen[id(adapter)]
        assert (delta[index].abs() >= smallest).all()
        assert torch.equal(adapter.values, (delta if profile == "paper" else values)[index])
    assert run.variant.effective_parameters() == run.variant.closed_form() == int(0.3 * 384)


def test_evaluation_draws_no_gates() -> None:
    run = train(attach(DiffPruning, {"density": 0.3, "gated_steps": 6}), 3)
    assert torch.equal(run.output(), run.output())
    for adapter in run.variant.adapters.values():
        adapter.drawn = None
    assert torch.equal(run.output(), run.output())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0}, "density: 0.0, allowed: 0 < density ≤ 1"),
        ({"l0": -1.0}, "l0: -1.0, allowed: a number ≥ 0"),
        ({"gate_lr": 0.0}, "gate_lr: 0.0, allowed: a number > 0"),
        ({"profile": "code"}, "profile: 'code', allowed: paper, released"),
        ({"density": 0.1, "budget": 30}, "density: 0.1 with budget: 30"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffPruning(**settings)


def test_a_gated_phase_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="gated_steps: 100, allowed: fewer than the run's 60 steps"):
        DiffPruning().plan(60)
