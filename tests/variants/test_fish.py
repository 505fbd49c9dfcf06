"""FISH mask: importances, masks and training of the released code."""

from __future__ import annotations

import pytest
import torch

from tests.variants import oracles
from variants.core.handover import CannotHandOver
from variants.fish import FISH
from variants.testing.toys import HEAD, attach, train

EARLY = "tests.variants.optimizers.EarlyEps"


def chosen(oracle: oracles.Oracle, **settings) -> tuple[FISH, torch.nn.Module, dict[str, torch.Tensor]]:
    """The variant after its passes, the model, and the information that it chose by."""
    model, seen = oracle.model(), {}
    variant = FISH(density=0.2, samples=10, **settings)
    variant.attach(model)
    information = variant.information

    def kept(passes):
        seen.update(information(passes))
        return seen

    variant.information = kept
    variant.before_training(oracles.toy_passes(oracle, model, rows=oracle.arrays["samples"]))
    return variant, model, seen


@pytest.mark.parametrize("fisher", ["empirical", "true"])
@pytest.mark.parametrize("measure", ["square", "absolute"])
def test_importances_and_masks_of_the_released_code(fisher: str, measure: str) -> None:
    oracle = oracles.load("fish_mask")
    variant, _, information = chosen(oracle, fisher=fisher, measure=measure)
    method = f"{'label' if fisher == 'empirical' else 'expect'}-{measure}"
    for name, adapter in variant.adapters.items():
        oracle.close(information[name], f"importance/{method}/{name}.weight")
        oracle.close(information[f"{name}.bias"], f"importance/{method}/{name}.bias")
        for part, indices in (("weight", adapter.indices), ("bias", adapter.bias_indices)):
            stored = oracle.tensor(f"mask/{method}/{name}.{part}").flatten().nonzero().flatten()
            assert torch.equal(indices, stored), (name, part)


def test_trajectory_of_the_released_code() -> None:
    oracle = oracles.load("fish_mask")
    variant, model, _ = chosen(oracle)
    parameters = {}
    for name, adapter in variant.adapters.items():
        parameters[f"{name}.weight"] = lambda a=adapter: a.weight + a.delta_weight()
        parameters[f"{name}.bias"] = lambda a=adapter: a.bias + a.bias_delta()
    optimizer = oracles.optimizer(model, variant, lr=0.01, kind=EARLY)
    oracles.follow(oracle, model, variant, optimizer, 60, max_norm=0.5, parameters=parameters)


def test_a_budget_is_met_exactly_and_the_rest_never_moves() -> None:
    run = train(attach(FISH, {"budget": 101, "samples": 8}))
    assert run.variant.effective_parameters() == 101
    assert sum(int(torch.count_nonzero(a.delta())) for a in run.variant.adapters.values()) <= 101


def test_what_no_low_rank_adapter_holds_is_merged_alone() -> None:
    run = train(attach(FISH, {"density": 0.4, "samples": 8}))
    assert any(len(adapter.bias_values) for adapter in run.variant.adapters.values())
    before = run.output()
    with pytest.raises(CannotHandOver, match="a trained bias is part of no low-rank product; allowed: merged"):
        run.variant.to_peft(run.model, HEAD)
    run.model = run.variant.merged(run.model)
    torch.testing.assert_close(run.output(), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0}, "density: 0.0, allowed: 0 < density ≤ 1"),
        ({"fisher": "both"}, "fisher: 'both', allowed: empirical, true"),
        ({"measure": "cube"}, "measure: 'cube', allowed: square, absolute"),
        ({"density": 0.1, "budget": 3}, "density: 0.1 with budget: 3"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FISH(**settings)


def test_a_budget_beyond_the_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="budget: 100000 parameters, allowed for these targets: 1 … 424"):
        attach(FISH, {"budget": 100_000})
