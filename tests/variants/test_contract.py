"""The contract, over every variant in the folder and every kind of layer; and that it notices what it should."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.variants.found import CONF, all_variants, cases, yaml_faults
from variants.core import contract, targets
from variants.core.adapter import LowRank
from variants.core.case import Case
from variants.core.contract import CHECKS, ON_EVERY_KIND, check_case, check_variant
from variants.core.toys import KINDS, TARGETS, Toy, data, prepared
from variants.core.unread import Ranks
from variants.core.variant import Variant
from variants.lora import LoRA
from variants.peft import Peft


@pytest.mark.parametrize("case", cases(), ids=str)
def test_variant_keeps_its_promises(case: Case) -> None:
    check_case(dataclasses.replace(case))  # a copy, whose trainings go when it does


@pytest.mark.parametrize("cls", all_variants(), ids=lambda cls: cls.__name__)
def test_a_yaml_has_the_fields_of_its_class_with_their_defaults(cls: type[Variant]) -> None:
    assert yaml_faults(cls) is None


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # PEFT mends it, and says so
@pytest.mark.parametrize("cls", all_variants(), ids=lambda cls: cls.__name__)
def test_transformers_own_conv1d_is_one(cls: type[Variant], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "Conv1D", lambda: (Conv1D(12, 8), Conv1D(8, 12)))
    for params in cls.test_params() if cls is Peft else cls.test_params()[:1]:
        case = Case(cls, params, "Conv1D")
        assert case.refusal is None
        check_case(case)


def test_the_folder_is_really_searched() -> None:
    found = {cls.__name__ for cls in all_variants()}
    assert {
        "LoRA",
        "AdaLoRA",
        "SoRA",
        "IncreLoRA",
        "ElaLoRA",
        "DyLoRA",
        "DoRA",
        "SVDiff",
        "SVFT",
        "LoRAXS",
        "SHiRA",
        "SparseLoRA",
        "RoSA",
        "SpIEL",
        "Full",
        "Head",
        "BitFit",
        "Peft",
    } <= found


def test_every_kind_is_checked_with_every_setting_that_it_takes() -> None:
    refused = []
    for case in cases():
        try:
            prepared(case.cls, case.params, case.kind)
        except ValueError as error:
            refused.append((case.kind, str(error)))
    assert {kind for kind, text in refused if text.startswith("dropout: ")} == {"Embedding"}
    assert len(refused) < len(cases()) / 8


# -- the toys -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_toy_has_the_same_matrices_whatever_their_layout(kind: str) -> None:
    found = targets.select(Toy(kind=kind), TARGETS, head=("head",))
    adapters = [LowRank(layer, 1, 1.0) for layer in found.values()]
    assert [type(adapter.base).__name__ for adapter in adapters] == [kind] * 4
    assert [(a.out_features, a.in_features) for a in adapters] == [(12, 8), (8, 12)] * 2
    x, y = data(kind=kind)
    assert len(x) == len(y) == 64 and y.shape == (64, 3)
    Toy(kind=kind)(x).sum().backward()


def test_every_row_of_an_embedding_occurs_as_often_as_every_other() -> None:
    for column, rows in zip(data(kind="Embedding")[0].T, (8, 12, 8, 12), strict=True):
        counts = torch.bincount(column)
        assert len(counts) == rows and counts.max() - counts.min() <= 1


# -- the test of the tests ----------------------------------------------------------------------


@dataclass(kw_only=True)
class Unlike(LoRA):
    """LoRA, of which each of the classes below breaks one promise."""


class NoDocstring(Unlike):
    pass


NoDocstring = dataclass(kw_only=True)(NoDocstring)  # as it is done, and by it gets a docstring of a kind


@dataclass(kw_only=True)
class HasAFieldThatNoSettingTries(Unlike):
    """Has an option, and LoRA's test_params."""

    extra: int = 1


class TakesAnything(Unlike):
    """Accepts what it does not know."""

    def __init__(self, **settings):
        super().__init__(**{name: value for name, value in settings.items() if name == "rank"})


class ForgotTheDecorator(Unlike):
    """Has an option that is no field."""

    extra: int = 1


@dataclass(kw_only=True)
class KeepsAnotherValue(Unlike):
    """Trains with half the rank that it was given."""

    def __post_init__(self):
        super().__post_init__()
        self.rank = self.rank // 2


@dataclass(kw_only=True)
class ActsInSecret(Unlike):
    """Has a hook that its card does not name."""

    def on_update(self, step):
        pass


