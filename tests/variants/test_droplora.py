"""DropLoRA: training written out, what is dropped, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from variants.core.kernels import dropout as dropouts
from variants.droplora import DropLoRA
from variants.testing.toys import HEAD, Toy, attach, data, train


def test_training_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[torch.Tensor] = []
    drawn = dropouts.draw

    def draw(x: torch.Tensor, p: float, **options) -> dropouts.Drawn:
        found = drawn(x, p, **options)
        masks.append(dropouts.mask(found.source, found.least, x.shape, x.dtype) * found.up)
        return found

    monkeypatch.setattr(dropouts, "draw", draw)
    run = attach(DropLoRA, {"rank": 3, "alpha": 6.0, "rank_dropout": 0.4}, torch.float64)
    toy, (x, y) = Toy(torch.float64), data(torch.float64)
    names = list(run.variant.adapters)
    a = {name: run.variant.adapters[name].A.detach().clone().requires_grad_() for name in names}
    b = {n: torch.zeros(toy.get_submodule(n).out_features, 3).double().requires_grad_() for n in names}
    train(run)
    assert len(masks) == 12 * 4 and {mask.shape for mask in masks} == {(64, 3)}
    order = iter(masks)

    def add(name: str):
        return lambda module, args, out: out + 2 * (F.linear(args[0], a[name]) * next(order)) @ b[name].T

    for name in names:
        toy.get_submodule(name).requires_grad_(False).register_forward_hook(add(name))
    optimizer = torch.optim.AdamW([*a.values(), *b.values(), *toy.head.parameters()], lr=0.02, weight_decay=0.0)
    for t in range(12):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - 0.5 * t / 12)
        optimizer.zero_grad()
        F.mse_loss(toy(x), y).backward()
        optimizer.step()
    for name, adapter in run.variant.adapters.items():
        torch.testing.assert_close(adapter.delta(), 2 * b[name] @ a[name], rtol=1e-9, atol=1e-12)


def test_the_fraction_is_dropped_and_the_mean_is_kept_in_training_alone() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(8, 8, bias=False), "head": nn.Linear(8, 2)})
    variant = DropLoRA(rank=8, alpha=8, rank_dropout=0.25)
    variant.attach(model, HEAD)
    adapter = variant.adapters["layer"]
    adapter.A.data, adapter.B.data = torch.eye(8), torch.eye(8)
    adapter.base.weight.data.zero_()
    x = torch.ones(20_000, 8)
    kept = adapter.train()(x)
    assert {round(v, 4) for v in kept.unique().tolist()} == {0.0, round(4 / 3, 4)}
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(adapter.eval()(x), x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank_dropout": 0.0}, "rank_dropout: 0.0, allowed: a number > 0"),
        ({"rank_dropout": 1.0}, "rank_dropout: 1.0, allowed: 0 ≤ rank_dropout < 1"),
        ({"rank": 9}, "rank: 9 for a layer of size 12×8, allowed: 1 … 8"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(DropLoRA, settings)
