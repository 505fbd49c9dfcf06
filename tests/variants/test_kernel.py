"""The one kernel: equal to the reference in every setting, its gradients right, its dropout a true one."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.variants.pairwise import covering
from variants.core.adapters.adapter import LowRank, use_kernel
from variants.core.kernels import low_rank
from variants.core.kernels.dropout import draw
from variants.core.kernels.low_rank import Kernel, low_rank_linear


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def join(monkeypatch: pytest.MonkeyPatch, *summed: int) -> None:
    """Has the kernel make W′ wherever a product sums up so many features."""
    joins = lambda tokens, weight: weight.dtype.itemsize >= 4 and weight.shape[1] in summed  # noqa: E731
    monkeypatch.setattr(low_rank, "_merging_pays", joins)


JOINED = {"in both passes": (8, 6), "in the forward pass": (8,), "in the backward pass": (6,)}  # features summed up


WAYS = ["few tokens", "many tokens", "of a wide layer", *JOINED]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the kernel computes, which it chooses by size: a few tokens of a 6×8 layer stand for few, or for many."""
    if request.param in JOINED:
        join(monkeypatch, *JOINED[request.param])
    if request.param != "few tokens":
        monkeypatch.setattr(low_rank, "_MANY", 2)
    if request.param == "of a wide layer":
        monkeypatch.setattr(low_rank, "_NARROW", 1)
        monkeypatch.setattr(low_rank, "_BLOCK", 2)


def tensors(dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (3, 5, 8), r: int = 2):
    """x, weight (6, 8), bias, a, b; what trains has a gradient."""
    draw = lambda *size: torch.randn(*size, dtype=dtype)  # noqa: E731
    x, a, b = (draw(*size).requires_grad_() for size in (shape, (r, 8), (6, r)))
    return x, draw(6, 8), draw(6), a, b


CORES = {"none": (), "diagonal": (2,), "square": (2, 2)}


@pytest.mark.parametrize(
    ("way", "shape", "biased", "dropout", "core"),
    covering(
        {
            "way": WAYS,
            "shape": [(3, 5, 8), (4, 8), (8,), (0, 8), (9, 32, 8)],
            "biased": [True, False],
            "dropout": [0.0, 0.3],
            "core": list(CORES),
        }
    ),
    indirect=["way"],
)
def test_it_equals_the_reference_with_its_gradients(
    way: None, shape: tuple[int, ...], biased: bool, dropout: float, core: str
) -> None:
    found = {}
    for name in low_rank.KERNELS:
        torch.manual_seed(1)
        x, weight, bias, a, b = tensors(shape=shape)
        c = torch.randn(CORES[core], dtype=x.dtype, requires_grad=True) if CORES[core] else None
        y = low_rank_linear(x, weight, bias if biased else None, a, b, c, 1.7, dropout, Kernel(name))
        y.backward(torch.cos(y.detach() * 3))
        found[name] = (y.detach(), x.grad, a.grad, b.grad, *([] if c is None else [c.grad]))
    for fused, plain in zip(found["fused"], found["plain"], strict=True):
        # The gradients of parameters are sums over tokens, whose terms cancel.
        torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12 * max(1, x.numel() // 8))


@pytest.mark.parametrize(
    ("way", "masked", "frozen", "core", "recompute"),
    covering(
        {
            "way": WAYS,
            "masked": [False, True],
            "frozen": ["", "w", "xw", "aw", "bw", "abw", "xaw", "xbw"],
            "core": list(CORES),
            "recompute": [False, True],
        }
    ),
    indirect=["way"],
)
def test_gradcheck(way: None, masked: bool, frozen: str, core: str, recompute: bool) -> None:
    x, weight, bias, a, b = tensors(shape=(2, 2, 8))
    source, least, _ = draw(x, 0.3, seed_alone=recompute) if masked else (None, 0, 1.0)
    c = torch.randn(CORES[core], dtype=x.dtype, requires_grad=True) if CORES[core] else None
    for name, tensor in (("x", x), ("a", a), ("b", b), ("w", weight)):
        tensor.requires_grad_(name not in frozen)
    call = lambda x, w, a, b, c: low_rank._LowRankLinear.apply(x, w, bias, a, b, c, 0.7, source, least, recompute)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, weight, a, b, c))


@pytest.mark.usefixtures("way")
def test_a_weight_that_lies_transposed_serves_as_well() -> None:
    x, weight, bias, a, b = tensors()
    transposed = weight.t().contiguous().t()
    assert transposed.stride() != weight.stride()
    torch.testing.assert_close(low_rank_linear(x, transposed, bias, a, b), low_rank_linear(x, weight, bias, a, b))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("transposed", [False, True])
def test_an_update_of_zero_leaves_the_layers_output_bit_for_bit(transposed: bool) -> None:
    x, weight, bias, a, b = (t.detach() for t in tensors(torch.float32))
    weight = weight.t().contiguous().t() if transposed else weight
    assert torch.equal(low_rank_linear(x, weight, bias, a, b * 0), torch.nn.functional.linear(x, weight, bias))


def test_how_it_computes_depends_on_the_number_of_tokens_and_on_the_pass() -> None:
    joins = lambda *size: [low_rank._merging_pays(tokens, torch.empty(size)) for tokens in (512, 1024, 2048, 4096)]  # noqa: E731
    assert joins(384, 384) == [False, False, True, True]
    assert joins(1536, 384) == [False, True, True, True]
    assert joins(384, 1536) == [False, False, False, True]
    lower = torch.empty(384, 384).bfloat16()
    assert not low_rank._merging_pays(4096, lower), "a sum in bfloat16 would round the update away"