@dataclass(kw_only=True)
class ActsInTheForwardPass(Unlike):
    """Shrinks B whenever the model is called."""

    def attach(self, model, head=()):
        model = super().attach(model, head)

        def shrink(module, arguments):
            if module.training:
                for adapter in self.adapters.values():
                    adapter.B.data *= 0.9

        model.register_forward_pre_hook(shrink)
        return model


@dataclass(kw_only=True)
class StartsElsewhere(Unlike):
    """Starts with ΔW ≠ 0."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        nn.init.ones_(adapter.B)
        return adapter


@dataclass(kw_only=True)
class MovesTheBase(Unlike):
    """Writes into the frozen weight."""

    def on_update(self, step):
        with torch.no_grad():
            next(iter(self.adapters.values())).weight.mul_(1.0001)


@dataclass(kw_only=True)
class NeverLearns(Unlike):
    """Takes its own gradients away, and the head's."""

    def on_gradients(self, step):
        for group in step.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


@dataclass(kw_only=True)
class Miscounts(Unlike):
    """Forgets a factor."""

    def closed_form(self):
        return super().closed_form() // 2


class CountsItsFirstRank(LowRank):
    def closed_form(self):
        return 2 * self.cost


@dataclass(kw_only=True)
class Prunes(Unlike):
    """Removes ranks after step 6, and may leave something behind."""

    adapter_class: Any = LowRank
    optimizer: bool = True

    def build(self, name, layer):
        return self.adapter_class(layer, self.rank, 1.0)

    def on_update(self, step):
        if step.index == 6:
            for adapter in self.adapters.values():
                adapter.keep(torch.tensor([0]), step.optimizer if self.optimizer else None)


@dataclass(kw_only=True)
class SaysMoreThanThereIs(Unlike):
    """Counts parameters in use that are not there."""

    def effective_parameters(self):
        return super().effective_parameters() + 1


@dataclass(kw_only=True)
class GrowsInBetween(Unlike):
    """Has more ranks from step 4 to step 7 than it starts or ends with."""

    def on_update(self, step):
        for adapter in self.adapters.values():
            adapter.reshape(self.rank + (4 <= step.index < 8))


@dataclass(kw_only=True)
class MissesItsBudget(Unlike):
    """Chooses its ranks for another budget than it was given."""

    by: int = 0

    def check(self, model, head=()):
        self.budget += self.by
        super().check(model, head)
        self.budget -= self.by


@dataclass(kw_only=True)
class NeverFinal(Unlike):
    """Has no model that may be handed over."""

    def is_final_form(self, step):
        return False


@dataclass(kw_only=True)
class ReportsTooMuch(Unlike):
    """Says a rank that ΔW does not have."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        adapter.A.data[1] = adapter.A.data[0]
        adapter.A.register_hook(lambda gradient: gradient.mean(0, keepdim=True).expand_as(gradient).contiguous())
        return adapter


@dataclass(kw_only=True)
class ReadsItsRanksTooLate(Prunes):
    """Says the ranks of the end for every step before."""

    def ranks_later(self):
        adapters = self.adapters

        class AtTheEnd(Ranks):
            def read(self):
                return {name: adapter.rank for name, adapter in adapters.items()}

        return AtTheEnd({})


@dataclass(kw_only=True)
class CanNotBeDisabled(Unlike):
    """Goes on within disabled()."""

    def disabled(self):
        return contextlib.nullcontext()


class MergesAnother(LowRank):
    def delta(self):
        return super().delta() * 1.001


@dataclass(kw_only=True)
class MergesElsewhere(Unlike):
    """Has a ΔW that is not what its layers compute."""

    def build(self, name, layer):
        return MergesAnother(layer, self.rank, 1.0)


@dataclass(kw_only=True)
class ForgetsItsState(Unlike):
    """Scales its update by a counter that it does not save."""

    steps: int = field(default=0, init=False)

    def on_update(self, step):
        self.steps += 1
        for adapter in self.adapters.values():
            adapter.scale = 1 + 0.1 * self.steps


@dataclass(kw_only=True)
class LosesItsState(Unlike):
    """Saves an average that it does not take up again, so that only the next allocation would tell."""

    mean: float = field(default=0.0, init=False)

    def on_update(self, step):
        self.mean += 0.5

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        pass


@dataclass(kw_only=True)
class DrawsFromTheClock(Unlike):
    """Is another one each time."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        adapter.A.data.normal_(generator=torch.Generator().manual_seed(torch.seed() % 2**31))
        return adapter


