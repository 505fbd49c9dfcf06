"""FlexLoRA: scores, rounds and training of the released code; budgets of the paper's profile."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.variants import oracles
from variants.core.allocation.layer_scores import spectral_entropy
from variants.core.variant import Step
from variants.flexlora import PROFILES, FlexLoRA
from variants.testing.toys import STEPS, attach, train

SCHEDULE = {"initial_steps": 1, "final_steps": 2, "interval": 3}


def test_every_number_of_the_released_code() -> None:
    oracle = oracles.load("flexlora")
    model = oracle.model()
    variant = FlexLoRA(
        rank=3, alpha=8, exchange=1, initial_steps=5, final_steps=10, interval=5, orthogonality=0.1, profile="released"
    )
    variant.plan(40)
    variant.attach(model)
    parameters, now = {}, 0
    for name, adapter in variant.adapters.items():
        for part in "AB":
            getattr(adapter, part).data = oracle.tensor(f"after_000/param/{name}.lora_{part}").clone()
            parameters[f"{name}.lora_{part}"] = lambda a=adapter, p=part: getattr(a, p)
        parameters[f"{name}.lora_E"] = lambda a=adapter: a.e[:, None]

    def drawn(name, adapter):
        return tuple(oracle.tensor(f"reinit/{now:03d}/{name}.{part}") for part in "AB")

    scores = variant.scores

    def checked():
        found = scores()
        np.testing.assert_allclose(list(found.values()), oracle.arrays["importance"][now], rtol=1e-9)
        return found

    variant.drawn, variant.scores = drawn, checked

    def watch(done: int, step: Step) -> None:
        nonlocal now
        assert list(variant.ranks().values()) == oracle.arrays["rank"][done - 1].tolist()
        now = done

    optimizer = oracles.optimizer(model, variant, lr=0.02, kind="tests.variants.optimizers.EarlyEps", eps=1e-6)
    oracles.follow(oracle, model, variant, optimizer, 40, whole=True, parameters=parameters, watch=watch)
    variant.on_train_end(Step(40, 40, optimizer, None))


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_score_of_the_released_code(number: int, dtype: torch.dtype) -> None:
    oracle = oracles.load("flexlora")
    found = float(spectral_entropy(oracle.tensor(f"probe/{number}/E").to(dtype)))
    stored = float(oracle.arrays[f"probe/{number}/importance_f{8 * dtype.itemsize}"])
    if math.isnan(stored):
        assert not math.isfinite(found)
    else:
        assert found == pytest.approx(stored, rel=1e-6 if dtype == torch.float32 else 1e-12)


def test_profiles_order_scores_that_are_not_finite() -> None:
    odd = torch.tensor([math.nan, -math.inf, 0.5])
    assert PROFILES["paper"].scored(odd).tolist() == [0.0, 0.0, 0.5]
    assert PROFILES["released"].scored(odd).tolist() == [math.inf, -math.inf, 0.5]


def test_b_of_both_profiles() -> None:
    paper, released = (FlexLoRA(schedule="cubic", interval=1, profile=p) for p in ("paper", "released"))
    assert [paper.moved(t, 41) for t in (0, 1, 10, 20, 30)] == [0, 4, 2, 0, 0]
    assert [released.moved(t, 41) for t in (0, 1, 10, 20, 30)] == [0, 4, 4, 4, 2]


def test_the_papers_profile_removes_the_smallest_size_and_the_released_one_the_most_negative() -> None:
    e = torch.tensor([-3.0, 0.1, 2.0])
    assert PROFILES["paper"].smallest(e) == 1 and PROFILES["released"].smallest(e) == 0


def test_other_parameters_keep_their_moments_in_the_papers_profile_alone() -> None:
    for profile, steps in (("paper", 6), ("released", 1)):
        run = train(attach(FlexLoRA, {"rank": 3, "exchange": 1, "profile": profile, **SCHEDULE}), 6)
        assert run.variant._rounds == 1 and sum(run.variant.ranks().values()) == 12
        assert float(run.optimizer.state[run.toy.head.weight]["step"]) == steps


@pytest.mark.parametrize("budget", [170, 235, 300])
def test_a_budget_holds_through_all_rounds(budget: int) -> None:
    run = attach(FlexLoRA, {"budget": budget, "exchange": 2, **SCHEDULE})
    for index in range(1, STEPS + 1):
        train(run, index)
        assert budget - 21 <= run.variant.effective_parameters() <= budget


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 1}, "rank: 1, allowed: a whole number ≥ 2"),
        ({"schedule": "linear"}, "schedule: 'linear', allowed: constant, cubic"),
        ({"exchange": 5}, "exchange: 5, allowed: at most the 4 adapted layers"),
        ({"budget": 100, "profile": "released"}, "budget: 100 with profile: released, allowed: null"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(FlexLoRA, {"exchange": 1, **SCHEDULE, **settings})
