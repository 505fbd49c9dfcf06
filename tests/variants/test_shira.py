"""SHiRA: its masks, gradients beside the dense ones, PEFT's trajectory; sparse updates on every kind of layer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.variants.kinds import OF_EVERY_KIND
from variants.core.adapters.sparse_delta import SparseDelta, largest
from variants.core.masks.sources import Random
from variants.shira import SHiRA
from variants.testing import contract
from variants.testing.contract import HEAD, Toy


def attached(dtype: torch.dtype = torch.float64, **params) -> tuple[SHiRA, nn.Module]:
    variant, model = SHiRA(**params), Toy(dtype)
    return variant, variant.attach(model, HEAD)


@pytest.mark.parametrize(("layer", "x"), OF_EVERY_KIND)
def test_on_every_kind_of_layer_output_and_gradients_are_those_of_the_dense_matrix(layer: nn.Module, x: torch.Tensor):
    base = copy.deepcopy(layer).double()
    x = x.double() if x.is_floating_point() else x
    generator = torch.Generator().manual_seed(0)
    adapter = SparseDelta(copy.deepcopy(base), torch.randperm(layer.weight.numel(), generator=generator)[:20], 0.5)
    assert torch.equal(adapter(x), base(x))
    nn.init.normal_(adapter.values)
    adapter.watched = True
    dense = copy.deepcopy(base)
    dense.weight.data += adapter.delta_weight()
    torch.testing.assert_close(adapter(x), dense(x), rtol=1e-12, atol=1e-12)
    adapter(x).square().sum().backward()
    dense(x).square().sum().backward()
    whole = adapter.layer_kind.__class__(dense)  # the dense layer's gradient in the layout of the matrix
    expected = copy.deepcopy(dense)
    expected.weight.data = dense.weight.grad
    matrix = type(whole)(expected).matrix
    torch.testing.assert_close(adapter.gradient, matrix, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(adapter.values.grad, 0.5 * matrix.flatten()[adapter.indices], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("params", SHiRA.test_params(), ids=str)
def test_without_weights_no_mask_is_drawn_and_the_count_is_the_same(params, monkeypatch):
    found, _ = attached(**params)
    monkeypatch.setattr(Random, "permutation", lambda *_: pytest.fail("a draw as long as the weights"))
    with torch.device("meta"):
        planned, _ = attached(**params)
    counts = [{name: len(adapter.values) for name, adapter in one.adapters.items()} for one in (found, planned)]
    assert counts[0] == counts[1] and all(adapter.values.is_meta for adapter in planned.adapters.values())


def test_above_half_precision_a_small_update_is_not_rounded_away():
    torch.manual_seed(0)
    adapter = SparseDelta(nn.Linear(8, 6, bias=False, dtype=torch.bfloat16), torch.tensor([0]))
    adapter.weight.data.fill_(1.0)
    adapter.values.data.fill_(1e-3)
    x = torch.zeros(1, 8, dtype=torch.bfloat16)
    assert adapter.values.dtype == torch.float32
    torch.testing.assert_close(adapter.update(x + 1)[0, 0], torch.tensor(1e-3))


def test_values_gradients_and_moments_have_as_many_entries_as_the_mask():
    run = contract.train(contract.attach(SHiRA, {"rank": 2}), 3)
    for adapter in run.variant.adapters.values():
        entries = 2 * (adapter.in_features + adapter.out_features)
        shapes = [t.shape for t in run.optimizer.state[adapter.values].values() if t.ndim]
        assert shapes == [(entries,)] * 2 and adapter.values.grad is None and adapter.closed_form() == entries
        assert int(torch.count_nonzero(adapter.delta())) == entries


def test_trajectory_of_peft_with_the_same_masks():
    peft = pytest.importorskip("peft")
    base = Toy(torch.float64)
    variant, model = SHiRA(rank=2, mask="magnitude"), copy.deepcopy(base)
    variant.attach(model, HEAD)

    def mask(base_layer: nn.Module, r: int) -> torch.Tensor:
        weight = base_layer.weight
        flat = torch.zeros(weight.numel(), dtype=weight.dtype)
        flat[largest(weight.abs(), r * sum(weight.shape))] = 1
        return flat.view_as(weight)

    config = peft.ShiraConfig(r=2, mask_type="largest", target_modules=["fc1", "fc2"])
    config.mask_fn = mask
    other = peft.get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False).double()
    x, y = torch.randn(2, 32, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for m in (model, other):
        parameters = [p for n, p in m.named_parameters() if p.requires_grad and "head" not in n]
        assert sum(p.numel() for p in parameters) == variant.closed_form()
        optimizer = torch.optim.AdamW(parameters, lr=0.01)
        for _ in range(60):
            F.mse_loss(m(x), y[:, :3]).backward()
            optimizer.step()
            optimizer.zero_grad()
    layers = dict(other.named_modules())
    for name, adapter in variant.adapters.items():
        theirs = layers[f"base_model.model.{name}"].get_delta_weight("default")
        torch.testing.assert_close(adapter.delta_weight(), theirs.to_dense(), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(model(x), other(x), rtol=1e-9, atol=0)


def test_masks_take_the_entries_that_they_say():
    x, y = contract.data(torch.float64)
    toy = Toy(torch.float64)
    F.mse_loss(toy(x), y).backward()
    for mask in ("magnitude", "gradient", "snip"):
        run = contract.train(contract.attach(SHiRA, {"rank": 1, "mask": mask}, torch.float64), 1)
        for name, adapter in run.variant.adapters.items():
            weight = toy.get_submodule(name).weight
            score = {
                "magnitude": weight.detach().abs(),
                "gradient": weight.grad.abs(),
                "snip": (weight.detach() * weight.grad).abs(),
            }[mask]
            chosen = torch.zeros(weight.numel(), dtype=torch.bool)
            chosen[adapter.indices] = True
            assert int(chosen.sum()) == sum(weight.shape)
            assert score.flatten()[chosen].min() >= score.flatten()[~chosen].max(), (mask, name)


def test_the_structured_mask_has_whole_rows_whole_columns_and_the_diagonal():
    variant, _ = attached(rank=1, mask="structured")
    adapter = variant.adapters["layer.0.fc1"]  # 12×8
    pattern = torch.zeros(12 * 8, dtype=torch.bool)
    pattern[adapter.indices] = True
    pattern = pattern.view(12, 8)
    assert pattern[0].all() and pattern[:, 0].all() and int(pattern.sum()) == 20 and pattern[1, 1]


def test_values_stay_zero_until_the_gradients_have_chosen():
    run = contract.attach(SHiRA, {"rank": 1, "mask": "gradient", "collect_steps": 3}, torch.float64)
    run.variant.on_step_begin(contract.Step(1, contract.STEPS, run.optimizer, run.scheduler))
    run.model(contract.data(torch.float64)[0]).sum().backward()
    for adapter in run.variant.adapters.values():
        assert adapter.values.grad is None, "or clipping would count it"
        assert adapter.rank == adapter.effective_parameters() == 0 < adapter.closed_form()
    run.model.zero_grad()
    contract.train(run, 3)
    for adapter in run.variant.adapters.values():
        assert not adapter.values.any() and adapter.values not in run.optimizer.state
    assert run.variant.state_dict()["sums"] == {}
    contract.train(run, 4)
    assert all(adapter.values.all() for adapter in run.variant.adapters.values())


@pytest.mark.parametrize("way", ["two batches", "checkpointed"])
def test_gradients_over_accumulated_batches_and_under_checkpointing_choose_the_same_mask(way: str):
    plain = contract.train(contract.attach(SHiRA, {"rank": 1, "mask": "gradient"}, torch.float64), 1)
    run = contract.attach(SHiRA, {"rank": 1, "mask": "gradient"}, torch.float64)
    x, y = contract.data(torch.float64)
    step = contract.Step(1, contract.STEPS, run.optimizer, run.scheduler)
    run.model.train()
    run.variant.on_step_begin(step)
    if way == "two batches":
        for half in (slice(0, 32), slice(32, 64)):
            (F.mse_loss(run.model(x[half]), y[half]) / 2).backward()
    else:
        output = checkpoint(run.model, x, use_reentrant=False)
        F.mse_loss(output, y).backward()
    run.variant.on_gradients(step)
    for name, adapter in run.variant.adapters.items():
        assert torch.equal(adapter.indices, plain.variant.adapters[name].indices)


def test_a_gradient_that_is_not_finite_chooses_nothing():
    run = contract.attach(SHiRA, {"rank": 1, "mask": "gradient"})
    step = contract.Step(1, contract.STEPS, run.optimizer, run.scheduler)
    run.variant.on_step_begin(step)
    (run.model(contract.data()[0]).sum() * float("nan")).backward()
    with pytest.raises(ValueError, match="mask: a score is not finite"):
        run.variant.on_gradients(step)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"mask": "best"}, r"mask: 'best', allowed: random, magnitude, gradient, snip, structured"),
        ({"collect_steps": 2}, r"collect_steps: 2 with mask: random, allowed: 1"),
        ({"mask": "magnitude", "seed": 1}, r"seed: 1 with mask: magnitude, allowed: 0"),
        ({"rank": 4, "budget": 10}, r"rank: 4 with budget: 10"),
        ({"scale": 0.0}, r"scale: 0.0, allowed: a number > 0"),
    ],
)
def test_what_it_refuses(params: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SHiRA(**params)


def test_more_entries_than_a_layer_has_are_refused():
    with pytest.raises(ValueError, match=r"rank: 5 makes 100 entries in layer.0.fc1 of size 12×8, allowed: at most 4"):
        attached(rank=5)


def test_a_run_shorter_than_the_collection_is_refused():
    with pytest.raises(ValueError, match=r"collect_steps: 12, allowed: fewer than the run's 12 steps"):
        SHiRA(mask="snip", collect_steps=12).plan(12)
