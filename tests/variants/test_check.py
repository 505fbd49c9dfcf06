"""`check_variant` says of every promise how it stands: kept, left out and why, or broken, by what and what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.variants.broken import CanNotLookUp, ForgetsItsState, LosesItsState, Miscounts, NeverLearns, Prunes, Unlike
from variants.bitfit import BitFit
from variants.core.adapters.adapter import LowRank
from variants.core.variant import Variant
from variants.lora import LoRA
from variants.testing import check_case, check_variant
from variants.testing.case import Case
from variants.testing.check import PROMISES, BrokenPromise, BrokenPromises
from variants.testing.contract import CHECKS

OF_THE_FILE = ("says_what_it_is", "acts_in_its_hooks_alone")  # the classes below stand in no method's file
OF_THE_CLASS = [name for name in PROMISES if name not in OF_THE_FILE]


@pytest.fixture(autouse=True)
def one_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unlike, "test_params", classmethod(lambda cls: [{"rank": 2}]))


def broken(cls: type[Variant], *promises: str) -> dict[str, str]:
    """What is broken among the promises, by name."""
    results = check_variant(cls, promises or OF_THE_CLASS, raise_exceptions=False)
    return {name: str(result) for name, result in results.items() if isinstance(result, BrokenPromise)}


def test_every_promise_has_a_result() -> None:
    results = check_case(Case(LoRA, {"rank": 2}))
    assert list(results) == [check.__name__ for check in CHECKS] + ["refuses_in_one_line"]
    assert results.pop("refuses_in_one_line") == "skipped: Linear is taken"
    assert set(results.values()) == {"passed"}


def test_what_is_left_out_says_why() -> None:
    left_out = {
        (LoRA, "Linear", "accumulates"): ({"rank": 2, "dropout": 0.1}, "its forward passes draw random numbers"),
        (LoRA, "Conv2d", "resumes_bit_for_bit"): ({"rank": 2}, "it is asked for on Linear alone"),
        (LoRA, "Embedding", "merges"): ({"rank": 2, "dropout": 0.1}, "dropout: 0.1 on the Embedding layer.0.fc1"),
        (BitFit, "Linear", "merges"): ({}, "it has no adapters"),
    }
    for (cls, kind, promise), (params, why) in left_out.items():
        (result,) = check_case(Case(cls, params, kind), [promise]).values()
        assert isinstance(result, str) and result.startswith(f"skipped: {why}")


def test_all_that_is_broken_is_named_at_the_end() -> None:
    with pytest.raises(BrokenPromises) as caught:
        check_variant(Miscounts, OF_THE_CLASS)
    first, *lines = str(caught.value).splitlines()
    assert first == "2 promises are broken" and list(caught.value.broken) == ["counts_by_formula", "holds_its_budget"]
    assert lines[0] == (
        "Miscounts({'rank': 2}) on Linear counts_by_formula: closed_form() says 80, trainable are 160 "
        "(and in 5 more of 6 cases)"
    )


def test_one_that_is_broken_is_raised_as_it_is_returned() -> None:
    with pytest.raises(AssertionError, match=r"^Miscounts\(.*\) on Linear counts_by_formula: closed_form\(\) says 80"):
        check_variant(Miscounts, ["counts_by_formula", "merges"])


def test_a_subset_goes_by_name() -> None:
    assert check_variant(Unlike, ["merges", "trains_the_head"]) == {"merges": "passed", "trains_the_head": "passed"}
    with pytest.raises(ValueError, match=r"^promises: 'merge', allowed: says_what_it_is, .*, refuses_in_one_line$"):
        check_variant(LoRA, ["merge"])


def test_every_kind_of_layer_is_looked_at_and_one_broken_promise_breaks_no_other() -> None:
    found = broken(CanNotLookUp, "merges", "saves_and_loads", "lowers_the_loss")
    assert list(found) == ["merges"]
    assert found["merges"].startswith("CanNotLookUp({'rank': 2}) on Embedding merges: merged output differs")


def test_a_method_without_settings_to_try_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unlike, "test_params", classmethod(lambda cls: []))
    assert "says_what_it_is" in broken(NeverLearns, "says_what_it_is")


# -- other exceptions, and what mends it -------------------------------------------------------


def with_adapter(adapter_class: type[LowRank]) -> type[Variant]:
    @dataclass(kw_only=True)
    class Method(Unlike):
        """Has adapters of that class."""

        def build(self, name, layer):
            return adapter_class(layer, 2, 1.0)

    return Method


class LacksAnArgument(LowRank):
    def __init__(self, base, rank, scale):
        super().__init__(base, rank)  # type: ignore[call-arg]


def test_any_exception_names_case_and_promise() -> None:
    with pytest.raises(BrokenPromises) as caught:
        check_variant(with_adapter(LacksAnArgument), ["merges", "lowers_the_loss"])
    assert str(caught.value).splitlines()[1:] == [
        "Method({'rank': 2}) on Linear merges, lowers_the_loss: TypeError: LowRank.__init__() missing 1 required "
        "positional argument: 'scale' (and in 5 more of 6 cases)"
    ]
    assert isinstance(caught.value.broken["merges"].__cause__, TypeError)


class ForgetsA(LowRank):
    """Does not train A, and so has to save it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.A.requires_grad_(False)

    def closed_form(self):
        return self.B.numel()


