"""PRILoRA: training written out, ranks by depth, its budget, and what it refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from variants.prilora import PRILoRA
from variants.testing.toys import Toy, attach, data, train


def test_training_written_out() -> None:
    run = attach(PRILoRA, {"first_rank": 1, "last_rank": 3, "alpha": 6.0, "interval": 5}, torch.float64)
    toy, (x, y) = Toy(torch.float64), data(torch.float64)
    a = {name: adapter.A.detach().clone().requires_grad_() for name, adapter in run.variant.adapters.items()}
    b = {n: torch.zeros(toy.get_submodule(n).out_features, len(a[n])).double().requires_grad_() for n in a}
    scale = {name: 6.0 / len(value) for name, value in a.items()}
    norms = {name: torch.zeros(value.shape[1], dtype=torch.float64) for name, value in a.items()}
    inputs: dict[str, torch.Tensor] = {}
    for name in a:
        toy.get_submodule(name).register_forward_pre_hook(lambda m, args, n=name: inputs.update({n: args[0].detach()}))
    optimizer = torch.optim.AdamW([*a.values(), *b.values(), *toy.head.parameters()], lr=0.02, weight_decay=0.0)
    train(run)
    for t in range(12):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - 0.5 * t / 12)
        weights = {f"{n}.weight": toy.get_parameter(f"{n}.weight").detach() + scale[n] * b[n] @ a[n] for n in a}
        optimizer.zero_grad()
        F.mse_loss(functional_call(toy, weights, (x,)), y).backward()
        optimizer.step()
        with torch.no_grad():
            for name, seen in inputs.items():
                norms[name] = 0.9 * norms[name] + 0.1 * torch.linalg.vector_norm(seen, dim=0)
                if t in (4, 9):
                    for row in a[name]:
                        importance = row.abs() * norms[name]
                        row[importance.argsort()[: len(row) // 2]] = 0.0
    for name, adapter in run.variant.adapters.items():
        torch.testing.assert_close(adapter.delta(), scale[name] * b[name] @ a[name], rtol=1e-9, atol=1e-12)


def test_half_of_every_row_is_zero_after_a_round_and_trains_on() -> None:
    run = train(attach(PRILoRA, {"first_rank": 2, "last_rank": 3, "interval": 4}), 4)
    for adapter in run.variant.adapters.values():
        assert ((adapter.A == 0).sum(1) == adapter.in_features // 2).all()
    train(run, 5)
    assert all(bool((adapter.A != 0).all()) for adapter in run.variant.adapters.values())


def test_tokens_that_the_loss_does_not_depend_on_do_not_count() -> None:
    run = attach(PRILoRA, {"first_rank": 2, "last_rank": 2, "interval": 4})
    adapter, x = run.variant.adapters["layer.0.fc1"], torch.randn(2, 3, 8)
    adapter.train()(x)[:, :2].sum().backward()
    torch.testing.assert_close(adapter.squares, x[:, :2].square().sum((0, 1)))


class Deep(nn.Module):
    """Blocks of one layer."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(32, 32)}) for _ in range(blocks))


@pytest.mark.parametrize(
    ("blocks", "ranks"), [(12, [4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12]), (3, [4, 8, 12]), (1, [8])]
)
def test_ranks_rise_linearly_with_depth(blocks: int, ranks: list[int]) -> None:
    variant = PRILoRA()
    variant.attach(Deep(blocks))
    assert list(variant.ranks().values()) == ranks


@pytest.mark.parametrize("budget", [1000, 5000, 6143])
def test_a_budget_keeps_the_proportion(budget: int) -> None:
    variant = PRILoRA(budget=budget)
    variant.attach(Deep(12))
    ranks = list(variant.ranks().values())
    assert budget - 64 < variant.closed_form() <= budget
    assert ranks == sorted(ranks) or max(a - b for a, b in itertools.pairwise(ranks)) <= 1
    assert ranks[-1] / ranks[0] == pytest.approx(3, abs=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 13}, "interval: 13, allowed: at most the run's 12 steps"),
        (
            {"first_rank": 5, "last_rank": 5},
            r"pruned: 0.5 leaves 4 entries in a row of A of layer.0.fc1, allowed: one",
        ),
        ({"pruned": 1.0}, "pruned: 1.0, allowed: 0 ≤ pruned < 1"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(PRILoRA, {"interval": 4, **settings})


def test_a_layer_outside_the_blocks_is_refused() -> None:
    model = Deep(2)
    model.pooler = nn.Linear(32, 32)
    with pytest.raises(ValueError, match="targets: pooler is in no numbered block, so it has no depth; exclude it"):
        PRILoRA().check(model)
