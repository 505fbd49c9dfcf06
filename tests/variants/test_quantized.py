"""Linear layers of 8 or 4 bits: what they keep and compute, and methods above them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from trainer import config
from trainer.loop import cost
from variants.core import layers, quantization, quantized
from variants.core.adapters.adapter import LowRank
from variants.core.quantized import Quantized
from variants.full import Full

pytest.importorskip("bitsandbytes")
X = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0))


def linear(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(24, 40, bias=bias)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24, bias=False), nn.LayerNorm(24), nn.Linear(24, 3)
    )


def test_the_config_knows_the_ways():
    assert config.QUANTIZE == quantized.HOW


def test_nf4_rounds_to_sixteen_numbers_of_each_block():
    layer = linear()
    found = Quantized(layer, "nf4", torch.float32)
    for block, whole in zip(found.weight.flatten().split(64), layer.weight.flatten().split(64), strict=True):
        scale = whole.abs().max()
        levels = (block / scale).unique()
        assert len(levels) <= 16 and levels.min() >= -1 and levels.max() <= 1
        assert float((block - whole).abs().max() / scale) < 0.16  # half the widest gap between two levels


def test_int8_rounds_to_whole_numbers_of_each_row():
    layer = linear()
    found = Quantized(layer, "int8", torch.float32).weight / (layer.weight.abs().amax(1, keepdim=True) / 127)
    torch.testing.assert_close(found, found.round(), atol=1e-4, rtol=0)
    right = layer.weight / (layer.weight.abs().amax(1, keepdim=True) / 127)
    assert float((found - right).abs().max()) < 0.51


@pytest.mark.parametrize("how", quantized.HOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_computes_what_a_layer_of_its_numbers_does_and_keeps_nothing(how, dtype):
    layer = Quantized(linear(), how, dtype)
    plain = nn.Linear(24, 40, dtype=dtype)
    plain.weight.data, plain.bias.data = layer.weight, layer.bias.data
    one, two = (X.to(dtype).requires_grad_() for _ in range(2))
    activations = cost.SavedActivations(layer)
    with activations.counting():
        found = layer(one)
    assert activations.bytes == 0 and found.dtype == dtype
    close = {"rtol": 0.02, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found, plain(two), **close)
    found.square().sum().backward()
    plain(two).square().sum().backward()
    torch.testing.assert_close(one.grad, two.grad, **close)


@pytest.mark.parametrize(("how", "size"), [("int8", 40 * 24 + 40 * 4), ("nf4", 40 * 24 // 2 + 40 * 24 // 64 * 4)])
def test_bytes_are_those_that_it_keeps(how, size):
    layer = Quantized(linear(bias=False), how, torch.float32)
    assert cost.weight_bytes(layer) == size and cost.parameters(layer) == 40 * 24
    with torch.device("meta"):
        skeleton = linear(bias=False)
    bare = Quantized(skeleton, how, torch.float32)
    assert [t.shape for t in bare.buffers()] == [t.shape for t in layer.buffers()] and bare.weight.shape == (40, 24)


@pytest.mark.parametrize("how", quantized.HOW)
def test_a_merged_update_is_whole_and_unmerged_every_bit_is_back(how):
    layer = Quantized(linear(), how, torch.float32)
    before, adapter = layer.weight.clone(), LowRank(layer, 3, 0.5)
    nn.init.normal_(adapter.B)
    unmerged = adapter(X)
    adapter.merge()
    assert torch.equal(layer.weight, before + adapter.delta_weight())
    torch.testing.assert_close(adapter(X), unmerged)
    with adapter.disabled():
        assert torch.equal(layer.weight, before)
    adapter.unmerge()
    assert torch.equal(adapter(X), unmerged) and torch.equal(layer.weight, before) and layer.dense is None


def test_all_but_the_head_and_shared_weights_are_quantised_and_plain_again_with_the_same_numbers():
    own = model()
    own.append(nn.Linear(40, 24, bias=False))
    own[5].weight = own[2].weight
    quantization.quantize(own, "nf4", ["4"], torch.float32)
    assert [name for name, m in own.named_modules() if isinstance(m, Quantized)] == ["0"]
    numbers = own[0].weight
    assert quantization.dequantize(own) == 1
    assert type(own[0]) is nn.Linear and torch.equal(own[0].weight, numbers) and not own[0].weight.requires_grad


def test_a_model_without_linear_layers_and_full_training_are_refused():
    with pytest.raises(ValueError, match=r"quantize: nf4, and Sequential has no layer of torch.nn.Linear outside"):
        quantization.quantize(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)), "nf4", ["1"], torch.float32)
    own = model()
    quantization.quantize(own, "int8", ["4"], torch.float32)
    with pytest.raises(ValueError, match=r"^model.quantize: int8 with full, allowed: null; it trains every weight$"):
        Full().check(own)


def test_it_is_a_linear_layer_for_targets():
    layer = Quantized(linear(), "nf4", torch.float32)
    assert layers.is_linear(layer) and layers.size(layer) == (40, 24) and layers.takes_dropout(layer)


def test_its_numbers_are_those_of_bitsandbytes_own_layer():
    import bitsandbytes

    layer = linear()
    theirs = bitsandbytes.nn.Linear4bit(
        24, 40, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=False
    )
    theirs.load_state_dict(copy.deepcopy(layer).state_dict())
    theirs.to("cpu")
    torch.testing.assert_close(theirs(X), Quantized(layer, "nf4", torch.float32)(X))