class Views(LowRank):
    def factors(self):
        return self.A.t().view(-1).view(self.A.shape), self.B, None


class KeepsItsShape(LowRank):
    def factors(self):
        return self.A.reshape(2, 8 if self.in_features == 8 else 12), self.B, None


@dataclass(kw_only=True)
class Slices(Unlike):
    """Cuts its parameters, and neither gradient nor moments."""

    def on_update(self, step):
        if step.index == 4:
            for adapter in self.adapters.values():
                adapter.A.data, adapter.B.data = adapter.A.data[:1], adapter.B.data[:, :1]


@dataclass(kw_only=True)
class CutsToItsFirstRank(Unlike):
    """Prunes, where its adapters still count on the rank that they had."""

    def build(self, name, layer):
        return KeepsItsShape(layer, 2, 1.0)

    def on_update(self, step):
        if step.index == 4:
            for adapter in self.adapters.values():
                adapter.keep(torch.tensor([0]), step.optimizer)


@dataclass(kw_only=True)
class AsksForMore(Unlike):
    """Reads from its state what it has not put there."""

    def load_state_dict(self, state: Any) -> None:
        self.mean = state["mean"]


@pytest.mark.parametrize(
    ("cls", "promise", "hint"),
    [
        (
            with_adapter(ForgetsA),
            "saves_and_loads",
            "state_dict(), or not taken up by load_state_dict(): layer.0.fc1.A, ",
        ),
        (ForgetsItsState, "resumes_bit_for_bit", "not in state_dict(), or not taken up by load_state_dict(): steps, "),
        (LosesItsState, "saves_and_loads", "not in state_dict(), or not taken up by load_state_dict(): mean"),
        (AsksForMore, "saves_and_loads", "load_state_dict() reads 'mean', which state_dict() does not give"),
        (Prunes, "saves_and_loads", "load_state_dict(), which gives them the saved shapes: adapter.reshape()"),
        (with_adapter(Views), "lowers_the_loss", "need not be contiguous: reshape() in place of view()"),
        (CutsToItsFirstRank, "lowers_the_loss", "view() and reshape() by its present shape"),
        (Slices, "lowers_the_loss", "adapter.keep(), append(), or variants.core.adapters.resize"),
    ],
    ids=["ForgetsA", "ForgetsItsState", "LosesItsState", "AsksForMore", "Prunes", "Views", "KeepsItsShape", "Slices"],
)
def test_what_mends_it_is_said_where_the_cause_can_be_told(cls: type[Variant], promise: str, hint: str) -> None:
    assert hint in broken(cls, promise)[promise]


def test_where_it_can_not_be_told_nothing_is_said() -> None:
    found = broken(NeverLearns, "lowers_the_loss")["lowers_the_loss"]
    assert found.endswith("(and in 5 more of 6 cases)") and ";" not in found
