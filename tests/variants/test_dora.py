"""DoRA: stored runs and PEFT's trajectory, ΔW as it acts, the magnitude's decay, budgets."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.variants import mixed, oracles
from tests.variants.kinds import OF_EVERY_KIND
from tests.variants.plain import close
from trainer.loop.optim import build_optimizer
from variants.core.kernels.dropout import draw, drop
from variants.core.variant import Step
from variants.dora import Decomposed, DoRA
from variants.testing.contract import HEAD, STEPS, Toy, attach, data, train


def filled(layer: nn.Module, **options) -> Decomposed:
    """An adapter in float64 whose parameters are far from the start."""
    torch.manual_seed(1)
    adapter = Decomposed(copy.deepcopy(layer).double(), **{"rank": 3, "scale": 0.5, "dropout": 0.0} | options)
    nn.init.normal_(adapter.B)
    adapter.magnitude.data.mul_(1 + torch.rand_like(adapter.magnitude))
    return adapter


def double(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


def test_every_number_of_the_stored_run():
    oracle = oracles.load("dora")
    settings = json.loads((oracles.FOLDER / "dora" / "oracle.json").read_text())["hyperparameters"]
    total, model = settings["steps"], oracle.model()
    variant = DoRA(rank=settings["r"], alpha=settings["lora_alpha"], magnitude_decay=settings["weight_decay"])
    variant.attach(model)

    def parts(name: str) -> dict[str, nn.Parameter]:
        adapter = variant.adapters[name]
        return {"lora_A": adapter.A, "lora_B": adapter.B, "magnitude": adapter.magnitude}

    for name in variant.adapters:
        oracle.close(parts(name)["magnitude"], f"after_000/param/{name}.magnitude")
        for part, parameter in parts(name).items():
            parameter.data = oracle.tensor(f"after_000/param/{name}.{part}").clone()
    x, y = oracle.tensor("toy/X"), oracle.tensor("toy/Y")
    optimizer = oracles.optimizer(model, variant, settings["lr"], settings["weight_decay"])

    def check_state(step: int) -> None:
        key = f"after_{step:03d}"
        if f"{key}/output" not in oracle.arrays:
            return
        oracle.close(model(x), f"{key}/output")
        oracle.close(F.mse_loss(model(x), y), f"{key}/loss_task")
        for name, adapter in variant.adapters.items():
            for part, parameter in parts(name).items():
                oracle.close(parameter, f"{key}/param/{name}.{part}")
            if step:
                oracle.close(adapter.delta_weight(), f"{key}/delta/{name}")

    losses, norms = [], []
    for t in range(total):
        check_state(t)
        loss = F.mse_loss(model(x), y)
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]).norm().item())
        for name in variant.adapters:
            for part, parameter in parts(name).items():
                if f"grad/{t:03d}/{name}.{part}" in oracle.arrays:
                    oracle.close(parameter.grad, f"grad/{t:03d}/{name}.{part}")
        optimizer.step()
        optimizer.zero_grad()
    check_state(total)
    oracle.close(losses, "loss_task")
    oracle.close(norms, "grad_norm")


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT sets it right for each layer, and says so
@pytest.mark.parametrize("kind", ["linear layers", "every kind of layer"])
def test_trajectory_of_peft(kind):
    peft = pytest.importorskip("peft")
    if kind == "linear layers":
        base, targets = Toy(torch.float64), ["fc1", "fc2"]
        x, y = data(torch.float64)
    else:
        base, targets = mixed.Mixed().double(), mixed.KINDS
        x, y = mixed.data()
    ours = DoRA(rank=2, alpha=3.0, targets=targets)
    model = ours.attach(copy.deepcopy(base), HEAD)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets, use_dora=True, lora_dropout=0.0)
    theirs = peft.get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False).double()
    layers = {name: theirs.get_submodule(f"base_model.model.{name}") for name in ours.adapters}
    factors = {}
    for name, adapter in ours.adapters.items():
        layer, embedding = layers[name], name == "embedding"
        a = layer.lora_embedding_A["default"] if embedding else layer.lora_A["default"].weight
        b = layer.lora_embedding_B["default"] if embedding else layer.lora_B["default"].weight
        factors[name] = (a, b, layer.lora_magnitude_vector["default"].weight)
        nn.init.kaiming_uniform_(a, a=5**0.5)
        nn.init.zeros_(b)
        adapter.A.data = a.detach().reshape(adapter.A.shape).clone()
        torch.testing.assert_close(adapter.magnitude, factors[name][2].reshape(-1), rtol=1e-12, atol=0)
    losses = []
    for m in (model, theirs):
        parameters = [p for n, p in m.named_parameters() if p.requires_grad and "head" not in n]
        assert sum(p.numel() for p in parameters) == ours.closed_form()
        optimizer = torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.01)
        for _ in range(80):
            loss = F.mse_loss(m(x), y.double())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    for name, adapter in ours.adapters.items():
        for found, expected in zip((adapter.A, adapter.B, adapter.magnitude), factors[name], strict=True):
            assert close(found, expected.reshape(found.shape))
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("layer", "x"), OF_EVERY_KIND)
def test_on_every_kind_of_layer_it_acts_as_the_normalised_matrix(layer, x):
    adapter, x = filled(layer), double(x)
    v = adapter.frozen() + 0.5 * adapter.B @ adapter.A
    torch.testing.assert_close(adapter.norm(), v.norm(dim=1), rtol=1e-12, atol=0)
    expected = adapter.magnitude[:, None] * v / v.norm(dim=1, keepdim=True)
    torch.testing.assert_close(adapter.delta() + adapter.frozen(), expected, rtol=1e-12, atol=1e-14)
    dense = copy.deepcopy(adapter.base)
    with torch.no_grad():
        dense.weight += adapter.delta_weight()
    torch.testing.assert_close(adapter(x), dense(x), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(adapter.base(x) + adapter.update(x), dense(x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("layer", "x"), OF_EVERY_KIND)
def test_at_the_start_it_is_the_base_layer_bit_for_bit(layer, x):
    for dtype in (torch.float32, torch.bfloat16):
        base = copy.deepcopy(layer).to(dtype)
        x = x.to(dtype) if x.is_floating_point() else x
        adapter = Decomposed(base, 3, 0.5, 0.0)
        assert torch.equal(adapter(x), base(x)) and not adapter.delta().any()


@pytest.mark.parametrize(("layer", "x"), OF_EVERY_KIND)
def test_merged_equals_unmerged_and_disabled_the_base(layer, x):
    adapter, x = filled(layer), double(x)
    unmerged, weight, delta = adapter(x), adapter.weight.clone(), adapter.delta().detach()
    adapter.merge()
    torch.testing.assert_close(adapter(x), unmerged, rtol=1e-12, atol=1e-12)
    assert torch.equal(adapter.delta(), delta), "ΔW is that of the original weight, not of the merged one"
    with adapter.disabled():
        assert torch.equal(adapter(x), adapter.base(x)) and torch.equal(adapter.weight, weight)
    adapter.unmerge()
    assert torch.equal(adapter.weight, weight) and torch.equal(adapter(x), unmerged)


@pytest.mark.parametrize(("layer", "x"), OF_EVERY_KIND)
def test_gradients_are_those_of_the_matrix_with_a_constant_norm(layer, x):
    adapter, x = filled(layer), double(x)
    adapter(x).square().sum().backward()
    leaves = [p.detach().clone().requires_grad_() for p in (adapter.A, adapter.B, adapter.magnitude)]
    a, b, magnitude = leaves
    v = adapter.frozen() + 0.5 * b @ a
    matrix = magnitude[:, None] * v / v.norm(dim=1, keepdim=True).detach()
    base = copy.deepcopy(adapter.base)
    if isinstance(base, nn.Embedding):
        base.padding_idx = None  # the adapter is trained in the padding row too
    torch.func.functional_call(base, {"weight": adapter.layer_kind.as_weight(matrix)}, (x,)).square().sum().backward()
    for found, expected in zip((adapter.A, adapter.B, adapter.magnitude), leaves, strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-10, atol=1e-11)
    assert adapter.weight.grad is None


def test_dropout_acts_on_the_weights_input_too():
    adapter = filled(nn.Linear(8, 6), dropout=0.5)
    x = torch.randn(64, 8, dtype=torch.float64)
    torch.manual_seed(2)
    found = adapter.train()(x)
    torch.manual_seed(2)
    dropped = drop(x, draw(x, 0.5))
    torch.testing.assert_close(found, adapter.base(x) + dropped @ adapter.delta().T, rtol=1e-11, atol=1e-12)
    assert not torch.equal(adapter.eval()(x), found)


def test_above_half_precision_the_direction_is_that_of_float32():
    torch.manual_seed(0)
    layer = nn.Linear(64, 32, dtype=torch.bfloat16)
    adapter = Decomposed(layer, 4, 1.0, 0.0)
    assert {p.dtype for p in adapter.parameters() if p.requires_grad} == {torch.float32}
    nn.init.normal_(adapter.B, std=1e-3)  # a change that bfloat16 would round away
    v = layer.weight.float() + adapter.B @ adapter.A
    without = adapter.norm()
    torch.testing.assert_close(without, v.norm(dim=1), rtol=1e-6, atol=0)
    x = torch.randn(16, 64, dtype=torch.bfloat16)
    expected = F.linear(x.float(), adapter.delta())
    torch.testing.assert_close(adapter.update(x), expected, rtol=1e-4, atol=1e-5)
    assert adapter(x).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(adapter.norm(), without), "autocast does not reach the norm"


def test_the_update_has_full_rank_however_small_r_is():
    run = train(attach(DoRA, {"rank": 1}, torch.float64))
    for adapter in run.variant.adapters.values():
        assert adapter.rank == int(torch.linalg.matrix_rank(adapter.delta())) == 8
    assert run.variant.effective_parameters() == run.variant.closed_form() == 4 * 20 + 40


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_weight_decay_acts_on_the_magnitude_only_where_it_is_asked_for(decay):
    run = attach(DoRA, {"rank": 2, "magnitude_decay": decay})
    optim = OmegaConf.create(
        {"lr": 0.02, "head_lr": None, "weight_decay": 0.1, "optimizer": {"_target_": "torch.optim.AdamW"}}
    )
    optimizer = build_optimizer(run.model, HEAD, run.variant, optim)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for adapter in run.variant.adapters.values():
        assert [decays[id(p)] for p in (adapter.A, adapter.B, adapter.magnitude)] == [0.1, 0.1, decay]


@pytest.mark.parametrize("budget", [130, 150, 200, 260])
def test_a_budget_counts_the_magnitudes(budget):
    run = attach(DoRA, {"budget": budget})
    found = sum(p.numel() for n, p in run.model.named_parameters() if p.requires_grad and "head" not in n)
    assert found == run.variant.effective_parameters() and budget - 20 < found <= budget


def test_a_budget_that_does_not_reach_rank_one_is_an_error_with_the_range():
    with pytest.raises(ValueError, match="budget: 119 parameters, allowed for these targets: 120 … 680"):
        attach(DoRA, {"budget": 119})


@pytest.mark.parametrize("way", ["two batches", "checkpointed"])
def test_accumulated_batches_and_checkpointing_give_the_same_model(way):
    plain, run = (attach(DoRA, {"rank": 2}, torch.float64) for _ in range(2))
    train(plain)
    x, y = data(torch.float64)
    for index in range(1, STEPS + 1):
        run.model.train()
        run.variant.on_step_begin(Step(index, STEPS, run.optimizer, run.scheduler))
        if way == "two batches":
            for half in (slice(0, 32), slice(32, 64)):
                (F.mse_loss(run.model(x[half]).float(), y[half]) / 2).backward()
        else:
            F.mse_loss(checkpoint(run.model, x, use_reentrant=False).float(), y).backward()
        run.optimizer.step()
        run.scheduler.step()
        run.model.zero_grad()
    torch.testing.assert_close(run.output(), plain.output(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank: 0, allowed: a whole number ≥ 1"),
        ({"alpha": 0}, "alpha: 0, allowed: a number > 0"),
        ({"magnitude_decay": -0.1}, "magnitude_decay: -0.1, allowed: a number ≥ 0"),
    ],
)
def test_what_can_not_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DoRA(**settings)


def test_a_row_of_zeros_is_refused_by_the_name_of_its_layer():
    model = Toy()
    model.layer[1]["fc1"].weight.data[3] = 0
    with pytest.raises(ValueError, match=r"targets: layer.1.fc1 has 1 outputs whose weights are all zero"):
        DoRA(rank=2).attach(model, HEAD)


def test_dropout_on_row_numbers_is_refused():
    with pytest.raises(ValueError, match=r"dropout: 0.1 on a Embedding, allowed: 0"):
        Decomposed(nn.Embedding(10, 6), 2, 1.0, 0.1)


def test_above_half_precision_a_magnitude_near_its_start_is_not_rounded_to_it():
    base = nn.Linear(8, 64, bias=False, dtype=torch.bfloat16)
    adapter = Decomposed(base, 2, 1.0, 0.0)
    x = torch.randn(5, 8, dtype=torch.bfloat16)
    adapter.magnitude.data *= 1.003  # bfloat16 has nothing between 1 and 1.0078
    assert torch.equal(adapter(x), (base(x).float() * (adapter.magnitude / adapter.norm())).bfloat16())
    assert not torch.equal(adapter(x), base(x))