class CountsCalls(LowRank):
    """Has a scale that follows how often it was called."""

    counts_training = True

    def forward(self, x):
        if self.training == self.counts_training:
            self.scale *= 1.01
        return super().forward(x)


class CountsEvaluations(CountsCalls):
    counts_training = False


@dataclass(kw_only=True)
class Counts(Unlike):
    """Notices what should leave no trace."""

    adapter_class: Any = CountsCalls

    def build(self, name, layer):
        return self.adapter_class(layer, self.rank, 1.0)


@dataclass(kw_only=True)
class TakesTheLastBatch(Unlike):
    """Scales its update by the gradient of one batch, where a step may have more."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        adapter.B.register_hook(lambda gradient: setattr(adapter, "seen", gradient.norm()))
        return adapter

    def on_update(self, step):
        for adapter in self.adapters.values():
            adapter.scale = 1 + float(adapter.seen)


@dataclass(kw_only=True)
class ScoresInTheBackwardPass(Unlike):
    """Has an average of gradients that takes them before anybody knows whether they are finite."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        self.mean = torch.zeros(())
        adapter.B.register_hook(lambda gradient: setattr(self, "mean", 0.9 * self.mean + gradient.sum()))
        return adapter

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


@dataclass(kw_only=True)
class InHalfPrecision(Unlike):
    """Trains its factors in the backbone's precision."""

    def build(self, name, layer):
        return super().build(name, layer).to(layer.weight.dtype)


class Doubled(LowRank):
    """Hands over another ΔW than it trains."""

    def as_product(self):
        return self.A.detach(), 2 * self.scale * self.B.detach()


@dataclass(kw_only=True)
class HandsOverAnother(Unlike):
    """Its adapters do."""

    def build(self, name, layer):
        return Doubled(layer, self.rank, 1.0)


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
    (ReportsTooMuch, {}, contract.reports_the_rank_of_the_update, "layer.0.fc1: rank 2 reported, ΔW has 1"),
    (ReadsItsRanksTooLate, {}, contract.reports_the_rank_of_the_update, "ranks_later.. after step 1 is not what"),
    (CanNotBeDisabled, {}, contract.can_be_disabled, "disabled.. does not give the base model"),
    (MergesElsewhere, {}, contract.merges, "merged output differs"),
    (HandsOverAnother, {}, contract.goes_out_as_factors, "as_product.. is not ΔW"),
    (ForgetsItsState, {}, contract.saves_and_loads, "the loaded model's output differs"),
    (LosesItsState, {}, contract.saves_and_loads, "the loaded variant's state differs"),
    (ForgetsItsState, {}, contract.resumes_bit_for_bit, "the loss of step 2 differs"),
    (DrawsFromTheClock, {}, contract.repeats_with_a_seed, "two runs with the same seed differ"),
    (Counts, {}, contract.repeats_with_a_seed, "gradient checkpointing changes training"),
    (Counts, {"adapter_class": CountsEvaluations}, contract.repeats_with_a_seed, "evaluation between steps changes"),
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


@dataclass(kw_only=True)
class RefusesLate(Unlike):
    """Refuses an Embedding when it has been loaded."""

    message: str = "targets: an Embedding can't be adapted"

    def build(self, name, layer):
        if isinstance(layer, nn.Embedding):
            raise ValueError(self.message)
        return super().build(name, layer)


@dataclass(kw_only=True)
class RefusesEarly(RefusesLate):
    """Refuses an Embedding before."""

    def check(self, model, head=()):
        super().check(model, head)
        for name, layer in self.select(model, head).items():
            self.build(name, layer)


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


def test_check_variant_names_the_promise_that_is_broken(in_a_file) -> None:
    with pytest.raises(AssertionError, match=r"Miscounts\(.*\) on Linear counts_by_formula: closed_form\(\) says"):
        check_variant(in_a_file(Miscounts, CARD))


@dataclass(kw_only=True)
class CanNotLookUp(Unlike):
    """Computes for row numbers what it does not merge."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        if isinstance(layer, nn.Embedding):
            adapter.form.project = lambda x, a: nn.functional.embedding(x, a.T) * 2
        return adapter


def test_check_variant_looks_at_every_kind_of_layer(in_a_file, monkeypatch) -> None:
    monkeypatch.setattr(CanNotLookUp, "test_params", classmethod(lambda cls: [{"rank": 2}]))
    with pytest.raises(AssertionError, match=r"CanNotLookUp\(.*\) on Embedding merges: merged output differs"):
        check_variant(in_a_file(CanNotLookUp, CARD))
