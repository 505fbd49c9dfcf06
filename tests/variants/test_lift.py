"""LIFT: masks, moments and training of the released code; what entries leave behind."""

from __future__ import annotations

import pytest
import torch

from tests.variants import oracles
from variants.core.adapters.drifting_delta import DriftingDelta
from variants.core.variant import Step
from variants.lift import LIFT
from variants.testing.toys import attach, train


def test_every_number_of_the_released_code() -> None:
    oracle = oracles.load("lift")
    model = oracle.model()
    variant = LIFT(rank=1, filter_rank=2, interval=7)
    variant.attach(model)

    def masks_are(name: str, key: str, at: int | None = None) -> None:
        stored = oracle.tensor(key) if at is None else oracle.tensor(key)[at]
        assert torch.equal(variant.adapters[name].indices, stored.flatten().nonzero().flatten())

    for name in variant.adapters:
        masks_are(name, f"mask_initial/{name}")

    def watch(done: int, step: Step) -> None:
        for name, adapter in variant.adapters.items():
            masks_are(name, f"mask_after_step/{name}", done - 1)
            for moment, number in (("exp_avg", 1), ("exp_avg_sq", 2)):
                if (key := f"after_{done:03d}/moment{number}/{name}") in oracle.arrays:
                    dense = torch.zeros_like(adapter.delta()).flatten()
                    dense[adapter.indices] = step.optimizer.state[adapter.values][moment]
                    oracle.near(dense.view_as(adapter.delta()), key)

    parameters = {f"{n}.weight": lambda a=a: a.weight + a.delta_weight() for n, a in variant.adapters.items()}
    optimizer = oracles.optimizer(
        model, variant, lr=0.01, kind="tests.variants.optimizers.EarlyEps", betas=[0.9, 0.95], eps=1e-6
    )
    oracles.follow(oracle, model, variant, optimizer, 60, parameters=parameters, watch=watch, norms_are=False)


def test_the_released_choice_is_the_papers_from_the_other_end() -> None:
    found = {}
    for profile in ("paper", "released"):
        run = attach(LIFT, {"rank": 1, "filter_rank": 2, "profile": profile}, torch.float64)
        found[profile] = {name: set(a.indices.tolist()) for name, a in run.variant.adapters.items()}
    assert all(not found["paper"][name] & found["released"][name] for name in found["paper"])


def test_an_entry_that_leaves_keeps_its_value_and_takes_it_up_again() -> None:
    adapter = DriftingDelta(torch.nn.Linear(3, 2, dtype=torch.float64), torch.tensor([0, 2, 5]))
    adapter.values.data = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    before = adapter.delta().clone()
    adapter.move(torch.tensor([1, 2, 4]), None)
    assert torch.equal(adapter.delta(), before) and adapter.values.tolist() == [0.0, 2.0, 0.0]
    x = torch.randn(4, 3, dtype=torch.float64)
    dense = torch.nn.functional.linear(x, adapter.weight + before, adapter.bias)
    torch.testing.assert_close(adapter(x), dense)
    adapter.move(torch.tensor([0, 1, 5]), None)
    assert torch.equal(adapter.delta(), before) and adapter.values.tolist() == [1.0, 0.0, 3.0]
    assert adapter.changed().tolist() == [0, 1, 2, 5]


def test_the_number_of_entries_that_have_changed_is_reported() -> None:
    run = train(attach(LIFT, {"rank": 1, "filter_rank": 1, "interval": 3}))
    trained = sum(len(adapter.values) for adapter in run.variant.adapters.values())
    moved = sum(int(torch.count_nonzero(adapter.delta())) for adapter in run.variant.adapters.values())
    assert trained < moved <= run.variant.report()["changed_entries"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 1}, "interval: 1, allowed: a whole number ≥ 2"),
        ({"profile": "official"}, "profile: 'official', allowed: paper, released"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LIFT(**settings)


def test_a_filter_rank_beyond_a_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"filter_rank: 32 for layer.0.fc1 of size 12×8, allowed: 1 … 8"):
        attach(LIFT, {})
