"""L1RA: training written out, the released code's rounds, its budget, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from variants.l1ra import L1RA
from variants.testing.toys import Toy, attach, data, train

FAST = {"every": 0.17, "gate_lr": 0.6, "l1": 0.7}  # a round every second step


class Adam:
    """AdamW without decay, whose moments can be cut and padded as its parameter is. rate: by step, from 0."""

    def __init__(self, value: torch.Tensor, rate) -> None:
        self.value, self.rate = value, rate
        self.m, self.v = torch.zeros_like(value), torch.zeros_like(value)

    def step(self, gradient: torch.Tensor, t: int) -> None:
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        root = (self.v / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8
        self.value = self.value - self.rate(t) * self.m / (1 - 0.9 ** (t + 1)) / root

    def keep(self, index: list[int], dim: int) -> None:
        self.value, self.m, self.v = (x.index_select(dim, torch.tensor(index)) for x in (self.value, self.m, self.v))

    def add(self, new: torch.Tensor, dim: int) -> None:
        self.value = torch.cat([self.value, new], dim)
        self.m, self.v = (torch.cat([x, torch.zeros_like(new)], dim) for x in (self.m, self.v))


def test_training_written_out() -> None:
    run = attach(L1RA, {"rank": 3, "alpha": 6.0, **FAST}, torch.float64)
    toy, (x, y) = Toy(torch.float64), data(torch.float64)
    usual = lambda t: 0.02 * (1 - 0.5 * t / 12)  # noqa: E731
    parts = {}
    for name, adapter in run.variant.adapters.items():
        b, e = torch.zeros(adapter.out_features, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        parts[name] = (Adam(adapter.A.detach().clone(), usual), Adam(b, usual), Adam(e, lambda t: 0.6))
    head = [Adam(p.detach().clone(), usual) for p in toy.head.parameters()]
    torch.manual_seed(1)
    train(run)
    torch.manual_seed(1)
    ranks = []
    for t in range(12):
        if t and t % 2 == 0:
            lowest = {name: float(c.value.min()) for name, (_, _, c) in parts.items()}
            for _, (a, b, c) in parts.items():
                kept = [i for i, value in enumerate(c.value.tolist()) if value >= 1e-10]
                kept = kept or [int(c.value.argmax())]
                a.keep(kept, 0), b.keep(kept, 1), c.keep(kept, 0)
            free = 12 - sum(len(c.value) for _, _, c in parts.values())
            order = sorted((n for n in lowest if lowest[n] >= 1e-10), key=lambda n: -lowest[n])
            gained = dict.fromkeys(parts, 0)
            while free and any(len(parts[n][2].value) + gained[n] < 8 for n in order):
                for n in order:
                    if free and len(parts[n][2].value) + gained[n] < 8:
                        gained[n], free = gained[n] + 1, free - 1
            for n, (a, b, c) in parts.items():
                for _ in range(gained[n]):
                    a.add(torch.randn(1, a.value.shape[1], dtype=torch.float64) / 3, 0)
                    b.add(torch.zeros(len(b.value), 1, dtype=torch.float64), 1)
                    c.add(torch.ones(1, dtype=torch.float64), 0)
            ranks.append([len(c.value) for _, _, c in parts.values()])
        leaves = [adam.value.requires_grad_() for adams in [*parts.values(), head] for adam in adams]
        weights = {
            f"{n}.weight": toy.get_submodule(n).weight.detach() + 2 * (b.value * c.value) @ a.value
            for n, (a, b, c) in parts.items()
        }
        weights |= {"head.weight": head[0].value, "head.bias": head[1].value}
        gradients = iter(torch.autograd.grad(F.mse_loss(functional_call(toy, weights, (x,)), y), leaves))
        with torch.no_grad():
            for adams in [*parts.values(), head]:
                for adam in adams:
                    adam.step(next(gradients), t)
            for _, _, c in parts.values():
                c.value = (c.value - 0.6 * 0.7).clamp(0, 1)
    assert len({tuple(row) for row in ranks}) > 1  # ranks have moved
    for name, (a, b, c) in parts.items():
        change = 2 * (b.value * c.value) @ a.value
        torch.testing.assert_close(run.variant.adapters[name].delta(), change, rtol=1e-9, atol=1e-12)


def closed(run, gates: dict[str, list[float]]) -> None:
    """Set the gates of layers."""
    for name, values in gates.items():
        run.variant.adapters[name].e.data = torch.tensor(values)


GATES = {  # the first loses one, the second is dead, the third and the fourth lose none
    "layer.0.fc1": [1.0, -0.5, 0.9],
    "layer.0.fc2": [0.0, -1.0, -0.2],
    "layer.1.fc1": [0.5, 0.6, 0.7],
    "layer.1.fc2": [1.2, 0.8, 0.7],
}


@pytest.mark.parametrize(("profile", "state"), [("paper", True), ("released", False)])
def test_a_round(profile: str, state: bool) -> None:
    run = train(attach(L1RA, {"rank": 3, "profile": profile, "l1": 0.0}), 2)
    closed(run, GATES)
    run.variant._round(run.optimizer, last=False)
    # Freed are 1 + 2; the layer with the largest min c comes first, and again after the other.
    found = {name: adapter.e.tolist() for name, adapter in run.variant.adapters.items()}
    assert found["layer.0.fc1"] == pytest.approx([1.0, 0.9]) and found["layer.0.fc2"] == [0.0]
    assert found["layer.1.fc1"] == pytest.approx([0.5, 0.6, 0.7, 1.0])
    assert found["layer.1.fc2"] == pytest.approx([1.2, 0.8, 0.7, 1.0, 1.0])
    assert not run.variant.adapters["layer.1.fc2"].B[:, 3:].any() and run.variant.adapters["layer.1.fc2"].A[3:].any()
    assert bool(run.optimizer.state) == state


@pytest.mark.parametrize(("profile", "later"), [("paper", 12), ("released", 8)])
def test_ranks_that_no_layer_can_take(profile: str, later: int) -> None:
    run = train(attach(L1RA, {"rank": 3, "profile": profile, "l1": 0.0}), 1)
    closed(run, {name: [1.0, 0.5, 0.0] for name in GATES})
    run.variant._round(run.optimizer, last=False)
    assert sum(len(a.e) for a in run.variant.adapters.values()) == 8  # all have lost one
    closed(run, {name: [1.0, 0.5] for name in GATES})
    run.variant._round(run.optimizer, last=False)
    assert sum(len(a.e) for a in run.variant.adapters.values()) == later


def test_the_gates_have_a_rate_of_their_own_whatever_the_schedule() -> None:
    run = attach(L1RA, {"rank": 2, "gate_lr": 0.3, "l1": 0.0})
    rates = []
    train(
        run, watch=lambda event, run: event == "begun" and rates.append([g["lr"] for g in run.optimizer.param_groups])
    )
    assert {0.3} == {max(row) for row in rates} and len({min(row) for row in rates}) == 12


def test_a_clamped_gate_acts_as_one_within_bounds() -> None:
    run = attach(L1RA, {"rank": 3, "profile": "released"}, torch.float64)
    adapter = run.variant.adapters["layer.0.fc1"]
    adapter.B.data.normal_()
    adapter.e.data = torch.tensor([1.7, 0.5, -0.3], dtype=torch.float64)
    expected = adapter.scale * adapter.B @ torch.diag(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)) @ adapter.A
    torch.testing.assert_close(adapter.delta(), expected)
    assert adapter.rank == 2


@pytest.mark.parametrize("budget", [150, 231, 300])
def test_a_budget_is_met_whatever_closes(budget: int) -> None:
    run = train(attach(L1RA, {"budget": budget, "every": 0.2, "gate_lr": 0.4, "l1": 0.9}))
    assert budget - 21 < run.variant.effective_parameters() <= budget
    assert run.variant.report()["moved_ranks"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0.0}, "every: 0.0, allowed: a number > 0"),
        ({"budget": 200, "profile": "released"}, "budget: 200 with profile: released, allowed: null"),
        ({"budget": 200, "reassign": False}, "reassign: False with budget: 200, allowed: True"),
        ({"every": 0.05}, "every: 0.05 of 12 steps is 0, allowed: ≥ 1"),
        ({"rank": 9}, "rank: 9 for a layer of size 12×8, allowed: 1 … 8"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(L1RA, settings)
