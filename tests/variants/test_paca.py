"""PaCA: the released code's training on the same columns, and what is saved for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.variants import oracles
from trainer.loop.cost import SavedActivations
from variants.paca import PaCA
from variants.testing.toys import attach, train


def test_trajectory_of_the_released_code() -> None:
    oracle = oracles.load("paca")
    model = oracle.model()
    variant = PaCA(rank=2, alpha=4)
    variant.drawn = lambda name, width, count: oracle.tensor(f"columns/{name}")
    variant.attach(model)
    parameters = {f"{name}.paca_w": lambda a=adapter: a.P for name, adapter in variant.adapters.items()}
    optimizer = oracles.optimizer(model, variant, lr=0.005, weight_decay=0.01)
    oracles.follow(oracle, model, variant, optimizer, 60, parameters=parameters)


def test_only_the_chosen_columns_move() -> None:
    run = train(attach(PaCA, {"rank": 2}))
    for adapter in run.variant.adapters.values():
        moved = adapter.delta().detach().any(0).nonzero().flatten()
        assert torch.equal(moved, adapter.columns) and len(moved) == 2


def test_of_the_inputs_only_the_chosen_features_are_saved() -> None:
    rows, width, rank = 64, 96, 2
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))
    PaCA(rank=rank).attach(model)
    saved = SavedActivations(model)
    with saved.counting():
        model.train()(torch.randn(rows, width))
    per_layer = 4 * rows * rank + 8 * rank + 4 * width * rank  # the features, their numbers, and the change
    assert saved.bytes <= 4 * per_layer < 4 * rows * width


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": 0}, "rank: 0, allowed: a whole number ≥ 1"), ({"rank": 2, "budget": 9}, "rank: 2 with budget: 9")],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PaCA(**settings)
