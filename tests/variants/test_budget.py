"""Equal budgets: what a method ends with is as near to the number asked for as whole ranks allow, and never above."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tests.variants.found import all_variants
from variants.adalora import AdaLoRA
from variants.core.allocation.budget import apportion, masks, spread, spread_priced, within
from variants.core.variant import AdapterVariant, field_names
from variants.dora import DoRA
from variants.dylora import DyLoRA
from variants.elalora import ElaLoRA
from variants.increlora import IncreLoRA
from variants.lora import LoRA
from variants.lora_xs import LoRAXS
from variants.sora import SoRA
from variants.svft import SVFT
from variants.testing import contract

WITH_BUDGET = [cls for cls in all_variants() if "budget" in field_names(cls)]

COSTS = {"query": 16, "value": 16, "up": 40, "down": 40}
MOST = dict.fromkeys(COSTS, 8)


def price(ranks: dict[str, int]) -> int:
    return sum(COSTS[name] * rank for name, rank in ranks.items())


@pytest.mark.parametrize("budget", [112, 113, 127, 128, 152, 300, 400, 895, 896])
def test_spread_fills_the_budget_as_well_as_one_further_rank_per_layer_can(budget: int) -> None:
    ranks = spread(COSTS, budget, MOST)
    low = min(ranks.values())
    assert max(ranks.values()) <= low + 1
    best = max(
        total
        for chosen in itertools.product((0, 1), repeat=4)
        if (total := price({n: low + c for n, c in zip(COSTS, chosen, strict=True)})) <= budget
        and low + max(chosen) <= 8
    )
    assert price(ranks) == best


def test_spread_gives_a_full_layer_no_more_and_the_others_what_is_left() -> None:
    assert spread({"small": 10, "large": 20}, 170, {"small": 2, "large": 9}) == {"small": 2, "large": 7}


@pytest.mark.parametrize("budget", [111, 897])
def test_a_budget_out_of_reach_is_an_error_with_the_range(budget: int) -> None:
    with pytest.raises(ValueError, match=rf"budget: {budget} parameters, allowed for these targets: 112 … 896"):
        spread(COSTS, budget, MOST)


def test_spread_priced_follows_a_price_that_is_not_in_proportion() -> None:
    ranks = spread_priced(lambda name, r: r * r, 50, {"a": 8, "b": 8, "c": 8})
    assert sorted(ranks.values()) == [4, 4, 4]  # 48; a fifth rank would cost 9
    assert sorted(spread_priced(lambda name, r: r * r, 60, {"a": 8, "b": 8, "c": 8}).values()) == [4, 4, 5]


def test_within_keeps_the_highest_scores_that_fit() -> None:
    scores = [torch.tensor([5.0, 1.0]), torch.tensor([4.0, 3.0])]
    assert within(scores, [10, 25], 50) == [[0, 1], [0]]  # 10 + 25, then 25 is too much, 10 fits
    assert within(scores, [10, 25], 9) == [[], []]
    kept = masks([[0, 1], [1]], [2, 2], torch.device("cpu"))
    assert [mask.tolist() for mask in kept] == [[True, True], [False, True]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_within_compares_no_score_that_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="scores: one is not finite"):
        within([torch.ones(2), torch.tensor([1.0, bad])], [1, 1], 3)


def test_within_breaks_ties_by_the_order_of_the_layers() -> None:
    assert within([torch.ones(2), torch.ones(2)], [1, 1], 3) == [[0, 1], [0]]


@pytest.mark.parametrize("budget", [1, 7, 99, 100])
def test_share_out_is_exact(budget: int) -> None:
    counts = apportion({"a": 3, "b": 1, "c": 1}, budget, {"a": 10, "b": 80, "c": 10})
    assert sum(counts.values()) == budget
    assert counts["a"] <= 10 and counts["c"] <= 10


def effective(cls: type[AdapterVariant], **params: object) -> tuple[int, int]:
    """(parameters in use after training on the contract's toy, the largest cost of one rank)."""
    run = contract.train(contract.attach(cls, params))
    assert isinstance(run.variant, AdapterVariant)
    found = run.variant.effective_parameters()
    return found, max(adapter.in_features + adapter.out_features + 1 for adapter in run.variant.adapters.values())


@pytest.mark.parametrize("budget", [90, 133, 200])
@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (LoRA, {}),
        (LoRA, {"init": "pissa"}),
        (LoRA, {"frozen_a": True}),
        (AdaLoRA, {"rank": 3, "target_rank": 2, "final_steps": 2}),
        (AdaLoRA, {"rank": 3, "target_rank": 2, "hard": True}),
        (IncreLoRA, {"top": 4}),
        (SoRA, {"final_steps": 2, "threshold": 0.0}),
        (SoRA, {"final_steps": 2, "threshold": 0.3}),
        (LoRAXS, {}),
        (DyLoRA, {}),
    ],
    ids=str,
)
def test_methods_meet_a_budget_to_less_than_one_rank(cls: type[AdapterVariant], params: dict, budget: int) -> None:
    found, largest = effective(cls, budget=budget, **params)
    assert budget - largest < found <= budget


def test_single_entries_meet_it_exactly() -> None:
    assert effective(SVFT, budget=101, pattern="random")[0] == 101


def test_the_largest_gates_survive_a_threshold_above_all_of_them_and_keep_their_order() -> None:
    run = contract.train(contract.attach(SoRA, {"budget": 150, "threshold": 50.0, "l1": 0.0}))
    assert run.variant.effective_parameters() > 150 - 21


def test_ranks_differ_between_layers_where_scores_decide() -> None:
    run = contract.train(contract.attach(AdaLoRA, {"rank": 6, "target_rank": 3, "budget": 200}))
    assert len(set(run.variant.ranks().values())) > 1


@pytest.mark.parametrize(
    ("cls", "params", "message"),
    [
        (LoRA, {"rank": 4}, "rank: 4 with budget: 300"),
        (LoRA, {"rank_pattern": {"fc1": 2}}, "rank_pattern: .* with budget: 300"),
        (IncreLoRA, {"target_rank": 4}, "target_rank: 4 with budget: 300"),
        (ElaLoRA, {"rank": 4}, "rank: 4 with budget: 300"),
        (ElaLoRA, {"profile": "released"}, "budget: 300 with profile: released"),
        (DoRA, {"rank": 4}, "rank: 4 with budget: 300"),
        (DyLoRA, {"eval_rank": 4}, "eval_rank: 4 with budget: 300"),
        (AdaLoRA, {"profile": "released"}, "budget: 300 with profile: released"),
        (SoRA, {"profile": "released"}, "budget: 300 with profile: released"),
        (LoRAXS, {"rank": 3}, "rank: 3 with budget: 300"),
        (SVFT, {"pattern": "banded", "off_diagonals": 1}, "off_diagonals: 1 with budget: 300"),
    ],
)
def test_what_the_budget_decides_can_not_be_set_as_well(cls: type[AdapterVariant], params: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(budget=300, **params)


def test_every_method_with_adapters_of_its_own_takes_one() -> None:
    without = {c.__name__ for c in all_variants() if issubclass(c, AdapterVariant) and c not in WITH_BUDGET}
    assert without == {"Template"}


@pytest.mark.parametrize("cls", WITH_BUDGET)
@pytest.mark.parametrize("budget", [0, -5, 1.5, True])
def test_a_budget_is_a_whole_number(cls: type[AdapterVariant], budget: object) -> None:
    with pytest.raises(ValueError, match=r"budget: .*, allowed: a whole number(, null| ≥ 1)"):
        cls(budget=budget)
