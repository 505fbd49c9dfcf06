"""The contract notices what it should: every promise has a variant that breaks it, and is caught at it."""

from __future__ import annotations

import re
import shutil
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from tests.variants.broken import (
    ActsInSecret,
    ActsInTheForwardPass,
    ActsOnEvaluations,
    CanNotBeDisabled,
    Counts,
    CountsEvaluations,
    CountsItsFirstRank,
    DrawsFromTheClock,
    ForgetsItsState,
    ForgotTheDecorator,
    GrowsInBetween,
    GrowsWhereNothingDecays,
    HandsOverAnother,
    HasAFieldThatNoSettingTries,
    InHalfPrecision,
    KeepsAnotherValue,
    LeavesItsDecayOpen,
    LosesItsState,
    MergesElsewhere,
    Miscounts,
    MissesItsBudget,
    MovesTheBase,
    NeverFinal,
    NeverLearns,
    NoDocstring,
    Prunes,
    RefusesEarly,
    RefusesLate,
    ReportsStaleRanks,
    ReportsTooMuch,
    SaysMoreThanThereIs,
    ScoresInTheBackwardPass,
    StartsElsewhere,
    TakesAnything,
    TakesTheLastBatch,
    Unlike,
)
from tests.variants.found import CONF, yaml_faults
from variants.core.variant import Variant
from variants.lora import LoRA
from variants.testing import contract
from variants.testing.contract import CHECKS, ON_EVERY_KIND

BROKEN: list[tuple[type[Variant], dict[str, Any], Callable[..., None], str]] = [
    (NoDocstring, {}, contract.says_what_it_is, "the class has no docstring"),
    (HasAFieldThatNoSettingTries, {}, contract.says_what_it_is, "not its own, and says nothing of extra"),
    (TakesAnything, {}, contract.is_set_by_its_fields, "name_, which is no field, is accepted"),
    (ForgotTheDecorator, {}, contract.is_set_by_its_fields, "extra: no field, for the class lacks @dataclass"),
    (KeepsAnotherValue, {}, contract.is_set_by_its_fields, "rank was set to 2 and is 1"),
    (ActsInSecret, {}, contract.acts_in_its_hooks_alone, "the card's Hooks leave out on_update"),
    (ActsInTheForwardPass, {}, contract.acts_in_its_hooks_alone, r"passes of step 2 changed layer.0.fc1.B, outside"),
    (StartsElsewhere, {}, contract.starts_at_the_base_model, "the first output differs"),
    (MovesTheBase, {}, contract.leaves_the_base_weights, r"frozen weights moved: \['layer.0.fc1.base.weight'\]"),
    (NeverLearns, {}, contract.trains_the_head, "the head does not move"),
    (Miscounts, {}, contract.counts_by_formula, "closed_form.. says 80, trainable are 160"),
    (
        Prunes,
        {"adapter_class": CountsItsFirstRank},
        contract.counts_by_formula,
        "fc1: closed_form.. says 40 at the end",
    ),
    (SaysMoreThanThereIs, {}, contract.holds_its_budget, "effective_parameters.. says 161 of 160 after step 1"),
    (GrowsInBetween, {}, contract.holds_its_budget, "240 parameters are in use after step 4, at the start and at the"),
    (
        MissesItsBudget,
        {"budget": 150, "by": 30},
        contract.holds_its_budget,
        "180 parameters are in use after step 1, al",
    ),
    (MissesItsBudget, {"budget": 150, "by": -30}, contract.holds_its_budget, "a rank more would fit"),
    (NeverFinal, {}, contract.holds_its_budget, "is_final_form.. is False after the last step"),
    (Prunes, {"optimizer": False}, contract.keeps_the_optimizer_in_step, "after step 6 .*fc1.A is trainable and in no"),
    (LeavesItsDecayOpen, {}, contract.says_what_decays, "says neither True nor False of layer.0.fc1.B"),
    (GrowsWhereNothingDecays, {}, contract.says_what_decays, "after step 3 layer.0.fc1.B is in a group for which"),
    (ReportsTooMuch, {}, contract.reports_the_rank_of_the_update, "layer.0.fc1: rank 2 reported, ΔW has 1"),
    (ReportsStaleRanks, {}, contract.reports_the_rank_of_the_update, "ranks.. says 2 after step 6, its adapter"),
    (CanNotBeDisabled, {}, contract.can_be_disabled, "disabled.. does not give the base model"),
    (MergesElsewhere, {}, contract.merges, "merged output differs"),
    (HandsOverAnother, {}, contract.goes_out_as_factors, "as_product.. is not ΔW"),
    (ForgetsItsState, {}, contract.saves_and_loads, "the loaded model's output differs"),
    (LosesItsState, {}, contract.saves_and_loads, "the loaded variant's state differs"),
    (ForgetsItsState, {}, contract.resumes_bit_for_bit, "the loss of step 2 differs"),
    (DrawsFromTheClock, {}, contract.repeats_with_a_seed, "two runs with the same seed differ"),
    (Counts, {}, contract.repeats_with_a_seed, "gradient checkpointing changes training"),
    (Counts, {"adapter_class": CountsEvaluations}, contract.repeats_with_a_seed, "evaluation between steps changes"),
    (ActsOnEvaluations, {}, contract.repeats_with_a_seed, "evaluation between steps changes"),
    (TakesTheLastBatch, {}, contract.accumulates, "two half batches give another model"),
    (ScoresInTheBackwardPass, {}, contract.forgets_a_step_that_is_left_out, "left out changed the weights"),
    (InHalfPrecision, {}, contract.trains_above_bfloat16, "parameters in half precision"),
    (NeverLearns, {}, contract.lowers_the_loss, "the loss does not fall"),
]


