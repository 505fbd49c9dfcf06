"""LoRA: its formula, its options, and its training beside the official code's and PEFT's."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.variants import oracles
from trainer.loop.cost import SavedActivations
from variants.core.adapters.adapter import LowRank
from variants.core.kernels.dropout import draw
from variants.lora import LoRA
from variants.testing.contract import HEAD, Toy


def attached(**params) -> tuple[LoRA, nn.Module]:
    variant, model = LoRA(**params), Toy()
    return variant, variant.attach(model, HEAD)


def test_trajectory_of_the_official_code():
    oracle = oracles.load("lora")
    model = oracle.model()
    variant = LoRA(rank=2, alpha=4)
    variant.attach(model)
    for name, adapter in variant.adapters.items():
        adapter.A.data = oracle.tensor(f"after_000/param/{name}.lora_A").clone()
        adapter.B.data = oracle.tensor(f"after_000/param/{name}.lora_B").clone()
    x, y = oracle.tensor("toy/X"), oracle.tensor("toy/Y")
    optimizer = oracles.optimizer(model, variant, lr=0.01)
    losses, norms = [], []
    for step in range(60):
        if f"after_{step:03d}/output" in oracle.arrays:
            oracle.close(model(x), f"after_{step:03d}/output")
            for name, adapter in variant.adapters.items():
                oracle.close(adapter.A, f"after_{step:03d}/param/{name}.lora_A")
                if step:
                    oracle.close(adapter.B, f"after_{step:03d}/param/{name}.lora_B")
                    oracle.close(adapter.delta_weight(), f"after_{step:03d}/delta/{name}")
        loss = F.mse_loss(model(x), y)
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        losses.append(loss.item())
        norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))))
        for name, adapter in variant.adapters.items():
            if f"grad/{step:03d}/{name}.lora_B" in oracle.arrays:
                oracle.close(adapter.B.grad, f"grad/{step:03d}/{name}.lora_B")
        optimizer.step()
        optimizer.zero_grad()
    oracle.close(losses, "loss_task")
    oracle.close(norms, "grad_norm")
    oracle.close(model(x), "after_060/output")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"rank": 2, "alpha": 4}, {"r": 2, "lora_alpha": 4}),
        ({"rank": 4, "alpha": 4, "scaling": "rslora"}, {"r": 4, "lora_alpha": 4, "use_rslora": True}),
        (
            {"rank": 2, "alpha": 4, "rank_pattern": {"fc1": 3}, "alpha_pattern": {"fc2": 8}},
            {"r": 2, "lora_alpha": 4, "rank_pattern": {"fc1": 3}, "alpha_pattern": {"fc2": 8}},
        ),
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_trajectory_of_peft(ours, theirs):
    peft = pytest.importorskip("peft")
    base = Toy(torch.float64)
    variant, model = LoRA(**ours), copy.deepcopy(base)
    variant.attach(model, HEAD)
    config = peft.LoraConfig(**theirs, target_modules=["fc1", "fc2"])
    other = peft.get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False)
    theirs_by_name = dict(other.named_modules())
    pairs = []
    for name, adapter in variant.adapters.items():
        layer = theirs_by_name[f"base_model.model.{name}"]
        adapter.A.data = layer.lora_A["default"].weight.detach().clone()
        pairs.append((adapter, layer))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 32, 8, generator=generator, dtype=torch.float64)
    y = y[:, :3]
    optimizers = [
        torch.optim.AdamW([p for n, p in m.named_parameters() if p.requires_grad and "head" not in n], lr=0.01)
        for m in (model, other)
    ]
    for _ in range(80):
        for m, optimizer in zip((model, other), optimizers, strict=True):
            F.mse_loss(m(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for adapter, layer in pairs:
        torch.testing.assert_close(adapter.delta_weight(), layer.get_delta_weight("default"), rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(model(x), other(x), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("scaling", "scale"), [("lora", 16 / 4), ("rslora", 16 / math.sqrt(4))])
def test_scaling(scaling, scale):
    variant, _ = attached(rank=4, alpha=16, scaling=scaling)
    assert {adapter.scale for adapter in variant.adapters.values()} == {scale}


def test_patterns_set_the_rank_and_the_alpha_of_the_layers_they_mean():
    variant, _ = attached(rank=2, alpha=2, rank_pattern={"layer.0.*": 4, "fc2": 3}, alpha_pattern={"fc1": 8})
    found = {name: (adapter.rank, adapter.scale) for name, adapter in variant.adapters.items()}
    assert found == {
        "layer.0.fc1": (4, 2.0),
        "layer.0.fc2": (4, 0.5),
        "layer.1.fc1": (2, 4.0),
        "layer.1.fc2": (3, 2 / 3),
    }


def test_lora_plus_gives_b_its_own_rate():
    variant, model = attached(lr_ratio=16.0)
    rates = {name: variant.optimizer_options(name) for name, p in model.named_parameters() if p.requires_grad}
    assert rates["layer.0.fc1.B"] == {"lr_scale": 16.0} and rates["layer.0.fc1.A"] == {}


def test_dropout_acts_on_the_adapters_input_in_training_only():
    variant, model = attached(rank=2, dropout=0.5)
    adapter = variant.adapters["layer.0.fc1"]
    adapter.B.data.normal_()
    x = torch.randn(3, 8)
    model.train()
    torch.manual_seed(1)
    bits, least, up = draw(x, 0.5)
    expected = adapter.base(x) + x * (bits >= least) * up @ adapter.delta_weight().T
    torch.manual_seed(1)
    torch.testing.assert_close(adapter(x), expected)
    model.eval()
    torch.testing.assert_close(adapter(x), adapter.base(x) + x @ adapter.delta_weight().T)


def test_a_is_drawn_kaiming_uniform_and_b_is_zero():
    torch.manual_seed(0)
    adapter = LowRank(nn.Linear(512, 256), rank=64, scale=1.0)
    bound = 1 / math.sqrt(512)
    assert 0.99 * bound < float(adapter.A.detach().abs().max()) <= bound
    assert float(adapter.A.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not adapter.B.any()


# -- LoRA-FA: A is not trained ---------------------------------------------------------------------


def test_with_a_frozen_b_moves_as_it_does_beside_an_a_that_is_never_stepped():
    variant, model = attached(rank=2, frozen_a=True)
    torch.manual_seed(3)
    beside, other = attached(rank=2)
    for name, adapter in beside.adapters.items():
        adapter.A.data = variant.adapters[name].A.detach().clone()
    start = {name: adapter.A.detach().clone() for name, adapter in variant.adapters.items()}
    other.head.load_state_dict(model.head.state_dict())
    x, y = torch.randn(32, 8), torch.randn(32, 3)
    for m in (model, other):
        optimizer = torch.optim.AdamW([p for n, p in m.named_parameters() if p.requires_grad and not n.endswith(".A")])
        for _ in range(20):
            F.mse_loss(m(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, adapter in variant.adapters.items():
        assert torch.equal(adapter.A, start[name]) and not torch.equal(adapter.B, torch.zeros_like(adapter.B))
        torch.testing.assert_close(adapter.B, beside.adapters[name].B)


def test_a_frozen_factor_costs_nothing_of_a_budget():
    variant, _ = attached(rank=3, frozen_a=True)
    assert (
        variant.closed_form()
        == variant.effective_parameters()
        == 3 * sum(adapter.out_features for adapter in variant.adapters.values())
    )
    both, _ = attached(budget=120)
    alone, _ = attached(budget=120, frozen_a=True)
    assert set(both.ranks().values()) <= {1, 2} and alone.ranks() == dict.fromkeys(both.ranks(), 3)


def test_a_state_says_whether_a_was_trained():
    frozen, trained = attached(rank=2, frozen_a=True)[0], attached(rank=2)[0]
    with pytest.raises(ValueError, match=r"frozen_a: false, the saved state was trained with true"):
        trained.load_state_dict(frozen.state_dict())
    with pytest.raises(ValueError, match=r"frozen_a: true, the saved state was trained with false"):
        frozen.load_state_dict(trained.state_dict())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_inputs_of_layers_with_a_frozen_are_not_kept_for_the_backward_pass(dropout):
    rows, width, rank = 64, 96, 2
    kept = {}
    for frozen_a in (False, True):
        model = nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))
        LoRA(rank=rank, dropout=dropout, frozen_a=frozen_a).attach(model)
        saved = SavedActivations(model)
        with saved.counting():
            model.train()(torch.randn(rows, width))
        kept[frozen_a] = saved.bytes
    # Of four layers each keeps rank numbers a row, and what dropout drew, two bytes an entry.
    assert kept[True] == 4 * (4 * rows * rank + (2 * rows * width if dropout else 0))
    assert kept[False] == kept[True] + 4 * 4 * rows * width