def test_a_layer_used_twice_sums_its_gradients() -> None:
    x, _, _, a, b = tensors()
    square, b = torch.randn(8, 8, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    twice = lambda x, a, b: low_rank_linear(low_rank_linear(x, square, None, a, b), square, None, a, b)  # noqa: E731
    assert torch.autograd.gradcheck(twice, (x, a, b))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_gives_the_same_bits(dropout: float) -> None:
    found = []
    for recompute in (False, True):
        torch.manual_seed(5)
        x, weight, bias, a, b = tensors()
        call = lambda x, a, b, w=weight, c=bias: low_rank_linear(x, w, c, a, b, dropout=dropout)  # noqa: E731
        y = checkpoint(call, x, a, b, use_reentrant=False) if recompute else call(x, a, b)
        y.square().sum().backward()
        found.append((y.detach(), x.grad, a.grad, b.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", low_rank.KERNELS)
def test_above_bfloat16_products_are_in_bfloat16_and_gradients_in_float32(name: str) -> None:
    x, weight, bias, a, b = tensors(torch.float32)
    exact = low_rank_linear(x, weight, bias, a, b)
    y = low_rank_linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), a, b, kernel=Kernel(name))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.2)
    y.float().sum().backward()
    assert a.grad.dtype == b.grad.dtype == torch.float32


@pytest.mark.parametrize("name", low_rank.KERNELS)
def test_under_autocast_the_output_is_what_the_base_layer_gives(name: str) -> None:
    x, weight, bias, a, b = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = low_rank_linear(x, weight, bias, a, b, kernel=Kernel(name))
        assert y.dtype == torch.nn.functional.linear(x, weight, bias).dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == a.grad.dtype == b.grad.dtype == torch.float32


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_it_compiles_without_a_break(dropout: float) -> None:
    x, weight, bias, a, b = tensors(torch.float32)
    explained = torch._dynamo.explain(lambda x: low_rank_linear(x, weight, bias, a, b, dropout=dropout).sum())(x)
    assert explained.graph_break_count == 0 and explained.graph_count == 1


def saved(x: torch.Tensor, *parameters: torch.Tensor, dropout: float = 0.0, recompute: bool = False) -> list[int]:
    """Numbers in what the product keeps beyond its arguments."""
    kept: dict[int, torch.Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(id(t), t), lambda t: t):
        low_rank_linear(x, *parameters, dropout=dropout, kernel=Kernel(recompute=recompute))
    given = {t.untyped_storage().data_ptr() for t in (x, *parameters)}
    return sorted(t.numel() for t in kept.values() if t.untyped_storage().data_ptr() not in given)


def test_what_it_saves_is_the_input_and_rank_sized_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = tensors(torch.float32), tensors(torch.float32, (4, 9, 8))
    assert saved(*few) == [15 * 2]  # h
    assert saved(*few, dropout=0.1) == [15 * 2, 15 * 8]  # and bits
    join(monkeypatch, 6)
    assert saved(*many) == [36 * 2], "the backward pass alone makes W′"
    join(monkeypatch, 8)
    assert saved(*many) == []
    x, *parameters, a, b = many
    assert saved(x, *parameters, a.detach(), b) == [36 * 2], "with A frozen h is needed and x is not"


def test_to_recompute_saves_a_seed_alone_and_gives_the_same_bits() -> None:
    found = []
    for recompute in (False, True):
        torch.manual_seed(5)
        x, *parameters = tensors()
        y = low_rank_linear(x, *parameters, dropout=0.3, kernel=Kernel(recompute=recompute))
        y.square().sum().backward()
        found.append((y.detach(), x.grad, *(p.grad for p in parameters[2:])))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    few = tensors(torch.float32)
    assert saved(*few, recompute=True) == [] and saved(*few, dropout=0.1, recompute=True) == [2]


def test_dropout_leaves_the_mean_as_it_is() -> None:
    x, weight, bias, a, b = (t.detach() for t in tensors())
    outputs = torch.stack([low_rank_linear(x, weight, bias, a, b, dropout=0.4) for _ in range(4000)])
    error = (outputs.mean(0) - low_rank_linear(x, weight, bias, a, b)).abs() / (outputs.std(0) / 4000**0.5)
    assert error.max() < 4.5


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel: 'fast', allowed: fused, plain"):
        Kernel("fast")


def test_two_models_in_one_process_have_a_kernel_each() -> None:
    fused, recomputing, plain = (torch.nn.Sequential(LowRank(torch.nn.Linear(8, 6), 2, 1.0, 0.3)) for _ in range(3))
    use_kernel(recomputing, Kernel(recompute=True))
    use_kernel(plain, Kernel("plain"))

    def kept(model: torch.nn.Module) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model.train()(torch.randn(15, 8))
        return sum(sizes)

    assert kept(recomputing) < kept(fused)  # a seed in the place of dropout's bits
    names = [type(model(torch.randn(15, 8)).grad_fn).__name__ for model in (fused, recomputing, plain)]
    assert names == ["_LowRankLinearBackward", "_LowRankLinearBackward", "AddBackward0"]
