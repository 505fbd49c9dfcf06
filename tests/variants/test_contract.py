"""The contract, over every variant in the folder; and that it notices what it should."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from tests.variants.found import all_variants, cases
from variants.core import contract
from variants.core.adapter import LowRank
from variants.core.contract import CHECKS, check_variant
from variants.core.variant import Variant
from variants.lora import LoRA

CONF = Path(__file__).parents[2] / "conf" / "variant"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("cls", "params"), cases(), ids=str)
def test_variant_keeps_its_promises(check: Any, cls: type[Variant], params: dict[str, Any]) -> None:
    check(cls, params)


@pytest.mark.parametrize("cls", all_variants(), ids=lambda cls: cls.__name__)
def test_variant_has_a_yaml_a_card_with_its_source_and_settings_of_its_own(cls: type[Variant]) -> None:
    nodes = [yaml.safe_load(path.read_text()) for path in CONF.glob("*.yaml")]
    targets = {node.get("variant", node).get("_target_") for node in nodes}
    assert f"{cls.__module__}.{cls.__name__}" in targets, "no file in conf/variant has this _target_"
    card = __import__(cls.__module__, fromlist=["x"]).__doc__
    assert "Hooks" in card and any(word in card for word in ("arXiv", "Library", "reference")), (
        "the card names no source"
    )
    assert "Cost" in card or "Library" in card, "the card names no cost"
    assert cls.test_params()


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


@dataclass(kw_only=True)
class StartsElsewhere(LoRA):
    """Starts with ΔW ≠ 0."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        nn.init.ones_(adapter.B)
        return adapter


@dataclass(kw_only=True)
class MovesTheBase(LoRA):
    """Writes into the frozen weight."""

    def on_update(self, step):
        with torch.no_grad():
            next(iter(self.adapters.values())).weight.mul_(1.0001)


@dataclass(kw_only=True)
class Miscounts(LoRA):
    """Forgets a factor."""

    def closed_form(self):
        return super().closed_form() // 2


@dataclass(kw_only=True)
class ForgetsItsState(LoRA):
    """Scales its update by a counter that it does not save."""

    steps: int = field(default=0, init=False)

    def on_update(self, step):
        self.steps += 1
        for adapter in self.adapters.values():
            adapter.scale = 1 + 0.1 * self.steps


@dataclass(kw_only=True)
class DrawsFromTheClock(LoRA):
    """Is another one each time."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        adapter.A.data.normal_(generator=torch.Generator().manual_seed(torch.seed() % 2**31))
        return adapter


@dataclass(kw_only=True)
class NeverLearns(LoRA):
    """Takes its own gradients away, and the head's."""

    def on_gradients(self, step):
        for group in step.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


@dataclass(kw_only=True)
class ReportsTooMuch(LoRA):
    """Says a rank that ΔW does not have."""

    def build(self, name, layer):
        adapter = super().build(name, layer)
        adapter.A.data[1] = adapter.A.data[0]
        adapter.A.register_hook(lambda gradient: gradient.mean(0, keepdim=True).expand_as(gradient).contiguous())
        return adapter


class Doubled(LowRank):
    """Hands over another ΔW than it trains."""

    def as_product(self):
        return self.A.detach(), 2 * self._scaled_b().detach()


@dataclass(kw_only=True)
class HandsOverAnother(LoRA):
    """Its adapters do."""

    def build(self, name, layer):
        return Doubled(layer, self.rank, 1.0)


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (StartsElsewhere, contract.starts_at_the_base_model),
        (MovesTheBase, contract.leaves_the_base_weights),
        (Miscounts, contract.counts_by_formula),
        (ForgetsItsState, contract.saves_and_loads),
        (ForgetsItsState, contract.resumes_bit_for_bit),
        (DrawsFromTheClock, contract.repeats_with_a_seed),
        (NeverLearns, contract.trains_the_head),
        (NeverLearns, contract.lowers_the_loss),
        (HandsOverAnother, contract.goes_out_as_factors),
        (ReportsTooMuch, contract.reports_the_rank_of_the_update),
    ],
)
def test_a_broken_variant_is_noticed(cls: type[Variant], check: Any) -> None:
    with pytest.raises(AssertionError):
        check(cls, {"rank": 2})


def test_check_variant_names_the_promise_that_is_broken() -> None:
    Miscounts.__module__ = LoRA.__module__  # it has LoRA's card
    with pytest.raises(AssertionError, match=r"Miscounts\(.*\) counts_by_formula: closed_form\(\) says"):
        check_variant(Miscounts)
