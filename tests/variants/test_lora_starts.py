"""PiSSA, MiLoRA and OLoRA: A and B start as a part of W, and the rest of W is what stays frozen."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.variants import oracles
from tests.variants.plain import close
from variants.core.adapters.from_start import FromStart
from variants.core.decompositions import decompose
from variants.lora import LoRA
from variants.testing.contract import HEAD, Toy

STARTS = ("pissa", "milora", "olora")


def attached(dtype: torch.dtype = torch.float64, **params) -> tuple[LoRA, nn.Module]:
    variant, model = LoRA(**params), Toy(dtype)
    return variant, variant.attach(model, HEAD)


def test_every_number_of_a_pissa_run():
    oracle = oracles.load("pissa")
    model = oracle.model()
    variant = LoRA(rank=2, alpha=3, init="pissa")
    variant.attach(model)
    x, y = oracle.tensor("toy/X"), oracle.tensor("toy/Y")
    for name, adapter in variant.adapters.items():
        assert isinstance(adapter, FromStart)
        # Signs are free; products and sizes are not.
        oracle.close(adapter.weight - 1.5 * adapter.B0 @ adapter.A0, f"base_residual/{name}")
        stored = [oracle.tensor(f"after_000/param/{name}.lora_{part}").clone() for part in "AB"]
        torch.testing.assert_close(adapter.A.abs(), stored[0].abs(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(adapter.B.abs(), stored[1].abs(), rtol=1e-9, atol=1e-12)
        adapter.set_start(*stored)
    optimizer = oracles.optimizer(model, variant, lr=0.01)
    losses, norms = [], []
    for step in range(61):
        if f"after_{step:03d}/output" in oracle.arrays:
            oracle.close(model(x), f"after_{step:03d}/output")
            for name, adapter in variant.adapters.items():
                oracle.close(adapter.A, f"after_{step:03d}/param/{name}.lora_A")
                oracle.close(adapter.B, f"after_{step:03d}/param/{name}.lora_B")
                if step:
                    oracle.close(adapter.delta_weight(), f"after_{step:03d}/delta/{name}")
        if step == 60:
            break
        loss = F.mse_loss(model(x), y)
        loss.backward()
        for name, adapter in variant.adapters.items():
            for part in "AB":
                if f"grad/{step:03d}/{name}.lora_{part}" in oracle.arrays:
                    oracle.close(getattr(adapter, part).grad, f"grad/{step:03d}/{name}.lora_{part}")
        losses.append(loss.item())
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))))
        optimizer.step()
        optimizer.zero_grad()
    oracle.close(losses, "loss_task")
    oracle.close(norms, "grad_norm")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"init": "pissa", "alpha": 4}, {"init_lora_weights": "pissa", "lora_alpha": 4}),
        ({"init": "olora", "alpha": 4}, {"init_lora_weights": "olora", "lora_alpha": 4}),
        (
            {"init": "olora", "alpha": 4, "scaling": "rslora"},
            {"init_lora_weights": "olora", "lora_alpha": 4, "use_rslora": True},
        ),
    ],
    ids=["pissa", "olora", "olora_rslora"],
)
def test_trajectory_of_peft(ours, theirs):
    peft = pytest.importorskip("peft")
    base = Toy()  # PEFT decomposes float32 weights only
    variant, model = LoRA(rank=2, **ours), copy.deepcopy(base).double()
    variant.attach(model, HEAD)
    config = peft.LoraConfig(r=2, **theirs, target_modules=["fc1", "fc2"])
    other = peft.get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False).double()
    layers = dict(other.named_modules())
    for name, adapter in variant.adapters.items():
        layer = layers[f"base_model.model.{name}"]
        a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        torch.testing.assert_close(adapter.B @ adapter.A, b @ a, rtol=0, atol=1e-5)
        # From here on both take the same float64 steps from the same factors.
        adapter.set_start(a, b)
        residual = adapter.weight - adapter.scale * b @ a
        torch.testing.assert_close(layer.base_layer.weight, residual, rtol=0, atol=1e-5)  # its own is float32
        layer.base_layer.weight.data = residual.clone()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 32, 8, generator=generator, dtype=torch.float64)
    for m in (model, other):
        optimizer = torch.optim.AdamW(
            [p for n, p in m.named_parameters() if p.requires_grad and "head" not in n], lr=0.01
        )
        for _ in range(80):
            F.mse_loss(m(x), y[:, :3]).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, adapter in variant.adapters.items():
        layer = layers[f"base_model.model.{name}"]
        start = adapter.scale * adapter.B0 @ adapter.A0
        assert close(adapter.delta(), layer.get_delta_weight("default") - start)
    assert close(model(x), other(x))


@pytest.mark.parametrize("init", STARTS)
@pytest.mark.parametrize("alpha", [2.0, 16.0])
def test_frozen_and_trained_part_add_up_to_the_weight(init: str, alpha: float):
    variant, _ = attached(rank=3, alpha=alpha, init=init)
    for adapter in variant.adapters.values():
        part = adapter.scale * adapter.B @ adapter.A
        assert int(torch.linalg.matrix_rank(part)) == 3
        s = torch.linalg.svdvals(adapter.weight)
        left = torch.linalg.svdvals(adapter.weight - part)[: len(s) - 3]
        if init == "pissa":
            torch.testing.assert_close(left, s[3:])
        if init == "milora":
            torch.testing.assert_close(left, s[:-3])
        assert not adapter.delta().any()


def test_randomised_pissa_comes_near_the_exact_one():
    exact, randomised = (attached(rank=2, init="pissa", init_iterations=n)[0] for n in (None, 30))
    for name, adapter in exact.adapters.items():
        other = randomised.adapters[name]
        torch.testing.assert_close(other.B @ other.A, adapter.B @ adapter.A, rtol=0, atol=1e-6)


def test_above_half_precision_the_start_is_exact_where_a_residual_would_be_rounded():
    variant, model = attached(torch.bfloat16, rank=2, init="pissa")
    x = torch.randn(16, 8).bfloat16()
    with torch.no_grad():
        assert torch.equal(model(x), Toy(torch.bfloat16)(x))
    adapter = next(iter(variant.adapters.values()))
    assert adapter.A.dtype == torch.float32
    found = decompose(adapter.weight, "svd", 2)
    torch.testing.assert_close(adapter.scale * adapter.B @ adapter.A, (found.U * found.s) @ found.Vh)


def test_the_start_travels_with_the_state_so_another_machines_signs_do_no_harm():
    (first, model), (second, other) = (attached(rank=2, init="pissa") for _ in range(2))
    for adapter in first.adapters.values():
        adapter.set_start(-adapter.A.detach(), -adapter.B.detach())  # what another SVD may give
        adapter.B.data += 0.1
    second.load_state_dict(first.state_dict())
    for name, parameter in model.named_parameters():
        dict(other.named_parameters())[name].data.copy_(parameter)
    x = torch.randn(4, 8, dtype=torch.float64)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize(("ours", "saved"), [("lora", "pissa"), ("pissa", "lora")])
def test_a_state_of_another_start_is_refused(ours: str, saved: str):
    first, second = attached(rank=2, init=saved)[0], attached(rank=2, init=ours)[0]
    with pytest.raises(ValueError, match=r"init: .*another start"):
        second.load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"init": "pissa", "dropout": 0.1}, r"dropout: 0.1 with init: pissa, allowed: 0"),
        ({"init": "olora", "dropout": 0.1}, r"dropout: 0.1 with init: olora"),
        ({"init": "eva"}, r"init: 'eva', allowed: lora, pissa, milora, olora"),
        ({"init": "olora", "init_iterations": 4}, r"init_iterations: 4 with init: olora"),
        ({"init": "pissa", "init_iterations": 0}, r"iterations: 0, allowed"),
    ],
)
def test_what_a_start_can_not_have(params, message):
    with pytest.raises(ValueError, match=message):
        LoRA(**params)
