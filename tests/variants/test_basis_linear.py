"""Products in a basis, with W + U C Vh formed and without W: numbers, gradients, and when each is the cheapest."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from trainer.loop.cost import SavedActivations
from variants.core.adapters import singular_basis
from variants.core.decompositions import decompose
from variants.core.kernels import low_rank
from variants.core.kernels.basis import BESIDE, FORMED, THROUGH, basis_linear, cheapest, through_basis
from variants.core.kernels.low_rank import Kernel
from variants.svdiff import SVDiff
from variants.svft import SVFT
from variants.testing.contract import HEAD, Toy

SIZES = [(6, 5), (5, 6), (4, 4)]


def parts(out_features: int, in_features: int, diagonal: bool, dtype: torch.dtype = torch.float64):
    """x, W, b, U, Vh and C; W = U diag(s) Vh."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out_features, in_features, generator=generator, dtype=dtype)
    found = decompose(weight)
    r = len(found.s)
    core = torch.randn(r if diagonal else (r, r), generator=generator, dtype=dtype).requires_grad_()
    x = torch.randn(3, 7, in_features, generator=generator, dtype=dtype).requires_grad_()
    bias = torch.randn(out_features, generator=generator, dtype=dtype)
    return x, weight, bias, found.U, found.Vh, core


@pytest.fixture(params=low_rank.KERNELS)
def either(request):
    """Both ways to compute it."""
    return Kernel(request.param)


@pytest.mark.parametrize("diagonal", [True, False], ids=["diagonal", "full"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_computes_what_the_kernel_computes(size, diagonal, either):
    x, weight, bias, u, vh, core = parts(*size, diagonal)
    found = basis_linear(x, weight, bias, u, vh, core, 1.5, either)
    expected = low_rank.low_rank_linear(x, weight, bias, vh, u, core, 1.5, kernel=either)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    up = torch.randn_like(found)
    for mine, theirs in zip(*(torch.autograd.grad(y, (x, core), up) for y in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("diagonal", [True, False], ids=["diagonal", "full"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_its_gradients_are_those_of_finite_differences(size, diagonal, bias):
    x, weight, b, u, vh, core = parts(*size, diagonal)
    assert torch.autograd.gradcheck(
        lambda x, core: basis_linear(x, weight, b if bias else None, u, vh, core, 1.5), (x, core)
    )
    # Only one of them wanted, as in a first layer, and in evaluation of a frozen core.
    torch.autograd.gradcheck(lambda core: basis_linear(x.detach(), weight, b, u, vh, core), (core,))
    torch.autograd.gradcheck(lambda x: basis_linear(x, weight, b, u, vh, core.detach()), (x,))


@pytest.mark.parametrize("diagonal", [True, False], ids=["diagonal", "full"])
@pytest.mark.parametrize("layer", [nn.Linear(16, 24), Conv1D(24, 16)], ids=["Linear", "Conv1D"])
def test_without_an_update_it_is_the_layer_bit_for_bit(layer, diagonal, either):
    weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
    found = decompose(weight)
    core = torch.zeros(16 if diagonal else (16, 16))
    x = torch.randn(4, 9, 16)
    with torch.no_grad():
        assert torch.equal(basis_linear(x, weight, layer.bias, found.U, found.Vh, core, kernel=either), layer(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("diagonal", [True, False], ids=["diagonal", "full"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_basis_that_gives_w_back_needs_no_product_with_w(size, diagonal, bias, either):
    x, weight, b, u, vh, core = parts(*size, diagonal)
    b, s = b if bias else None, decompose(weight).s
    d = core + (s if diagonal else torch.diag(s))
    found = through_basis(x, b, u, vh, d, either)
    expected = low_rank.low_rank_linear(x, weight, b, vh, u, core, kernel=either)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    up = torch.randn_like(found)
    pairs = zip(*(torch.autograd.grad(y, (x, core), up, retain_graph=True) for y in (found, expected)), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)
    alone = torch.autograd.grad(through_basis(x.detach(), b, u, vh, d, either), core, up)  # as in a first layer
    torch.testing.assert_close(alone[0], torch.autograd.grad(expected, core, up)[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("tokens", "part", "whole"),
    [(64, BESIDE, THROUGH), (400, FORMED, THROUGH), (1100, FORMED, THROUGH), (1200, FORMED, FORMED)],
)
def test_the_number_of_tokens_decides_which_way_is_cheapest(tokens, part, whole):
    assert cheapest(tokens, 384, 384, torch.zeros(384), whole=False) == part
    assert cheapest(tokens, 384, 384, torch.zeros(384), whole=True) == whole


def test_a_basis_of_few_directions_is_never_formed():
    assert {cheapest(tokens, 384, 384, torch.zeros(32), False) for tokens in (64, 4096, 2**20)} == {BESIDE}


METHODS = [(SVDiff, {}), (SVFT, {}), (SVFT, {"pattern": "banded", "off_diagonals": 2})]


@pytest.mark.parametrize("cls, params", METHODS)
def test_a_method_trains_alike_in_all_ways(cls, params, monkeypatch):
    ends, calls = [], []
    for way in (BESIDE, FORMED, THROUGH):
        monkeypatch.setattr(singular_basis, "cheapest", lambda *_, way=way: calls.append(way) or way)
        variant, model = cls(**params), Toy(torch.float64)
        variant.attach(model, HEAD)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)
        x = torch.randn(32, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for _ in range(20):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(model(x))
    assert set(calls) == {BESIDE, FORMED, THROUGH}
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cls, params", METHODS)
def test_only_training_leaves_w_out(cls, params):
    base, model, x = Toy(), Toy(), torch.randn(3, 8)  # three tokens: too few to form W'
    cls(**params).attach(model, HEAD)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), base.eval()(x)), "an untrained model is not the base model"
    weights = [p for name, p in model.named_parameters() if name.endswith("base.weight")]
    trained = model.train()(x)
    torch.testing.assert_close(trained, base(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        [weight.zero_() for weight in weights]
    assert torch.equal(model(x), trained) and not torch.equal(model.eval()(x), trained)


def test_a_part_of_the_directions_does_not_give_w_back():
    model = Toy()
    SVDiff(rank=7).attach(model, HEAD)
    weights = [p for name, p in model.named_parameters() if name.endswith("base.weight")]
    before = model(torch.ones(3, 8))
    with torch.no_grad():
        [weight.zero_() for weight in weights]
    assert not torch.allclose(model(torch.ones(3, 8)), before)


@pytest.mark.parametrize("context", ["autocast", "bfloat16"])
def test_where_it_would_round_the_update_away_it_is_not_formed(context, monkeypatch):
    monkeypatch.setattr(singular_basis, "cheapest", lambda *_: FORMED)
    monkeypatch.setattr(low_rank, "merged_weight", None)  # what forms it
    variant, model = SVFT(), Toy(torch.bfloat16 if context == "bfloat16" else torch.float32)
    variant.attach(model, HEAD)
    x = torch.randn(4, 8)
    if context == "bfloat16":
        model(x.bfloat16())
        return
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
    with pytest.raises(TypeError):
        model(x)


def test_the_input_is_all_that_is_saved():
    layer = nn.Linear(16, 16)
    adapter = SVDiff().attach(nn.Sequential(layer))[0]
    saved = SavedActivations(adapter)
    with saved.counting():
        adapter(torch.randn(64, 16))
    core = 4 * 16
    assert 4 * 64 * 16 <= saved.bytes <= 4 * 64 * 16 + 4 * core
