"""Published parameter counts, on an encoder of base size (12 layers, width 768, feed-forward 3072) without weights."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from variants.adalora import AdaLoRA
from variants.core import layers
from variants.core.variant import AdapterVariant, Variant
from variants.head import Head
from variants.increlora import IncreLoRA
from variants.lora import LoRA
from variants.lora_xs import LoRAXS
from variants.shira import SHiRA
from variants.sora import SoRA
from variants.sparse import SparseLoRA
from variants.svdiff import SVDiff
from variants.svft import SVFT, entries

HEAD = ("bert.pooler", "classifier")
RANK = 165_888  # parameters of one rank in all six types of matrices
MATRICES = 72


def base(labels: int = 2) -> nn.Module:
    """A copy, which a method may change."""
    return copy.deepcopy(made(labels))


@functools.cache
def made(labels: int) -> nn.Module:
    with torch.device("meta"):
        return BertForSequenceClassification(BertConfig(num_labels=labels))


def count(variant: Variant, model: nn.Module) -> int:
    """Trainable parameters outside the head, by real shapes and, for a method with a formula, by it."""
    with torch.device("meta"):
        variant.attach(model, HEAD)
    found = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and not n.startswith(HEAD))
    assert variant.closed_form() == found
    return found


def test_the_six_types_of_matrices() -> None:
    found = LoRA().select(base(), HEAD)
    assert len(found) == MATRICES
    assert sum(layer.weight.numel() for layer in found.values()) == 84_934_656
    assert sum(sum(layers.size(layer)) for layer in found.values()) == RANK


@pytest.mark.parametrize("rank", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(
    ("cls", "params", "further"),
    [
        (LoRA, {}, 0),
        (LoRA, {"scaling": "rslora", "lr_ratio": 4.0}, 0),
        (AdaLoRA, {"target_rank": 1}, MATRICES),  # one singular value a rank
        (IncreLoRA, {"target_rank": 16}, MATRICES),
        (SoRA, {}, MATRICES),  # one gate a rank
        (SHiRA, {}, 0),
        (SparseLoRA, {}, 0),
    ],
    ids=str,
)
def test_all_six_types(cls: type[AdapterVariant], params: dict[str, Any], further: int, rank: int) -> None:
    # Papers print 0.33M at rank 2 and 1.33M at rank 8.
    assert count(cls(rank=rank, **params), base()) == (RANK + further) * rank


@pytest.mark.parametrize(("rank", "number"), [(1, 36_864), (8, 294_912)])
def test_query_and_value_alone(rank: int, number: int) -> None:
    assert count(LoRA(rank=rank, targets=["query", "value"]), base()) == number


@pytest.mark.parametrize(("variant", "number"), [(SVFT(), 55_296), (SVDiff(), 55_296), (LoRAXS(rank=16), 72 * 256)])
def test_one_number_a_direction_and_a_core(variant: Any, number: int) -> None:
    model = base()
    variant.check(model, HEAD)
    sizes = [min(layers.size(layer)) for layer in variant.select(model, HEAD).values()]
    assert sum(variant.parameters(variant.rank or size) for size in sizes) == number


def test_svft_banded() -> None:
    sizes = [min(layers.size(layer)) for layer in SVFT().select(base(), HEAD).values()]
    assert sum(entries(size, 2) for size in sizes) == 276_048


@pytest.mark.parametrize(("labels", "number"), [(1, 591_361), (2, 592_130), (3, 592_899)])
def test_the_head_is_larger_than_an_adapter_of_rank_2(labels: int, number: int) -> None:
    model = base(labels)
    with torch.device("meta"):
        Head().attach(model, HEAD)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == number > 2 * RANK


def test_a_budget_of_ranks_is_no_budget_of_parameters() -> None:
    model = base()
    variant = AdaLoRA(rank=3, target_rank=2)
    with torch.device("meta"):
        variant.attach(model, HEAD)
    costs = sorted({adapter.cost - 1 for adapter in variant.adapters.values()})  # without its singular value
    assert costs == [1536, 3840]
    assert variant.target == 144
    assert [variant.target * cost for cost in costs] == [221_184, 552_960]


@pytest.mark.parametrize("budget", [331_776, 1_327_104, 300_000])
@pytest.mark.parametrize("cls", [LoRA, SHiRA], ids=lambda cls: cls.__name__)
def test_a_budget_of_parameters_is_one(cls: type[AdapterVariant], budget: int) -> None:
    assert budget - 3840 < count(cls(budget=budget), base()) <= budget
