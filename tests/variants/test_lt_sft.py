"""LT-SFT: phases, masks, rewinding and training of the released code."""

from __future__ import annotations

import pytest
import torch

from tests.variants import oracles
from variants.core.variant import Step
from variants.lt_sft import LTSFT
from variants.testing.toys import attach, train


def test_every_number_of_the_released_code() -> None:
    oracle = oracles.load("lt_sft")
    model = oracle.model()
    variant = LTSFT(density=0.5, full_steps=20, l1=0.1)
    variant.plan(60)
    variant.attach(model)
    parameters = {}
    for name, adapter in variant.adapters.items():
        parameters[f"{name}.weight"] = lambda a=adapter: a.weight + a.delta_weight()
        parameters[f"{name}.bias"] = lambda a=adapter: a.bias + a.bias_delta()
    changes = {}
    choose = variant._choose

    def chosen(optimizer):
        changes.update({name: (a.delta().abs(), a.bias_delta().abs()) for name, a in variant.adapters.items()})
        choose(optimizer)

    variant._choose = chosen

    def watch(done: int, step: Step) -> None:
        if done == 20:
            for name, adapter in variant.adapters.items():
                oracle.near(changes[name][0], f"change/0/{name}.weight")
                oracle.near(changes[name][1], f"change/0/{name}.bias")
                for part, indices in (("weight", adapter.indices), ("bias", adapter.bias_indices)):
                    stored = oracle.tensor(f"mask/0/{name}.{part}").flatten().nonzero().flatten()
                    assert torch.equal(indices, stored), (name, part)
                oracle.close(adapter.weight + adapter.delta_weight(), f"rewound/0/{name}.weight")
            assert variant.effective_parameters() == int(oracle.arrays["k/0"]) == 82

    optimizer = oracles.optimizer(model, variant, lr=0.01)
    # The stored states "after 20" are those before the mask; they are compared as the changes.
    del oracle.arrays["after_020/output"]
    oracles.follow(oracle, model, variant, optimizer, 60, parameters=parameters, watch=watch)


def test_the_head_and_the_entries_are_rewound_with_new_moments() -> None:
    run = attach(LTSFT, {"density": 0.3, "full_steps": 4})
    head = run.toy.head.weight.detach().clone()
    train(run, 3)
    assert not torch.equal(run.toy.head.weight, head)
    train(run, 4)
    assert torch.equal(run.toy.head.weight, head) and not run.optimizer.state
    assert not any(a.values.any() or a.bias_values.any() for a in run.variant.adapters.values())


def test_a_mask_grows_over_iterations_and_keeps_what_it_learned() -> None:
    run = attach(LTSFT, {"density": 0.2, "full_steps": 2, "iterations": 2, "l1": 0.0})
    train(run, 6)
    first = {name: dict(zip(a.indices.tolist(), a.values.tolist(), strict=True)) for name, a in _entries(run)}
    train(run, 8)
    for name, adapter in run.variant.adapters.items():
        now = dict(zip(adapter.indices.tolist(), adapter.values.tolist(), strict=True))
        kept = {at: value for at, value in first[name].items() if at in now}
        assert kept.keys() <= now.keys()
    total = sum(len(a.values) + len(a.bias_values) for a in run.variant.adapters.values())
    assert total == int(0.2 * 424)


def _entries(run):
    return run.variant.adapters.items()


@pytest.mark.parametrize("budget", [40, 101])
def test_a_budget_is_met_exactly(budget: int) -> None:
    assert train(attach(LTSFT, {"budget": budget, "full_steps": 3})).variant.effective_parameters() == budget


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 1.5}, "density: 1.5, allowed: 0 < density ≤ 1"),
        ({"l1": -1.0}, "l1: -1.0, allowed: a number ≥ 0"),
        ({"full_steps": 0}, "full_steps: 0, allowed: a whole number ≥ 1"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LTSFT(**settings)


def test_phases_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"full_steps: 30, allowed: fewer than the 30 steps of an iteration"):
        LTSFT(full_steps=30, iterations=2).plan(60)