@pytest.fixture
def in_a_file(monkeypatch: pytest.MonkeyPatch) -> Callable[..., type[Variant]]:
    """Makes a class one of a module with a card."""

    def placed(cls: type[Variant], card: str | None) -> type[Variant]:
        module = types.ModuleType("file_of_a_method", card)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(cls, "__module__", module.__name__)
        setattr(module, cls.__name__, cls)
        return cls

    return placed


CARD = """A method.

Paper     Somebody 2024, arXiv 2401.00001.
Hooks     none.
Cost      nothing.
Known     nothing.
"""


@pytest.mark.parametrize(
    ("cls", "params", "check", "message"), BROKEN, ids=[f"{case[0].__name__} {case[2].__name__}" for case in BROKEN]
)
def test_a_broken_variant_is_noticed(cls, params, check, message, in_a_file) -> None:
    settings = params if "budget" in params else {"rank": 2, **params}
    with pytest.raises(AssertionError, match=message):
        check(in_a_file(cls, CARD), settings)


def test_every_check_has_a_variant_that_breaks_it() -> None:
    assert {check for _, _, check, _ in BROKEN} == set(CHECKS)
    assert set(ON_EVERY_KIND) < set(CHECKS)


@pytest.mark.parametrize(
    ("card", "check", "message"),
    [
        (None, contract.says_what_it_is, "the module's docstring is no method card"),
        (CARD.replace("Cost", "Case"), contract.says_what_it_is, "the card names no cost"),
        (CARD.replace("arXiv 2401.00001", "in preparation"), contract.says_what_it_is, "the card names no source"),
        (CARD.replace("Hooks", "Books"), contract.acts_in_its_hooks_alone, "the card has no Hooks"),
        (
            CARD.replace("none", "penalty"),
            contract.acts_in_its_hooks_alone,
            "the card's Hooks name penalty, which does nothing",
        ),
    ],
)
def test_a_card_that_lacks_something_is_noticed(card, check, message, in_a_file) -> None:
    with pytest.raises(AssertionError, match=message):
        check(in_a_file(Unlike, card), {"rank": 2})


def test_a_method_without_settings_to_try_is_noticed(in_a_file, monkeypatch) -> None:
    monkeypatch.setattr(Unlike, "test_params", classmethod(lambda cls: []))
    with pytest.raises(AssertionError, match=r"test_params\(\) is empty"):
        contract.says_what_it_is(in_a_file(Unlike, CARD), {"rank": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("variants.lora.LoRA", "variants.lora.Lora"), "no file in .* has _target_: variants"),
        (lambda text: text.replace("alpha: 16\n", ""), r"lora.yaml: alpha is in the YAML or in the class, and not in"),
        (lambda text: text + "\nextra: 1\n", r"lora.yaml: extra is in the YAML or in the class, and not in both"),
        (lambda text: text.replace("rank: 8", "rank: 4"), r"lora.yaml: rank is 4, the class's default is 8"),
    ],
)
def test_a_yaml_that_lacks_something_is_noticed(change, message, tmp_path) -> None:
    shutil.copy(CONF / "lora.yaml", tmp_path)
    assert yaml_faults(LoRA, tmp_path) is None
    path = tmp_path / "lora.yaml"
    path.write_text(change(path.read_text()))
    assert re.match(message, yaml_faults(LoRA, tmp_path) or "nothing")


@pytest.mark.parametrize(
    ("cls", "params", "card", "message"),
    [
        (RefusesLate, {}, CARD + "Embedding", r"it is refused by attach\(\) and not by check\(\)"),
        (RefusesEarly, {}, CARD, "the card does not say that Embedding is refused"),
        (RefusesEarly, {"message": "targets:\nno"}, CARD + "Embedding", "not one line that names Embedding"),
        (Unlike, {}, CARD, "Embedding is not refused"),
    ],
)
def test_a_refusal_that_is_late_long_or_unknown_is_noticed(cls, params, card, message, in_a_file) -> None:
    with pytest.raises(AssertionError, match=message):
        contract.refuses_in_one_line(in_a_file(cls, card), {"rank": 2, **params}, "Embedding")
    contract.refuses_in_one_line(in_a_file(RefusesEarly, CARD + "Embedding"), {"rank": 2}, "Embedding")
