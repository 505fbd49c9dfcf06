"""The contract, over every variant in the folder and every kind of layer; what it trained is handed over; its toys."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from tests.variants.found import all_variants, cases, every_case, has_hooks, marked, yaml_faults
from tests.variants.going_out import goes_out_with_equal_outputs
from variants.core import layers, target_modules
from variants.core.adapters.adapter import LowRank
from variants.core.variant import Variant
from variants.lora import LoRA
from variants.peft import Peft
from variants.testing.case import Case
from variants.testing.check import PROMISES, check_case
from variants.testing.toys import KINDS, TARGETS, Toy, data, prepared

BETWEEN_STEPS = {"resumes_bit_for_bit", "repeats_with_a_seed", "forgets_a_step_that_is_left_out"}


def asked(case: Case) -> list[str] | None:
    """The promises that may depend on the setting. A method without hooks does nothing between steps, so of these one
    setting is enough, and one with dropout, which draws."""
    entries = case.cls.test_params()
    dropping = next((params for params in entries if params.get("dropout")), None)
    if has_hooks(case.cls) or case.params in (entries[0], dropping):
        return None
    return [name for name in PROMISES if name not in BETWEEN_STEPS]


@pytest.mark.parametrize("case", marked(cases()), ids=str)
def test_variant_keeps_its_promises_and_goes_out_with_equal_outputs(case: Case, tmp_path: Path) -> None:
    run = dataclasses.replace(case)  # a copy, whose trainings go when it does
    check_case(run, asked(run))
    if case.kind == "Linear":  # other kinds: tests/variants/test_handover.py
        goes_out_with_equal_outputs(run, tmp_path)


@pytest.mark.parametrize("cls", all_variants(), ids=lambda cls: cls.__name__)
def test_a_yaml_has_the_fields_of_its_class_with_their_defaults(cls: type[Variant]) -> None:
    assert yaml_faults(cls) is None


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # PEFT mends it, and says so
@pytest.mark.parametrize(
    "case",
    [Case(LoRA, LoRA.test_params()[0], "Conv1D"), *(Case(Peft, params, "Conv1D") for params in Peft.test_params())],
    ids=str,
)
def test_transformers_own_conv1d_is_one(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "Conv1D", lambda: (Conv1D(12, 8), Conv1D(8, 12)))
    assert case.refusal is None
    check_case(case)


def test_the_toys_conv1d_is_to_a_method_what_transformers_own_is() -> None:
    own, toys = Conv1D(6, 4), KINDS["Conv1D"]()[0].__class__(6, 4)
    toys.load_state_dict(own.state_dict())
    assert type(layers.kind_of(toys)) is type(layers.kind_of(own)) and layers.size(toys) == layers.size(own)
    x = torch.randn(2, 3, 4)
    assert torch.equal(toys(x), own(x)) and torch.equal(layers.matrix(toys), layers.matrix(own))


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
    for case in every_case():
        try:
            prepared(case.cls, case.params, case.kind)
        except ValueError as error:
            refused.append((case.kind, str(error)))
    assert {kind for kind, text in refused if text.startswith("dropout: ")} == {"Embedding"}
    assert len(refused) < len(every_case()) / 8


# -- the toys -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_toy_has_the_same_matrices_whatever_their_layout(kind: str) -> None:
    found = target_modules.select(Toy(kind=kind), TARGETS, head=("head",))
    adapters = [LowRank(layer, 1, 1.0) for layer in found.values()]
    assert [type(adapter.base).__name__ for adapter in adapters] == [kind.split()[0]] * 4
    assert [(a.out_features, a.in_features) for a in adapters] == [(12, 8), (8, 12)] * 2
    x, y = data(kind=kind)
    assert len(x) == len(y) == 64 and y.shape == (64, 3)
    Toy(kind=kind)(x).sum().backward()


def test_every_row_of_an_embedding_occurs_as_often_as_every_other() -> None:
    for column, rows in zip(data(kind="Embedding")[0].T, (8, 12, 8, 12), strict=True):
        counts = torch.bincount(column)
        assert len(counts) == rows and counts.max() - counts.min() <= 1
