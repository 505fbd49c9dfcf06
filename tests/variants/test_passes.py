"""Passes before training: gradients and inputs of the base model on every kind of layer, and nothing else moves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from variants.core import layers
from variants.core.passes import all_reached
from variants.fish import FISH
from variants.lora import LoRA
from variants.masked import Masked
from variants.testing.toys import HEAD, KINDS, TARGETS, Toy, passes


def attached(kind: str, dtype: torch.dtype = torch.float64) -> tuple[LoRA, Toy]:
    variant, toy = LoRA(rank=2, targets=list(TARGETS)), Toy(dtype, kind)
    variant.attach(toy, HEAD)
    for adapter in variant.adapters.values():
        torch.nn.init.normal_(adapter.B)  # an update that a pass must not see
    return variant, toy


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_base_models_weights(kind: str, checkpointing: bool) -> None:
    variant, toy = attached(kind)
    toy.checkpointing = checkpointing
    taken = passes(toy, torch.float64, kind)
    (step,) = taken.steps(1)
    found = taken.gradients(variant.adapters, step)
    base = Toy(torch.float64, kind)
    F.mse_loss(base(step[0][0]), step[0][1]).backward()
    for name in variant.adapters:
        layer = base.get_submodule(name)
        expected = layers.kind_of(layer).as_matrix(layer.weight.grad)
        torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_one_row_has_that_of_the_bias(kind: str) -> None:
    variant, toy = attached(kind)
    taken = passes(toy, torch.float64, kind)
    (row,) = taken.rows(1)
    found = taken.of_row(variant.adapters, row)
    base = Toy(torch.float64, kind)
    F.mse_loss(base(row[0]), row[1]).backward()
    for name in variant.adapters:
        if (bias := getattr(base.get_submodule(name), "bias", None)) is not None:
            torch.testing.assert_close(found[f"{name}.bias"], bias.grad, rtol=1e-10, atol=1e-13)


def test_a_pass_leaves_no_gradient_and_no_hook_and_draws_nothing() -> None:
    variant, toy = attached("Linear")
    taken = passes(toy, torch.float64)
    before, mode = torch.get_rng_state(), toy.training
    for step in taken.steps(3):
        taken.gradients(variant.adapters, step)
        taken.inputs(variant.adapters, step)
    assert taken.count == 6
    assert all(p.grad is None for p in toy.parameters()) and toy.training is mode
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(a._forward_hooks or a._forward_pre_hooks for a in variant.adapters.values())


def test_inputs_are_those_of_the_base_model() -> None:
    variant, toy = attached("Linear")
    taken = passes(toy, torch.float64)
    (step,) = taken.steps(1)
    found = taken.inputs(variant.adapters, step)
    assert torch.equal(found["layer.0.fc1"], step[0][0])
    base = Toy(torch.float64)
    assert torch.equal(found["layer.0.fc2"], torch.tanh(base.layer[0]["fc1"](step[0][0])))


def test_padding_is_no_input() -> None:
    variant, toy = attached("Linear")
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    taken = passes(toy, torch.float64)
    taken._real = lambda batch: torch.tensor([[True, True, False], [True, False, False]])
    taken._loss = lambda batch: toy(batch[0]).sum()
    found = taken.inputs(variant.adapters, [(x, None)])
    assert torch.equal(found["layer.0.fc1"], torch.stack([x[0, 0], x[0, 1], x[1, 0]]))


def test_a_layer_that_is_not_part_of_the_loss_is_named() -> None:
    variant, toy = attached("Linear")
    toy.layer = toy.layer[:1]
    taken = passes(toy, torch.float64)
    (step,) = taken.steps(1)
    with pytest.raises(ValueError, match=r"targets: layer.1.fc1 is not part of the loss; exclude it"):
        all_reached(taken.gradients(variant.adapters, step), variant.adapters)


def test_probabilities_of_a_task_without_classes_are_refused() -> None:
    variant, toy = attached("Linear")
    taken = passes(toy, torch.float64)
    taken._logits = lambda batch: None
    (row,) = taken.rows(1)
    with pytest.raises(ValueError, match=r"^fisher: true on a task without classes, allowed: the empirical Fisher"):
        next(taken.of_classes(variant.adapters, row, "fisher: true"))


@pytest.mark.parametrize(
    ("cls", "settings", "named"),
    [(FISH, {"fisher": "true"}, "fisher: true"), (Masked, {"source": "true_fisher"}, "source: true_fisher")],
)
def test_the_field_that_asks_for_classes_is_named(cls: type, settings: dict[str, str], named: str) -> None:
    variant, toy = cls(**settings, samples=2, density=0.1), Toy(torch.float64)
    variant.check(toy, ("head",))
    taken = passes(variant.attach(toy, ("head",)), torch.float64)
    taken._logits = lambda batch: None
    with pytest.raises(ValueError, match=f"^{named} on a task without classes"):
        variant.before_training(taken)
