"""IGU-LoRA: coefficients, scores, masks and training of the released pruning stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.variants import oracles
from variants.core.variant import Step
from variants.igulora import IGULoRA
from variants.testing.toys import Toy, attach, train

SCHEDULE = {"initial_steps": 2, "final_steps": 4, "interval": 2}


class Targeted(IGULoRA):
    """With the target of the stored run, which is no multiple of the mean price."""

    target = 10


def test_every_number_of_the_released_code() -> None:
    oracle = oracles.load("igulora")
    model = oracle.model()
    variant = Targeted(
        rank=4, target_rank=2, initial_steps=5, final_steps=10, interval=5, prices={"fc2": 3.21}, orthogonality=2.0,
        profile="released",
    )  # fmt: skip
    variant.attach(model)
    coefficients = iter(oracle.arrays["coefficient"].flatten().tolist())
    variant.drawn = lambda generator: next(coefficients)
    parameters = {}
    for name, adapter in variant.adapters.items():
        for part in "AB":
            getattr(adapter, part).data = oracle.tensor(f"after_000/param/{name}.lora_{part}").clone()
            parameters[f"{name}.lora_{part}"] = lambda a=adapter, p=part: getattr(a, p)
        parameters[f"{name}.lora_E"] = lambda a=adapter: a.e[:, None]

    def watch(done: int, step: Step) -> None:
        nonzero = [int(torch.count_nonzero(a.e)) for a in variant.adapters.values()]
        assert nonzero == oracle.arrays["nonzero_E"][done - 1].tolist()
        for name, score in variant.scores().items():
            np.testing.assert_allclose(score, oracle.arrays[f"score/{name}"][done - 1], rtol=1e-9)
            stored = oracle.arrays[f"E_after_step/{name}"][done - 1]
            np.testing.assert_allclose(variant.adapters[name].e.detach(), stored, rtol=1e-9, atol=1e-12)

    optimizer = oracles.optimizer(model, variant, lr=0.02, weight_decay=0.01)
    oracles.follow(oracle, model, variant, optimizer, 40, parts=2, max_norm=1.6, parameters=parameters, watch=watch)
    before = model.eval()(oracle.tensor("toy/X"))
    variant.on_train_end(Step(40, 40, optimizer, None))
    assert list(variant.ranks().values()) == [2, 2, 1]
    torch.testing.assert_close(model(oracle.tensor("toy/X")), before, rtol=1e-12, atol=1e-14)


def test_coefficients_are_those_of_the_step_and_evaluation_has_none() -> None:
    run = attach(IGULoRA, {"rank": 4, "target_rank": 2, **SCHEDULE})
    drawn = []
    for _ in range(2):
        run.variant.on_step_begin(run.step(3))
        drawn.append([run.variant.penalty() and a.factor for a in run.variant.adapters.values() for _ in range(3)])
    assert drawn[0] == drawn[1]
    adapter = next(iter(run.variant.adapters.values()))
    adapter.factor = 0.25
    assert torch.equal(adapter.eval().diagonal(), adapter.e)
    assert torch.equal(adapter.train().diagonal(), adapter.e * 0.25)


@pytest.mark.parametrize("budget", [101, 150])
def test_a_budget_is_met_to_less_than_a_rank(budget: int) -> None:
    run = train(attach(IGULoRA, {"rank": 3, "target_rank": 2, "budget": budget, **SCHEDULE}))
    assert budget - 21 < run.variant.effective_parameters() <= budget


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_rank": 13}, "target_rank: 13, allowed: at most rank, which is 12"),
        ({"profile": "released", "alpha": 8.0}, "alpha: 8.0 with profile: released, allowed: 16"),
        ({"prices": {"fc1": 0.0}}, "prices: 0.0, allowed: a number > 0"),
        ({"final_steps": 0}, "final_steps: 0, allowed: a whole number ≥ 1"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IGULoRA(**settings)


def test_a_price_of_no_layer_is_refused():
    with pytest.raises(ValueError, match="prices: no adapted layer ends in 'fc9'"):
        IGULoRA(prices={"fc1": 2.0, "fc9": 3.21}).check(Toy(), ("head",))
