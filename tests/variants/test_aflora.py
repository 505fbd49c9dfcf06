"""AFLoRA: scores, freezing and training of the released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.variants import oracles
from variants.aflora import AFLoRA
from variants.core.variant import Step
from variants.testing.toys import attach, train

NAMES = [f"{layer}.{matrix}" for layer in oracles.LAYERS for matrix in "AB"]


def test_every_number_of_the_released_code() -> None:
    oracle = oracles.load("aflora")
    model = oracle.model()
    variant = AFLoRA(rank=4, initial_steps=10, final_steps=20, interval=4)
    variant.plan(60)
    variant.attach(model)
    parameters = {}
    for name, adapter in variant.adapters.items():
        for part in "ABdb":
            getattr(adapter, part).data = oracle.tensor(f"after_000/param/{name}.{part}").clone()
            parameters[f"{name}.{part}"] = lambda a=adapter, p=part: getattr(a, p)
    assert [name in variant.trained() for name in NAMES] == oracle.arrays["trainable_at_start"].astype(bool).tolist()

    def watch(done: int, step: Step) -> None:
        t = done - 1
        assert [name in variant.trained() for name in NAMES] == oracle.arrays["trainable"][t].astype(bool).tolist()
        if not oracle.arrays["stopped"][t]:
            keeps, masked = variant.keeps(t, 60)
            np.testing.assert_allclose(keeps, oracle.arrays["keep_ratio"][t], rtol=1e-12)
            assert masked == bool(oracle.arrays["masked"][t])
        for number, name in enumerate(NAMES):
            if name in variant._mean:
                mean = float((variant._mean[name] * variant._uncertainty[name]).mean())
                np.testing.assert_allclose(mean, oracle.arrays["mean_score"][t, number], rtol=1e-9)
                if (key := f"importance/{t:03d}/window/{name}") in oracle.arrays:
                    oracle.near(variant._window[name], key)

    optimizer = oracles.optimizer(model, variant, lr=0.02, weight_decay=0.1)
    oracles.follow(oracle, model, variant, optimizer, 60, max_norm=0.4, parameters=parameters, watch=watch)
    assert variant.effective_parameters() == 3 * 4 + 8 + 8 + 4


def test_a_frozen_matrix_moves_no_more_and_vectors_train_on() -> None:
    run = train(attach(AFLoRA, {"rank": 2, "initial_steps": 2, "final_steps": 4, "interval": 2}), 10)
    assert not run.variant.trained()
    before = {name: (a.A.detach().clone(), a.d.detach().clone()) for name, a in run.variant.adapters.items()}
    train(run)
    for name, adapter in run.variant.adapters.items():
        assert torch.equal(adapter.A, before[name][0]) and not torch.equal(adapter.d, before[name][1])


@pytest.mark.parametrize("budget", [55, 60])
def test_a_budget_counts_what_is_trained_at_the_end(budget: int) -> None:
    run = train(attach(AFLoRA, {"budget": budget, "initial_steps": 2, "final_steps": 4, "interval": 2}))
    assert run.variant.effective_parameters() == budget


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"final_steps": 1}, "final_steps: 1, allowed: a whole number ≥ 2"),
        ({"beta1": 1.0}, "beta1: 1.0, allowed: 0 ≤ beta1 < 1"),
        ({"rank": 2, "budget": 60}, "rank: 2 with budget: 60"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AFLoRA(**settings)
