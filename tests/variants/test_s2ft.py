"""S²FT: the released code's training at the same channels; which channels are chosen."""

from __future__ import annotations

import pytest
import torch

from tests.variants import oracles
from variants.s2ft import S2FT
from variants.testing.toys import attach


def test_trajectory_of_the_released_code() -> None:
    oracle = oracles.load("s2ft")
    model = oracle.model()
    variant = S2FT(fraction=0.5, rows=["fc1"], columns=["fc2", "fc3"])
    channels = {"fc1": oracle.tensor("selected/fc1"), "fc2": oracle.tensor("selected/fc2"), "fc3": torch.arange(2, 5)}
    variant.drawn = lambda name, pool, count: channels[name]
    variant.attach(model)
    optimizer = oracles.optimizer(model, variant, lr=0.02, weight_decay=0.01, betas=[0.9, 0.95])
    oracles.follow(oracle, model, variant, optimizer, 60)


def lines(adapter) -> tuple[int, int]:
    pattern = torch.zeros(adapter.out_features, adapter.in_features, dtype=torch.bool)
    pattern.view(-1)[adapter.indices] = True
    return int(pattern.all(1).sum()), int(pattern.all(0).sum())


def test_layers_that_widen_have_rows_and_others_columns() -> None:
    adapters = attach(S2FT, {"fraction": 0.25}).variant.adapters
    assert lines(adapters["layer.0.fc1"]) == (3, 0) and lines(adapters["layer.0.fc2"]) == (0, 3)
    assert len(adapters["layer.0.fc1"].indices) == 3 * 8


def test_grouped_channels_are_chosen_together() -> None:
    adapter = attach(S2FT, {"fraction": 0.34, "groups": {"fc1": 4}}).variant.adapters["layer.0.fc1"]
    (first, *_), rows = adapter.indices, (adapter.indices // 8).unique()
    assert len(rows) == 4 and int(first) // 8 % 4 == 0 and torch.equal(rows, rows[0] + torch.arange(4))


def test_pooled_channels_give_layers_different_numbers_and_the_fraction_together() -> None:
    adapters = attach(S2FT, {"fraction": 0.25, "pooled": True, "seed": 1}).variant.adapters
    counts = [sum(lines(adapter)) for adapter in adapters.values()]
    assert sum(counts) == 12 and len(set(counts)) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0.0}, "fraction: 0.0, allowed: 0 < fraction ≤ 1"),
        ({"fraction": 0.01}, "fraction: 0.01 chooses no channel, allowed: more"),
        ({"rows": ["up"]}, "rows: no adapted layer ends in 'up'"),
        ({"groups": {"fc1": 5}}, "groups: 5 does not divide the 12 channels of layer.0.fc1"),
        ({"fraction": 0.1, "budget": 30}, "fraction: 0.1 with budget: 30"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(S2FT, settings)
