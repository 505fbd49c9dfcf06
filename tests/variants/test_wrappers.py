"""An adapter stands in its layer's place: whatever a model may do with the layer, it may do with the adapter.

Of every class of adapters, on every kind of layer, in the middle of training.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.variants.found import adapting
from variants.core.adapters.adapter import Adapter
from variants.core.kernels import low_rank
from variants.core.kernels.basis import basis_linear, through_basis
from variants.core.kernels.sparse import Entries, sparse_linear
from variants.lora import LoRA
from variants.testing.case import Case
from variants.testing.toys import HEAD, KINDS, Toy, attach, data, prepared, train

CASES = [Case(cls, params, kind) for cls, params in adapting() for kind in KINDS]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """One of each class of adapters on each kind of layer that it takes."""
    if request.param.refusal is not None:
        pytest.skip("the method takes no layers of this kind")
    return request.param


@pytest.fixture(scope="module")
def after_three_steps(case: Case) -> tuple[Adapter, torch.Tensor]:
    run = train(attach(case.cls, case.params, kind=case.kind), 3)
    inputs: list[torch.Tensor] = []
    adapter = next(adapter for adapter in run.variant.adapters.values() if not adapter.is_empty)
    handle = adapter.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0].detach()))
    run.model(data(kind=case.kind)[0])
    handle.remove()
    return adapter, inputs[0]


@pytest.fixture
def trained(after_three_steps: tuple[Adapter, torch.Tensor]) -> tuple[Adapter, torch.Tensor]:
    """The first adapter that has parameters in use, in the middle of training, and an input of it."""
    adapter, x = after_three_steps
    return adapter.train(), x


def results(adapter: Adapter, call: Any) -> list[torch.Tensor]:
    """What `call` gives, and the gradients that it leaves; dropout draws the same every time."""
    torch.manual_seed(0)
    adapter.zero_grad()
    y = call()
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in adapter.parameters() if p.grad is not None)]


def test_what_a_model_reads_off_a_layer_is_there(trained):
    adapter, _ = trained
    own = {"training", "in_features", "out_features"}  # of the matrix that the layer is
    names = [n for n in (*vars(adapter.base), *adapter.base._parameters) if not n.startswith("_") and n not in own]
    assert "weight" in names
    for name in names:
        assert getattr(adapter, name) is getattr(adapter.base, name), name
    assert adapter.weight.device.type == "cpu" and adapter.weight.dtype == torch.float32
    with pytest.raises(AttributeError, match="no_such_thing"):
        adapter.no_such_thing  # noqa: B018


def test_its_output_can_be_changed_in_place_whole_or_in_part(trained):
    adapter, x = trained

    def apart() -> torch.Tensor:
        y = adapter(x) * 2
        return torch.cat([y[:1] + 1, y[1:]])

    def in_place() -> torch.Tensor:
        y = adapter(x)
        y.mul_(2)
        y[:1] += 1
        return y

    def through_a_view() -> torch.Tensor:
        y = adapter(x)
        y.transpose(0, -1).mul_(2)
        y.view(len(y), -1)[:1].add_(1)
        return y

    for call in (in_place, through_a_view):
        for found, wanted in zip(results(adapter, call), results(adapter, apart), strict=True):
            torch.testing.assert_close(found, wanted)


def test_hooks_on_the_layer_see_the_whole_of_it_once(case):
    variant, model = prepared(case.cls, case.params, case.kind), Toy(kind=case.kind).eval()
    name, layer = next((name, module) for name, module in model.named_modules() if name.endswith("fc1"))
    seen: dict[str, list[Any]] = {"in": [], "out": [], "grad": []}
    before = layer.register_forward_pre_hook(lambda module, arguments: seen["in"].append(arguments[0]))
    layer.register_forward_hook(lambda module, arguments, output: seen["out"].append(output) or output * 1)
    layer.register_full_backward_hook(lambda module, ingoing, outgoing: seen["grad"].append(outgoing[0]))
    model = variant.attach(model, HEAD)
    x = data(kind=case.kind)[0]
    model(x).sum().backward()
    assert [len(calls) for calls in seen.values()] == [1, 1, 1]
    before.remove()
    model(x)
    assert [len(calls) for calls in seen.values()] == [1, 2, 1]
    plain = variant.merged(model)
    assert plain.get_submodule(name) is layer
    plain(x)
    assert len(seen["out"]) == 3


def test_a_copy_is_whole_and_apart(trained):
    adapter, x = trained
    adapter.eval()
    other = copy.deepcopy(adapter)
    assert type(other) is type(adapter) and torch.equal(other(x), adapter(x))
    assert other.base is not adapter.base and other.layer_kind.layer is other.base
    state = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapter.state_dict().items())
    other.load_state_dict(state)
    assert torch.equal(other(x), adapter(x))


def test_computed_again_in_the_backward_pass_it_gives_the_same(trained):
    adapter, x = trained
    if x.is_floating_point():  # without a gradient of its input the reentrant way has none at all
        x = x.clone().requires_grad_()
    expected = results(adapter, lambda: adapter(x))
    for reentrant in (False, True) if x.requires_grad else (False,):
        found = results(adapter, lambda: checkpoint(adapter, x, use_reentrant=reentrant))  # noqa: B023
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 5, 8)])
def test_what_the_products_return_is_no_view(shape):
    """A view that a custom function returns can't be changed in place."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(6, 8), torch.randn(6)
    a, b, c = (nn.Parameter(torch.randn(size)) for size in ((2, 8), (6, 2), (2,)))
    entries, values = Entries(torch.tensor([3, 9]), (6, 8)), nn.Parameter(torch.randn(2))
    for bias_or_none in (bias, None):
        for y in (
            low_rank.low_rank_linear(x, weight, bias_or_none, a, b),
            low_rank.low_rank_linear(x, weight, bias_or_none, a, b, c, 0.5, dropout=0.5),
            basis_linear(x, weight, bias_or_none, b.detach(), a.detach(), c),
            through_basis(x, bias_or_none, b.detach(), a.detach(), c),
            sparse_linear(x, weight, bias_or_none, values, entries, 0.5),
        ):
            assert not y._is_view() and y.shape == (*shape[:-1], 6)
            y.mul_(2).sum().backward()


def test_a_weight_that_a_hook_makes_anew_is_the_adapters_too():
    variant = prepared(LoRA, {"rank": 2})
    model = Toy()
    layer = next(module for name, module in model.named_modules() if name.endswith("fc1"))
    torch.nn.utils.weight_norm(layer)
    expected = model(data()[0])
    model = variant.attach(model, HEAD)
    torch.testing.assert_close(model(data()[0]), expected)
