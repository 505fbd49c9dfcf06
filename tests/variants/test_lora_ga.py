"""LoRA-GA: PEFT's start and training, the paper's start, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from variants.lora_ga import LoRAGA
from variants.testing.toys import HEAD, Toy, attach, data, passes


def mean_gradients(batches: int) -> dict[str, torch.Tensor]:
    """The toy's mean gradients over its first batches, by torch alone."""
    toy = Toy(torch.float64)
    x, y = data(torch.float64)
    for number in range(batches):
        rows = slice(16 * number, 16 * (number + 1))
        (F.mse_loss(toy(x[rows]), y[rows]) / batches).backward()
    return {name: p.grad for name, p in toy.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_trajectory_of_peft() -> None:
    peft = pytest.importorskip("peft")
    from peft.tuners.lora.loraga import preprocess_loraga

    base = Toy()  # PEFT decomposes in float32
    x, y = data()
    theirs = copy.deepcopy(base)
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["fc1", "fc2"],
        init_lora_weights="lora_ga",
        lora_ga_config=peft.LoraGAConfig(),
    )

    def train_step() -> None:
        for number in range(3):
            F.mse_loss(theirs(x[16 * number : 16 * (number + 1)]), y[16 * number : 16 * (number + 1)]).backward()

    preprocess_loraga(theirs, config, train_step)
    other = peft.get_peft_model(theirs, config, autocast_adapter_dtype=False).double()
    variant, model = LoRAGA(rank=2, alpha=6, batches=3, profile="peft"), copy.deepcopy(base).double()
    variant.attach(model, HEAD)
    variant.before_training(passes(model, torch.float64))
    found = dict(other.named_modules())
    for name, adapter in variant.adapters.items():
        layer = found[f"base_model.model.{name}"]
        a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        # Signs of singular vectors are free; single precision and the randomised SVD leave this difference.
        torch.testing.assert_close(adapter.A.abs(), a.abs(), rtol=0, atol=1e-4)
        torch.testing.assert_close(adapter.B.abs(), b.abs(), rtol=0, atol=1e-4 * float(b.abs().max()))
        residual = adapter.weight - adapter.scale * b @ a
        torch.testing.assert_close(layer.base_layer.weight, residual, rtol=0, atol=1e-5)
        adapter.set_start(a, b)  # from here on both take the same steps in float64
        layer.base_layer.weight.data = residual.clone()
    x, y = data(torch.float64)
    for m in (model, other):
        optimizer = torch.optim.AdamW([p for n, p in m.named_parameters() if p.requires_grad and "head" not in n], 0.01)
        for _ in range(40):
            F.mse_loss(m(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, adapter in variant.adapters.items():
        layer = found[f"base_model.model.{name}"]
        expected = layer.get_delta_weight("default") - adapter.scale * adapter.B0 @ adapter.A0
        torch.testing.assert_close(adapter.delta(), expected, rtol=1e-9, atol=1e-12)


def test_the_papers_start_is_the_leading_directions_of_the_mean_gradient() -> None:
    run = attach(LoRAGA, {"rank": 2, "batches": 3, "gamma": 9.0}, torch.float64)
    for name, gradient in mean_gradients(3).items():
        adapter = run.variant.adapters.get(name.removesuffix(".weight"))
        if adapter is None:
            continue
        u, _, vh = torch.linalg.svd(gradient)
        c = adapter.out_features**0.25 / 3
        torch.testing.assert_close(adapter.A.abs(), (c * vh[:2]).abs())
        torch.testing.assert_close(adapter.B.abs(), (c * u[:, 2:4]).abs())
        assert not adapter.delta().any()


def test_a_budget_is_met_to_less_than_a_rank() -> None:
    run = attach(LoRAGA, {"budget": 231, "batches": 1})
    assert 211 < run.variant.effective_parameters() <= 231


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 5}, r"rank: 5 for layer.0.fc1 of size 12×8, allowed: 1 … 4; it takes twice as many directions"),
        ({"profile": "released"}, "profile: 'released', allowed: paper, peft"),
        ({"gamma": 0.0}, "gamma: 0.0, allowed: a number > 0"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(LoRAGA, settings)


def test_a_layer_without_a_gradient_is_refused() -> None:
    variant = LoRAGA(rank=1)
    variant.attach(Toy(), HEAD)
    with pytest.raises(ValueError, match=r"targets: the gradient of layer.0.fc1 is zero or not finite; exclude it"):
        variant.start_of("layer.0.fc1", torch.zeros(12, 8))
