"""LoRA-drop: the choice against outputs written out, what shared layers are, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from variants.core.passes import Passes
from variants.core.step import Loss
from variants.lora_drop import LoRADrop
from variants.testing.toys import HEAD, Toy, attach, data, passes, prepared, train

SAMPLE = {"rank": 2, "sample_steps": 3, "lr": 0.03}
NAMES = ("layer.0.fc1", "layer.0.fc2", "layer.1.fc1", "layer.1.fc2")


def written_out(starts: dict[str, torch.Tensor]) -> dict[str, float]:
    """g of every layer, from A at the start, with the toy's own layers and torch's Adam."""
    toy, (x, y) = Toy(torch.float64), data(torch.float64)
    a = {name: start.clone().requires_grad_() for name, start in starts.items()}
    b = {n: torch.zeros(toy.get_submodule(n).out_features, 2, dtype=torch.float64, requires_grad=True) for n in a}
    head = {f"head.{n}": p.detach().clone().requires_grad_() for n, p in toy.head.named_parameters()}
    adam = torch.optim.Adam([*a.values(), *b.values(), *head.values()], lr=0.03)

    def outputs(rows: torch.Tensor) -> torch.Tensor:
        weights = {f"{n}.weight": toy.get_submodule(n).weight.detach() + 8 * b[n] @ a[n] for n in a}
        return functional_call(toy, weights | head, (rows,))

    for t in range(3):
        adam.zero_grad()
        F.mse_loss(outputs(x[16 * t : 16 * t + 16]), y[16 * t : 16 * t + 16]).backward()
        adam.step()
    seen: dict[str, torch.Tensor] = {}
    for name in a:
        layer = toy.get_submodule(name)
        layer.register_forward_pre_hook(lambda module, arguments, name=name: seen.update({name: arguments[0]}))
    with torch.no_grad():
        outputs(x[:48])
        return {n: float((8 * seen[n] @ a[n].T @ b[n].T).square().sum()) for n in a}


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.7, 1.0])
def test_the_choice_written_out(threshold: float) -> None:
    variant = prepared(LoRADrop, {**SAMPLE, "threshold": threshold})
    model = Toy(torch.float64)
    torch.manual_seed(0)
    variant.attach(model, HEAD)
    starts = {name: adapter.A.detach().clone() for name, adapter in variant.adapters.items()}
    variant.before_training(passes(model, torch.float64))
    sums = written_out(starts)
    for of in (NAMES[::2], NAMES[1::2]):
        shares = {name: sums[name] / (sums[of[0]] + sums[of[1]]) for name in of}
        assert {name: variant._shares[name] for name in of} == pytest.approx(shares, rel=1e-9)
        owners = {variant._owners[name] for name in of}
        first, second = sorted(of, key=lambda name: -shares[name])
        # None of its own and both share; or each has its own, if one does, because the other has no one to share with.
        assert owners == ({of[0]} if threshold == 0 else {first, second})
    for name in starts:  # everything begins again
        owner = variant._owners[name]
        assert torch.equal(variant.adapters[name].A, starts[owner]) and not variant.adapters[name].B.any()
    assert torch.equal(model.head.weight, Toy(torch.float64).head.weight)


def test_the_fewest_layers_of_a_type_that_reach_the_threshold_keep_their_own() -> None:
    run = attach(LoRADrop, SAMPLE)
    names = [f"layer.{i}.fc1" for i in range(5)]
    run.variant._shares = dict(zip(names, [0.1, 0.4, 0.05, 0.3, 0.15], strict=True))
    for threshold, own in [
        (0.0, []),
        (0.4, [1]),
        (0.41, [1, 3]),
        (0.7, [1, 3]),
        (0.9, [0, 1, 3, 4]),
        (1.0, [0, 1, 2, 3, 4]),
    ]:
        run.variant.threshold = threshold
        owners = run.variant._chosen(names)
        others = [name for i, name in enumerate(names) if i not in own]
        assert owners == {names[i]: names[i] for i in own} | dict.fromkeys(others, next(iter(others), ""))


def test_layers_that_share_have_one_update_and_are_counted_once() -> None:
    run = train(attach(LoRADrop, {**SAMPLE, "threshold": 0.0}))
    first, second = (run.variant.adapters[name] for name in NAMES[::2])
    assert first.A is second.A and first.B is second.B and torch.equal(first.delta(), second.delta())
    assert run.variant.effective_parameters() == 80 == sum(p.numel() for p in run.trainable().values())
    assert run.variant.report() == {"layers_that_share": 4}


def test_with_a_budget_the_ranks_are_those_of_the_loras_that_are_left() -> None:
    settings = {"budget": 170, "threshold": 0.0, "sample_steps": 3, "lr": 0.03}
    run = attach(LoRADrop, settings)
    assert sorted(run.variant.ranks().values()) == [4, 4, 4, 4] and run.variant.closed_form() == 160
    assert {adapter.scale for adapter in run.variant.adapters.values()} == {4.0}
    again = attach(LoRADrop, settings, seed=1)
    again.variant.load_state_dict(run.variant.state_dict())
    assert again.variant.ranks() == run.variant.ranks()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.2}, "threshold: 1.2, allowed: 0 ≤ threshold ≤ 1"),
        ({"rank": 9}, "rank: 9 for a layer of size 12×8, allowed: 1 … 8"),
        ({**SAMPLE, "lr": 1e30}, "on the sample leaves an output that is not finite, allowed: less"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(LoRADrop, settings)


def test_a_layer_outside_the_loss_is_named() -> None:
    run = attach(LoRADrop, SAMPLE)  # before any step: no B has moved
    with pytest.raises(ValueError, match=r"^targets: layer\.0\.fc1 is not part of the loss; exclude it$"):
        run.variant._measure(passes(run.model))


def test_padding_is_in_no_sum_and_every_other_token_is() -> None:
    """In the last layer, too, of which only one token may reach the loss."""
    run = train(attach(LoRADrop, {**SAMPLE, "threshold": 1.0}))
    x, _ = data(torch.float32)
    real = torch.zeros(16, 8, dtype=torch.bool)
    real[:, 3:] = True
    rows = torch.zeros(16, 8, x.shape[-1]) + x[:16, None]

    def summed(mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
        loss = lambda batch: Loss(run.model(batch)[:, 0].sum(), 1)  # noqa: E731
        held = Passes(run.model, lambda n: iter(()), lambda n: iter(()), loss, lambda batch: 1, lambda batch: mask)
        return held.squared_updates(run.variant.adapters, [rows])

    whole, without = summed(None), summed(real)
    for name in NAMES:
        torch.testing.assert_close(without[name], whole[name] * 5 / 8)
