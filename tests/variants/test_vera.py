"""VeRA: PEFT's form and training, one pair of matrices for all layers, and its budget."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from variants.testing.toys import HEAD, Toy, attach, data, train
from variants.vera import VeRA


def test_trajectory_of_peft() -> None:
    peft = pytest.importorskip("peft")
    base = Toy(torch.float64)
    variant, model = VeRA(rank=10), copy.deepcopy(base)
    variant.attach(model, HEAD)
    config = peft.VeraConfig(r=10, target_modules=["fc1", "fc2"])
    other = peft.get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False)
    theirs = dict(other.named_modules())["base_model.model.layer.0.fc1"]
    a, b = theirs.vera_A["default"], theirs.vera_B["default"]
    assert (a.shape, b.shape) == ((10, 12), (12, 10))
    for name, module in other.named_modules():  # PEFT draws them and makes the vectors in single precision
        if name.endswith(("fc1", "fc2")):
            module.vera_lambda_d.double(), module.vera_lambda_b.double()
            module.vera_lambda_d["default"].data.fill_(0.1)
            module.vera_A["default"], module.vera_B["default"] = a.double(), b.double()
    variant.load_state_dict({"shared": {"A": a, "B": b}})
    x, y = data(torch.float64)
    optimizers = [
        torch.optim.AdamW([p for n, p in m.named_parameters() if p.requires_grad and "head" not in n], lr=0.05)
        for m in (model, other)
    ]
    for _ in range(40):
        for m, optimizer in zip((model, other), optimizers, strict=True):
            F.mse_loss(m(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, adapter in variant.adapters.items():
        layer = dict(other.named_modules())[f"base_model.model.{name}"]
        expected = layer.vera_lambda_b["default"][:, None] * (
            (b.double()[: adapter.out_features] * layer.vera_lambda_d["default"]) @ a.double()[:, : adapter.in_features]
        )
        assert adapter.delta().any()
        torch.testing.assert_close(adapter.delta(), expected, rtol=1e-9, atol=1e-13)


def test_layers_share_one_pair_of_matrices_as_large_as_the_widest_asks_for() -> None:
    run = attach(VeRA, {"rank": 5})
    first, *others = run.variant.adapters.values()
    assert (first.shared.a.shape, first.shared.b.shape) == ((5, 12), (12, 5))
    assert all(adapter.shared is first.shared for adapter in others)
    assert not any("shared" in name or name.endswith((".A", ".B")) for name, _ in run.model.named_buffers())
    saved = run.variant.state_dict()
    assert sum(tensor.numel() for tensor in saved["shared"].values()) == 5 * 24


def test_the_output_of_a_layer_is_that_of_its_update() -> None:
    run = train(attach(VeRA, {"rank": 5, "d_start": 1.0}, torch.float64))
    for adapter in run.variant.adapters.values():
        x = torch.randn(3, 4, adapter.in_features, dtype=torch.float64)
        expected = F.linear(x, adapter.weight + adapter.delta(), adapter.layer_kind.layer.bias)
        torch.testing.assert_close(adapter(x), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("budget", [44, 45, 46, 47, 1000])
def test_a_budget_is_met_exactly(budget: int) -> None:
    run = attach(VeRA, {"budget": budget})
    ranks = [len(adapter.d) for adapter in run.variant.adapters.values()]
    assert run.variant.closed_form() == budget == sum(ranks) + 40
    assert max(ranks) - min(ranks) <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 43}, "budget: 43 parameters, allowed for these targets: at least 44"),
        ({"rank": 0}, "rank: 0, allowed: a whole number ≥ 1"),
        ({"d_start": 0.0}, "d_start: 0.0, allowed: a number > 0"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(VeRA, settings)
