"""GoRA: ranks, start and training of the released code; the paper's start, and its budget."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.variants import oracles
from variants.gora import GoRA
from variants.testing.toys import Toy, attach, data, passes

PATHS = {"gora": "released", "gora_minus_sign": "released_2025_07"}
SETTINGS = {"rank": 2, "alpha": 4, "min_rank": 1, "max_rank": 4, "batches": 5, "size": "identity"}


@pytest.mark.parametrize("name", PATHS)
def test_every_number_of_the_released_code(name: str) -> None:
    oracle = oracles.load(name)
    model = oracle.model()
    variant = GoRA(**SETTINGS, profile=PATHS[name])
    variant.attach(model)
    variant.drawn = lambda layer, like: oracle.tensor(f"after_000/param/{layer}.weight_a")
    variant.before_training(oracles.toy_passes(oracle, model))
    assert list(variant.ranks().values()) == oracle.arrays["rank"].tolist()
    oracle.close([adapter.scale for adapter in variant.adapters.values()], "scaling")
    assert variant.effective_parameters() == int(oracle.arrays["actual_trainable"])
    parameters = {}
    for layer, adapter in variant.adapters.items():
        parameters[f"{layer}.weight_a"] = lambda a=adapter: a.A
        parameters[f"{layer}.weight_b"] = lambda a=adapter: a.B
    optimizer = oracles.optimizer(model, variant, lr=0.01)
    oracles.follow(oracle, model, variant, optimizer, 30, whole=True, parameters=parameters)


NAMES = {
    "union_mean": "product_mean",
    "union_frobenius_norm": "product_norm",
    "union_2ord_norm": "product_rows",
    "union_nuc_norm": "product_nuclear",
    "grad_nuc_norm": "gradient_nuclear",
    "grad_frobenius_norm": "gradient_norm",
    "grad_mean": "gradient_mean",
    "grad_entropy": "gradient_entropy",
}


@pytest.mark.parametrize("row", [row for row in range(22) if row != 19])  # 19: no clamp
def test_ranks_of_the_released_code_for_other_options(row: int) -> None:
    oracle = oracles.load("gora")
    given = json.loads((oracles.FOLDER / "gora" / "oracle.json").read_text())["table_rows"][row]
    settings = {**SETTINGS, "profile": "released"}
    settings["rank"] = given.get("lora_rank", 2)
    settings["min_rank"], settings["max_rank"] = given.get("gora_min_rank", 1), given.get("gora_max_rank", 4)
    settings["importance"] = NAMES[given.get("gora_importance_type", "union_mean")]
    settings["size"] = given.get("gora_features_func") or "identity"
    strategy = given.get("gora_allocate_stretagy", "moderate")
    settings["rounding"] = {"moderate": "round", "radical": "ceil", "conserved": "floor"}[strategy]
    settings["root"] = given.get("gora_scale_importance", False)
    if given.get("gora_softmax_importance"):
        settings["temperature"] = given.get("gora_temperature", 0.5)
    variant, model = GoRA(**settings), oracle.model()
    variant.attach(model)
    variant._most = dict.fromkeys(variant.adapters, settings["max_rank"])  # the code lets a rank exceed its layer's
    found = {name: variant.scored(name, oracle.tensor(f"mean_gradient/{name}")) for name in variant.adapters}
    oracle.close([float(score) for score in found.values()], f"table/{row:02d}/importance")
    ranks = variant.ranks_for({name: float(score) for name, score in found.items()})
    assert list(ranks.values()) == oracle.arrays[f"table/{row:02d}/rank"].tolist()


def test_the_papers_start_lowers_the_loss_and_the_released_one_raises_it() -> None:
    losses = {}
    for profile in ("paper", "released"):
        params = {"rank": 3, "min_rank": 1, "batches": 4, "start_lr": 0.02, "profile": profile}
        run = attach(GoRA, params, torch.float64)
        x, y = data(torch.float64)
        with torch.no_grad():
            losses[profile] = float((run.model(x) - y).square().mean())
            with run.variant.disabled():
                losses["base"] = float((run.model(x) - y).square().mean())
    assert losses["paper"] < losses["base"] < losses["released"]


def test_the_start_is_the_step_against_the_gradient_that_fits_it_best() -> None:
    run = attach(GoRA, {"rank": 3, "min_rank": 1, "batches": 2}, torch.float64)
    toy = Toy(torch.float64)
    fresh = GoRA(rank=3, min_rank=1, batches=2)
    fresh.attach(toy, ("head",))
    taken = passes(toy, torch.float64)
    gradients = [taken.gradients(fresh.adapters, batch) for batch in taken.steps(2)]
    for name, adapter in run.variant.adapters.items():
        gradient = (gradients[0][name] + gradients[1][name]) / 2
        fit = torch.linalg.lstsq(adapter.A.detach().T, gradient.T).solution.T
        factor = -0.05 / np.sqrt(adapter.rank / adapter.in_features)
        torch.testing.assert_close(adapter.delta().detach(), factor * fit @ adapter.A.detach(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("budget", [160, 231, 400])
def test_a_budget_is_met_to_less_than_a_rank(budget: int) -> None:
    run = attach(GoRA, {"budget": budget, "min_rank": 1, "max_rank": 8, "batches": 2})
    assert budget - 20 < run.variant.effective_parameters() <= budget


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_rank": 4, "max_rank": 3}, "max_rank: 3, allowed: at least min_rank, which is 4"),
        ({"importance": "best"}, "importance: 'best', allowed: product_mean, "),
        ({"budget": 100, "profile": "released"}, "budget: 100 with profile: released, allowed: null"),
        ({"temperature": 0.0}, "temperature: 0.0, allowed: a number > 0"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GoRA(**settings)


def test_a_layer_smaller_than_the_least_rank_is_refused() -> None:
    with pytest.raises(ValueError, match=r"min_rank: 9 for layer.0.fc1 of size 12×8, allowed: 1 … 8"):
        attach(GoRA, {"min_rank": 9})
