"""EVA: PEFT's components, ranks and training; an exact budget; inputs that layers share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.variants import oracles
from variants.eva import EVA
from variants.testing.toys import attach


def test_every_number_of_peft() -> None:
    oracle = oracles.load("eva_peft")
    model = oracle.model()
    variant = EVA(rank=1, rho=3.0, alpha=4, tau=0.999, batches=7)
    variant.attach(model)
    passes = oracles.toy_passes(oracle, model)
    seen = []
    given = variant.ranks_for

    def ranks_for(ratios):
        for layer, ratio in ratios.items():
            if oracle.arrays["svd/active"][len(seen)][oracles.LAYERS.index(layer)]:
                stored = torch.from_numpy(oracle.arrays[f"svd/explained_variance_ratio/{layer}"][len(seen)])
                torch.testing.assert_close(ratio, stored, rtol=1e-9, atol=1e-12)
        seen.append(given(ratios))
        return seen[-1]

    variant.ranks_for = ranks_for
    variant.before_training(passes)
    assert passes.count == len(seen) == int(oracle.arrays["n_svd_passes"])
    assert list(variant.ranks().values()) == oracle.arrays["rank"].tolist()
    parameters = {}
    for layer, adapter in variant.adapters.items():
        parameters |= {f"{layer}.lora_A": lambda a=adapter: a.A, f"{layer}.lora_B": lambda a=adapter: a.B}
    optimizer = oracles.optimizer(model, variant, lr=0.01)
    oracles.follow(oracle, model, variant, optimizer, 20, whole=True, parameters=parameters)


@pytest.mark.parametrize("budget", [60, 131, 300])
def test_a_budget_is_met_to_less_than_a_rank(budget: int) -> None:
    run = attach(EVA, {"budget": budget, "batches": 2, "passes": 3})
    assert budget - 20 < run.variant.effective_parameters() <= budget


def test_ranks_follow_the_variance_and_sum_to_the_same_number() -> None:
    run = attach(EVA, {"rank": 3, "batches": 2})
    ranks = run.variant.ranks()
    assert sum(ranks.values()) == 12 and len(set(ranks.values())) > 1


def test_passes_that_end_too_early_are_reported() -> None:
    assert attach(EVA, {"rank": 2, "tau": 0.999999, "passes": 2}).variant.report()["layers_not_converged"] > 0


def test_layers_with_one_input_share_its_components() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.v = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.q(x) + self.v(x)

    from variants.core.passes import Passes
    from variants.core.step import Loss

    torch.manual_seed(0)
    model, x = Pair(), torch.randn(4, 30, 6)
    variant = EVA(rank=2, rho=1.0, batches=4)
    variant.attach(model)
    passes = Passes(
        model,
        lambda n: iter([one] for one in x[:n]),
        lambda n: iter(()),
        lambda b: Loss(model(b).sum(), len(b)),
        lambda b: len(b),
    )
    variant.before_training(passes)
    assert variant.ranks() == {"q": 2, "v": 2}
    assert torch.equal(variant.adapters["q"].A, variant.adapters["v"].A)


def test_batches_with_too_few_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="batches: each has fewer tokens than the 8 components ask for"):
        variant_of_one_row()


def variant_of_one_row() -> None:
    oracle = oracles.load("eva_peft")
    model = oracle.model()
    variant = EVA(rank=4, rho=2.0, targets=["fc2"], passes=5)
    variant.attach(model)
    passes = oracles.toy_passes(oracle, model)
    passes.steps = lambda count: iter([[torch.arange(2)]] * count)
    variant.before_training(passes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": 0.5}, "rho: 0.5, allowed: a number ≥ 1"),
        ({"tau": 1.0}, "tau: 1.0, allowed: 0 ≤ tau < 1"),
        ({"rank": 3, "budget": 100}, "rank: 3 with budget: 100"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EVA(**settings)


def test_a_resumed_run_has_the_scales_of_the_ranks_that_its_passes_found():
    run = attach(EVA, {"rank": 3, "rho": 2.0, "scale_with_rank": False})
    assert len(set(run.variant.ranks().values())) > 1
    resumed = attach(EVA, {"rank": 3, "rho": 2.0, "scale_with_rank": False}, resumed=True).restore(run.snapshot())
    scales = ({name: adapter.scale for name, adapter in one.variant.adapters.items()} for one in (run, resumed))
    assert next(scales) == next(scales) and resumed.variant.ranks() == run.variant.ranks()
