"""The product with a sparse update: equal to the reference in every setting, its gradients right, nothing kept."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from variants.core.kernels import low_rank, sparse
from variants.core.kernels.low_rank import Kernel
from variants.core.kernels.sparse import Entries


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def tensors(count: int, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (3, 5, 12)):
    """x, weight (10, 12), bias, values and their entries, in no order; what trains has a gradient."""
    x, values = (torch.randn(*size, dtype=dtype).requires_grad_() for size in (shape, (count,)))
    weight, bias = torch.randn(10, 12, dtype=dtype), torch.randn(10, dtype=dtype)
    return x, weight, bias, values, Entries(torch.randperm(120)[:count], (10, 12))


@pytest.mark.parametrize("shape", [(3, 5, 12), (4, 12), (12,), (0, 12), (1100, 12)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("count", [7, 60])
def test_it_equals_the_reference_with_its_gradients(shape: tuple[int, ...], biased: bool, count: int) -> None:
    found = {}
    for name in low_rank.KERNELS:
        torch.manual_seed(1)
        x, weight, bias, values, entries = tensors(count, shape=shape)
        assert entries.few == (count == 7)
        y = sparse.sparse_linear(x, weight, bias if biased else None, values, entries, 1.7, Kernel(name))
        y.backward(torch.cos(y.detach() * 3))
        found[name] = (y.detach(), x.grad, values.grad)
    for fused, plain in zip(found["fused"], found["plain"], strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", ["", "x", "v"])
@pytest.mark.parametrize("count", [7, 60])
def test_gradcheck(frozen: str, count: int) -> None:
    x, weight, bias, values, entries = tensors(count)
    x.requires_grad_("x" not in frozen), values.requires_grad_("v" not in frozen)
    call = lambda x, v: sparse.sparse_linear(x, weight.t().contiguous().t(), bias, v, entries, 0.7)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, values))


def test_a_layer_used_twice_sums_its_gradients() -> None:
    x, _, _, values, _ = tensors(7)
    square, entries = torch.randn(12, 12, dtype=torch.float64), Entries(torch.randperm(144)[:7], (12, 12))
    once = lambda x, v: sparse.sparse_linear(x, square, None, v, entries)  # noqa: E731
    assert torch.autograd.gradcheck(lambda x, v: once(once(x, v), v), (x, values))


def test_gradient_checkpointing_gives_the_same_bits() -> None:
    found = []
    for recompute in (False, True):
        torch.manual_seed(5)
        x, weight, bias, values, entries = tensors(7)
        call = lambda x, v, w=weight, b=bias, e=entries: sparse.sparse_linear(x, w, b, v, e)  # noqa: E731
        y = checkpoint(call, x, values, use_reentrant=False) if recompute else call(x, values)
        y.square().sum().backward()
        found.append((y.detach(), x.grad, values.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", low_rank.KERNELS)
def test_under_autocast_the_output_is_what_the_base_layer_gives(name: str) -> None:
    x, weight, bias, values, entries = tensors(7, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse.sparse_linear(x, weight, bias, values, entries, kernel=Kernel(name))
        assert y.dtype == torch.nn.functional.linear(x, weight, bias).dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == values.grad.dtype == torch.float32
    exact = torch.autograd.grad(sparse.sparse_linear(x, weight, bias, values, entries).sum(), values)[0]
    torch.testing.assert_close(values.grad, exact, rtol=0.05, atol=0.2)


def test_it_saves_nothing_but_what_it_was_given() -> None:
    x, weight, bias, values, entries = tensors(7, torch.float32)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        sparse.sparse_linear(x, weight, bias, values, entries)
    own = {t.untyped_storage().data_ptr() for t in (x, weight, bias, values)}
    assert saved and all(t.untyped_storage().data_ptr() in own for t in saved)
