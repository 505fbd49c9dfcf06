"""IncreLoRA: the released code's numbers, growth that leaves the function alone, budgets, own warm-up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.variants import oracles
from variants.core.adapters.components import Components
from variants.core.adapters.grow import OwnWarmup
from variants.core.kernels.dropout import draw, drop
from variants.core.variant import Step
from variants.increlora import IncreLoRA
from variants.testing.contract import HEAD, STEPS, Toy, attach, data, train


def test_every_number_of_the_released_code(monkeypatch):
    oracle = oracles.load("increlora")
    arrays = oracle.arrays
    model = oracle.model()
    variant = IncreLoRA(rank=1, target_rank=3, alpha=4, initial_steps=5, interval=5, top=1, add=1, profile="released")
    variant.plan(60)
    variant.attach(model)
    names = {id(adapter): name for name, adapter in variant.adapters.items()}
    draw = Components.add

    def stored(self, value, trains_e):
        found = draw(self, value, trains_e)
        place, name = len(self.A) - 1, names[id(self)]
        self.A[place].data.copy_(oracle.tensor(f"block/{name}/A_init")[place])
        self.B[place].data.copy_(oracle.tensor(f"block/{name}/B_init")[place][:, None])
        return found

    monkeypatch.setattr(Components, "add", stored)
    for name, adapter in variant.adapters.items():
        adapter.A[0].data = oracle.tensor(f"after_000/param/{name}.A").clone()
        adapter.B[0].data = oracle.tensor(f"after_000/param/{name}.B").clone()
    x, y = oracle.tensor("toy/X"), oracle.tensor("toy/Y")
    optimizer = oracles.optimizer(model, variant, lr=0.01, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

    def check_state(step: int) -> None:
        key = f"after_{step:03d}"
        if f"{key}/output" not in arrays:
            return
        oracle.close(model(x), f"{key}/output")
        for name, adapter in variant.adapters.items():
            a, b, e = adapter.factors()
            oracle.close(a, f"{key}/param/{name}.A")
            oracle.close(b, f"{key}/param/{name}.B")
            if step:
                oracle.close(e[:, None], f"{key}/param/{name}.E")
                oracle.close(adapter.delta_weight(), f"{key}/delta/{name}")

    losses, penalties, ranks, means, uncertainties, scores = [], [], [], [], [], []
    for t in range(60):
        check_state(t)
        model.train()
        step = Step(t + 1, 60, optimizer, schedule)
        variant.on_step_begin(step)
        loss, penalty = F.mse_loss(model(x), y), variant.penalty()
        (loss + penalty).backward()
        losses.append(loss.item())
        penalties.append(penalty.item())
        variant.on_gradients(step)
        optimizer.step()
        optimizer.zero_grad()
        ranks.append([adapter.active for adapter in variant.adapters.values()])
        means.append(variant.state_dict()["mean"].tolist())
        uncertainties.append(variant.state_dict()["uncertainty"].tolist())
        scores.append(variant.scores().tolist())
    check_state(60)
    assert ranks == arrays["ranknum"].tolist()
    oracle.close(losses, "loss_task")
    oracle.close(penalties, "loss_reg")
    for found, name in ((means, "module_Ibar"), (uncertainties, "module_Ubar"), (scores, "module_score")):
        np.testing.assert_allclose(found, arrays[name], rtol=1e-8, atol=0)
    before = model(x)
    variant.on_train_end(Step(60, 60, optimizer, schedule))
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-14)
    assert [len(adapter.A) for adapter in variant.adapters.values()] == ranks[-1]


@pytest.mark.parametrize(("profile", "totals"), [("released", [6, 26, 46, 54]), ("paper", [6, 26, 46, 48])])
def test_six_modules_that_grow_by_four_in_the_five_best(profile, totals):
    model = torch.nn.ModuleDict({f"fc{i}": torch.nn.Linear(32, 32) for i in range(6)})
    variant = IncreLoRA(target_rank=8, top=5, add=4, profile=profile, orthogonality=0.0)
    variant.plan(4)
    variant.check(model)
    variant.attach(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    x, seen = torch.randn(16, 32), []
    for index in range(1, 5):
        step = Step(index, 4, optimizer, schedule)
        variant.on_step_begin(step)
        sum(layer(x).square().mean() * (i + 1) for i, layer in enumerate(model.values())).backward()
        variant.on_gradients(step)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(variant.total)
    assert seen == totals
    variant.on_train_end(Step(4, 4, optimizer, schedule))
    assert sum(variant.ranks().values()) == totals[-1]


@pytest.mark.parametrize("kind", ["Linear", "Conv2d"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_score_sees_the_input_under_the_very_mask_of_the_product(kind, dropout):
    layer = {"Linear": nn.Linear(8, 6), "Conv2d": nn.Conv2d(2, 6, 2)}[kind].double()
    adapter = Components(layer, 2, dropout).double().train()
    adapter.e[0].data.fill_(0.7)
    x = torch.randn(5, *((8,) if kind == "Linear" else (2, 2, 2)), dtype=torch.float64)
    outputs = []
    for watched in (False, True):
        adapter.watched = watched
        torch.manual_seed(1)
        outputs.append(adapter(x))
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(outputs[1])
    outputs[1].backward(upstream)
    torch.manual_seed(1)
    seen = drop(x, draw(x, dropout)) if dropout else x
    expected = upstream.flatten(1).T @ seen.flatten(1)
    torch.testing.assert_close(adapter.gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reserve", [True, False])
def test_growth_leaves_the_function_as_it_is(reserve):
    run = attach(IncreLoRA, {"target_rank": 3, "top": 2, "interval": 2, "reserve": reserve}, torch.float64)
    x, y = data(torch.float64)
    for index in range(1, STEPS + 1):
        step = Step(index, STEPS, run.optimizer, run.scheduler)
        run.variant.on_step_begin(step)
        (F.mse_loss(run.model(x), y.double()) + run.variant.penalty()).backward()
        before, ranks = run.output(), run.variant.total
        run.variant.on_gradients(step)
        tolerance = 1e-5 if reserve else 1e-14  # a reserve that comes or goes has λ = 1e-5
        torch.testing.assert_close(run.output(), before, rtol=0, atol=tolerance)
        assert run.variant.total >= ranks
        run.model.train()
        run.optimizer.step()
        run.scheduler.step()
        run.optimizer.zero_grad()
    assert run.variant.total == 12


def test_the_released_profile_rescales_what_is_there():
    run = attach(IncreLoRA, {"target_rank": 2, "top": 4, "interval": 4, "profile": "released"})
    train(run, 4)
    scale = run.variant.adapters["layer.0.fc1"].scale
    train(run, 5)
    assert run.variant.adapters["layer.0.fc1"].scale == pytest.approx(scale / 2, rel=1e-4)


def test_ranks_differ_between_layers_and_the_sum_is_the_budget():
    run = train(attach(IncreLoRA, {"target_rank": 3, "top": 1, "interval": 1}))
    ranks = run.variant.ranks()
    assert sum(ranks.values()) == 12 and len(set(ranks.values())) > 1
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    trained = {id(p) for p in run.model.parameters() if p.requires_grad}
    assert held == trained, "what trains is in the optimizer, and what has gone is not"
    assert {id(p) for p in run.optimizer.state} <= held


def test_a_new_part_warms_up_on_its_own_when_the_schedule_is_half_done():
    run = attach(IncreLoRA, {"target_rank": 2, "top": 4, "interval": 6, "warmup": 3})
    train(run, 7)
    groups = len(run.scheduler.lr_lambdas)
    assert run.variant.total == 8 and groups > len(attach(IncreLoRA, {}).optimizer.param_groups)
    rates = []
    for index in range(8, STEPS + 1):
        rates.append(run.optimizer.param_groups[-1]["lr"] / 0.02)
        train(run, index)
    assert rates == pytest.approx([0, 1 / 3, 2 / 3, 1, 0.5])


def test_the_curve_of_a_new_part():
    curve = OwnWarmup(born=10, total=30, warmup=5)
    assert [curve(step) for step in (10, 11, 15, 20, 30, 31)] == pytest.approx([0, 0.2, 1, 2 / 3, 0, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 2, "target_rank": 1}, "target_rank: 1, allowed: at least rank, which is 2"),
        ({"top": 0}, "top: 0, allowed: a whole number ≥ 1"),
        ({"warmup": 0}, "warmup: 0, allowed: a whole number ≥ 1, or null"),
        ({"profile": "x"}, "profile: 'x', allowed: paper, released"),
    ],
)
def test_what_can_not_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        IncreLoRA(**settings)


def test_too_few_rounds_for_the_target_are_refused_before_the_weights_are_there():
    variant = IncreLoRA(target_rank=8, top=1, interval=5)
    variant.plan(20)
    with torch.device("meta"), pytest.raises(ValueError, match="interval: 5 leaves 3 rounds in 20 steps, in which top"):
        variant.check(Toy(), HEAD)
