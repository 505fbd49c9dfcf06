"""Dynamic-rank DoRA: scores, masks and training of the released code; what the paper's profile leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.variants import oracles
from variants.core.variant import Step
from variants.dynamic_dora import DynamicDoRA
from variants.testing.toys import attach, train


def test_every_number_of_the_released_code() -> None:
    oracle = oracles.load("dynamic_rank_dora")
    model = oracle.model()
    variant = DynamicDoRA(rank=3, target_rank=2, interval=5, profile="released")
    variant.plan(50)
    variant.attach(model)
    parameters = {}
    for name, adapter in variant.adapters.items():
        for stored, part in (("A", "A"), ("B", "B"), ("c", "e")):
            value = oracle.tensor(f"after_000/param/{name}.{stored}")
            getattr(adapter, part).data = value.clone().view_as(getattr(adapter, part))
            shape = value.shape
            parameters[f"{name}.{stored}"] = lambda a=adapter, p=part, s=shape: getattr(a, p).view(s)

    def watch(done: int, step: Step) -> None:
        assert variant.place(done, 50) == oracle.arrays["prune_step"][done - 1]
        for name, adapter in variant.adapters.items():
            after = oracle.arrays[f"c_after_step/{name}"][done - 1]
            np.testing.assert_allclose(adapter.e.detach(), after.reshape(-1), rtol=1e-9, atol=1e-12)
            score = oracle.arrays[f"score/{name}"][done - 1]
            np.testing.assert_allclose(variant._scores[name], score.reshape(-1), rtol=1e-9, atol=1e-12)

    optimizer = oracles.optimizer(model, variant, lr=0.01, weight_decay=0.01)
    oracles.follow(oracle, model, variant, optimizer, 50, max_norm=1.0, parameters=parameters, watch=watch)
    for name in variant.adapters:
        assert (~variant._kept[name]).tolist() == oracle.tensor(f"final_mask/{name}").bool().flatten().tolist()
    before = model(oracle.tensor("toy/X"))
    variant.on_train_end(Step(50, 50, optimizer, None))
    assert sum(variant.ranks().values()) == 6
    torch.testing.assert_close(model(oracle.tensor("toy/X")), before, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("settings", [{}, {"budget": 150}])
def test_the_papers_profile_frees_what_it_pruned(settings: dict) -> None:
    run = train(attach(DynamicDoRA, {"rank": 3, "target_rank": 2, "interval": 2, "end": 0.3, **settings}), 10)
    left = sum(adapter.A.shape[0] * adapter.cost for adapter in run.variant.adapters.values())
    target = settings.get("budget", 8 * 21)
    assert target - 21 < left <= target
    assert all(run.optimizer.state[a.A]["exp_avg"].shape == a.A.shape for a in run.variant.adapters.values())


def test_the_penalty_ends_with_the_pruning() -> None:
    run = attach(DynamicDoRA, {"rank": 3, "target_rank": 2, "interval": 2, "end": 0.3})
    penalized = []
    for index in range(1, 13):
        run.variant.on_step_begin(run.step(index))
        penalized.append(run.variant.penalty() is not None)
    last = max(i for i in range(1, 13) if run.variant.place(i, 12) <= run.variant.last(12))
    assert penalized == [index <= last for index in range(1, 13)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_rank": 13}, "target_rank: 13, allowed: at most rank, which is 12"),
        ({"start": 0.6}, r"end: 0.5, allowed: with start: 0.6 below 0.4"),
        ({"budget": 100, "profile": "released"}, "budget: 100 with profile: released, allowed: null"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicDoRA(**settings)


def test_a_run_too_short_to_prune_is_refused() -> None:
    with pytest.raises(ValueError, match=r"end: 0.5 leaves no step of 2 for pruning, allowed: less"):
        DynamicDoRA().plan(2)
