"""Adapters on every kind of layer: A x and B h without ΔW give what the layer gives with W + ΔW."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.variants.found import all_variants
from tests.variants.kinds import OF_EVERY_KIND
from variants.core import layers, target_modules
from variants.core.adapters.adapter import LowRank, check_rank
from variants.core.variant import field_names


def filled(layer: nn.Module, **options) -> LowRank:
    torch.manual_seed(1)
    adapter = LowRank(copy.deepcopy(layer).double(), rank=3, scale=0.5, diagonal=True, **options)
    for parameter in (adapter.A, adapter.B, adapter.e):
        nn.init.normal_(parameter)
    return adapter.eval()


@pytest.mark.parametrize(("layer", "x"), OF_EVERY_KIND)
def test_the_update_is_that_of_the_dense_matrix(layer, x):
    adapter = filled(layer)
    x = x.double() if x.is_floating_point() else x
    dense = copy.deepcopy(adapter.base)
    with torch.no_grad():
        dense.weight += adapter.delta_weight()
    torch.testing.assert_close(adapter(x), dense(x), rtol=1e-12, atol=1e-12)
    assert adapter.delta_weight().shape == layer.weight.shape
    assert adapter.delta().shape == (adapter.out_features, adapter.in_features)
    assert torch.equal(adapter.layer_kind.as_matrix(adapter.delta_weight()), adapter.delta())
    assert adapter.closed_form() == sum(p.numel() for p in adapter.parameters() if p.requires_grad)


@pytest.mark.parametrize(("layer", "x"), OF_EVERY_KIND)
def test_merged_equals_unmerged_and_disabled_the_base(layer, x):
    adapter = filled(layer)
    x = x.double() if x.is_floating_point() else x
    unmerged, weight = adapter(x), adapter.weight.clone()
    adapter.merge()
    torch.testing.assert_close(adapter(x), unmerged, rtol=1e-12, atol=1e-12)
    with adapter.disabled():
        assert torch.equal(adapter(x), adapter.base(x)) and torch.equal(adapter.weight, weight)
    adapter.unmerge()
    assert torch.equal(adapter.weight, weight) and torch.equal(adapter(x), unmerged)


@pytest.mark.parametrize(("layer", "x"), OF_EVERY_KIND)
def test_gradients_reach_every_factor(layer, x):
    adapter = filled(layer)
    adapter(x.double() if x.is_floating_point() else x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in (adapter.A, adapter.B, adapter.e))
    assert adapter.weight.grad is None


@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm(8),
        nn.Embedding(4, 4, max_norm=1.0),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Bilinear(2, 2, 2),
        nn.MultiheadAttention(4, 2).out_proj,
        nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 2, 2)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_layers_are_refused_by_name(layer):
    assert layers.kind_of(layer) is None
    with pytest.raises(ValueError, match=f"targets: {type(layer).__name__} can't be adapted, allowed: Linear, Conv1D"):
        LowRank(layer, rank=1, scale=1.0)


@pytest.mark.parametrize(("layer", "x"), OF_EVERY_KIND)
def test_a_layer_that_lost_all_its_ranks_is_the_base_layer(layer, x):
    adapter = filled(layer)
    adapter.keep(torch.arange(0), None)
    x = x.double() if x.is_floating_point() else x
    assert adapter.rank == 0 and torch.equal(adapter(x), adapter.base(x))
    assert adapter.delta_weight().shape == layer.weight.shape and not adapter.delta_weight().any()


def test_dropout_on_row_numbers_is_refused():
    with pytest.raises(ValueError, match=r"dropout: 0.1 on a Embedding, allowed: 0"):
        LowRank(nn.Embedding(10, 6), rank=2, scale=1.0, dropout=0.1)


def test_to_another_library_an_attention_that_calls_none_of_its_layers_is_left_out_loudly():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "fc": nn.Linear(8, 8)})
    assert list(target_modules.select(model, "all-linear")) == ["fc"]
    assert set(target_modules.not_linear(model)) == {"attention.in_proj_weight", "attention.out_proj.weight"}
    with pytest.raises(
        ValueError, match=r"targets: attention\.out_proj is a NonDyn.*, allowed: Linear, Conv1D, Conv1d"
    ):
        target_modules.select(model, ["out_proj"])


def test_torchs_own_encoder_layer_calls_its_layers_in_evaluation():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    adapter = filled(layer.linear1)
    x = torch.randn(2, 3, 8).double()
    layer.double().linear1 = adapter
    with torch.no_grad():
        found = layer(x)
        with adapter.disabled():
            assert not torch.allclose(found, layer(x))
        adapter.merge()
        torch.testing.assert_close(layer(x), found)


def test_features_of_a_group_reach_the_filters_of_no_other():
    adapter, x = filled(nn.Conv2d(6, 6, 3, groups=6)), torch.zeros(1, 6, 5, 5).double()
    x[:, 2] = 1.0
    reached = adapter.update(x).flatten(2).any(2)[0]
    assert reached.tolist() == [False, False, True, False, False, False]


def test_the_rank_of_a_depthwise_convolution_is_its_kernels_size_at_most():
    with pytest.raises(ValueError, match="rank: 10 for a layer of size 32×9, allowed: 1 … 9"):
        check_rank(10, nn.Conv2d(32, 32, 3, groups=32))


LINEAR = ["query", "key", "value", "out"]  # as many as a method's defaults need


@pytest.mark.parametrize("cls", [cls for cls in all_variants() if "dropout" in field_names(cls)])
def test_a_variant_refuses_it_before_the_weights_are_there(cls):
    with torch.device("meta"):
        parts = {"rows": nn.Embedding(64, 64), **{name: nn.Linear(64, 64) for name in LINEAR}}
        model = nn.ModuleList([nn.ModuleDict(parts)])  # a block, whose depth PRILoRA asks for
    with pytest.raises(ValueError, match=r"dropout: 0.1 on the Embedding 0.rows, allowed: 0; its input is an index"):
        cls(targets=["rows", *LINEAR], dropout=0.1).check(model)
    cls(targets=LINEAR, dropout=0.1).check(model)
