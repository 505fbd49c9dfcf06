"""DyLoRA: the released code's numbers, what a step may move, the draws, and the rank that is evaluated and kept."""

from __future__ import annotations

import copy
import json
import logging
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.variants import mixed, oracles
from tests.variants.kinds import OF_EVERY_KIND
from variants.core.variant import Step
from variants.dylora import DyLoRA, Nested
from variants.testing.contract import HEAD, STEPS, Toy, attach, data, train

TOTAL, LR, DECAY = 64, 0.02, 0.1


def whole(components: nn.ParameterList, dim: int) -> torch.Tensor:
    return torch.cat([p.detach() for p in components], dim)


def test_every_number_of_the_released_code():
    oracle = oracles.load("dylora")
    arrays = oracle.arrays
    settings = json.loads((oracles.FOLDER / "dylora" / "oracle.json").read_text())["hyperparameters"]
    total, model = settings["steps"], oracle.model()
    variant = DyLoRA(rank=settings["R"], alpha=settings["lora_alpha"], frozen=settings["frozen"], profile="released")
    variant.attach(model)
    draws = iter(arrays["b"].tolist())
    variant.draw = lambda: next(draws)
    for name, adapter in variant.adapters.items():
        for part, dim in (("A", 0), ("B", 1)):
            start = oracle.tensor(f"after_000/param/{name}.lora_{part}")
            for i, parameter in enumerate(getattr(adapter, part)):
                parameter.data = start.narrow(dim, i, 1).clone()
    x, y = oracle.tensor("toy/X"), oracle.tensor("toy/Y")
    optimizer = oracles.optimizer(model, variant, settings["lr"], settings["weight_decay"])
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

    def check_at(b: int, key: str) -> None:
        model.eval()
        for adapter in variant.adapters.values():
            adapter.kept = b + 1
        oracle.close(model(x), f"{key}/output")
        oracle.close(F.mse_loss(model(x), y), f"{key}/loss_task")
        for name, adapter in variant.adapters.items():
            oracle.close(adapter.delta_weight(), f"{key}/delta/{name}")

    losses, norms = [], []
    for t in range(total):
        if f"after_{t:03d}/output" in arrays:
            check_at(arrays["b"][t - 1] if t else 0, f"after_{t:03d}")
        model.train()
        step = Step(t + 1, total, optimizer, schedule)
        variant.on_step_begin(step)
        loss = F.mse_loss(model(x), y)
        loss.backward()
        variant.on_gradients(step)
        losses.append(loss.item())
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]).norm().item())
        for name, adapter in variant.adapters.items():
            for part, dim in (("A", 0), ("B", 1)):
                if f"grad/{t:03d}/{name}.lora_{part}" in arrays:
                    gradient = torch.cat([p.grad for p in getattr(adapter, part)], dim)
                    oracle.close(gradient, f"grad/{t:03d}/{name}.lora_{part}")
        optimizer.step()
        variant.on_update(step)
        optimizer.zero_grad()
        for name, adapter in variant.adapters.items():
            for part, dim in (("A", 0), ("B", 1)):
                stored = torch.from_numpy(arrays[f"{part}_after_step/{name}"][t])
                torch.testing.assert_close(whole(getattr(adapter, part), dim), stored, rtol=1e-9, atol=1e-12)
    oracle.close(losses, "loss_task")
    oracle.close(norms, "grad_norm")
    check_at(arrays["b"][-1], f"after_{total:03d}")
    for b in range(settings["R"]):
        check_at(b, f"eval/b{b}")


class Straight:
    """The paper's method by hand: A (R, in) and B (out, R) of a linear layer, with Adam and a count for each row."""

    def __init__(self, layer: nn.Linear, adapter: Nested, alpha: float, frozen: bool) -> None:
        self.layer, self.alpha, self.frozen = layer, alpha, frozen
        self.parts = {"A": whole(adapter.A, 0), "B": whole(adapter.B, 1).T.clone()}  # both (R, …)
        self.m = {key: torch.zeros_like(p) for key, p in self.parts.items()}
        self.v = {key: torch.zeros_like(p) for key, p in self.parts.items()}
        self.count = [0] * len(adapter.A)

    def step(self, x: torch.Tensor, y: torch.Tensor, b: int) -> None:
        a, c = (self.parts[key].requires_grad_() for key in ("A", "B"))
        out = self.layer(x) + self.alpha / (b + 1) * x @ a[: b + 1].T @ c[: b + 1]
        gradients = torch.autograd.grad(F.mse_loss(out, y), (a, c))
        for i in [b] if self.frozen else range(b + 1):
            self.count[i] += 1
            for key, gradient in zip(("A", "B"), gradients, strict=True):
                m, v, g, k = self.m[key], self.v[key], gradient[i], self.count[i]
                m[i] = 0.9 * m[i] + 0.1 * g
                v[i] = 0.999 * v[i] + 0.001 * g**2
                change = m[i] / (1 - 0.9**k) / ((v[i] / (1 - 0.999**k)).sqrt() + 1e-8)
                with torch.no_grad():
                    self.parts[key][i] = self.parts[key][i] * (1 - LR * DECAY) - LR * change
        self.parts = {key: p.detach() for key, p in self.parts.items()}


@pytest.mark.parametrize("frozen", [True, False])
def test_the_papers_trajectory_is_that_of_a_straight_implementation(frozen):
    torch.manual_seed(0)
    model = nn.ModuleDict({"fc": nn.Linear(7, 5, dtype=torch.float64)})
    layer, x = nn.Linear(7, 5, dtype=torch.float64), torch.randn(32, 7, dtype=torch.float64)
    layer.load_state_dict(model["fc"].state_dict())
    y = torch.randn(32, 5, dtype=torch.float64)
    variant = DyLoRA(rank=4, alpha=3.0, frozen=frozen)
    variant.attach(model)
    adapter = variant.adapters["fc"]
    straight = Straight(layer, adapter, 3.0, frozen)
    optimizer = torch.optim.AdamW(adapter.components(), lr=LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    for index in range(1, TOTAL + 1):
        variant.on_step_begin(Step(index, TOTAL, optimizer, schedule))
        straight.step(x, y, adapter.drawn - 1)
        F.mse_loss(adapter(x), y).backward()
        variant.on_gradients(Step(index, TOTAL, optimizer, schedule))
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(whole(adapter.A, 0), straight.parts["A"], rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(whole(adapter.B, 1), straight.parts["B"].T, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("layer", "x"), OF_EVERY_KIND)
@pytest.mark.parametrize("frozen", [True, False])
def test_on_every_kind_of_layer_the_first_components_act_and_the_last_of_them_is_trained(layer, x, frozen):
    torch.manual_seed(0)
    adapter = Nested(copy.deepcopy(layer).double(), 4, alpha=6.0, dropout=0.0, kept=2, frozen=frozen)
    for parameter in adapter.components():
        nn.init.normal_(parameter)
    x = x.double() if x.is_floating_point() else x
    a, b = whole(adapter.A, 0), whole(adapter.B, 1)
    for drawn in range(1, 5):
        adapter.train()
        adapter.drawn = drawn
        matrix = 6.0 / drawn * b[:, :drawn] @ a[:drawn]
        y = adapter(x)
        expected = adapter.base(x) + adapter.layer_kind.apply(x, matrix)
        torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-12)
        adapter.zero_grad()
        y.square().sum().backward()
        moved = [i for i in range(4) if adapter.A[i].grad is not None]
        assert moved == [i for i in range(4) if adapter.B[i].grad is not None]
        assert moved == ([drawn - 1] if frozen else list(range(drawn)))
        adapter.eval()
        matrix = 6.0 / 2 * b[:, :2] @ a[:2]
        torch.testing.assert_close(adapter.delta(), matrix, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            adapter(x), adapter.base(x) + adapter.layer_kind.apply(x, matrix), rtol=1e-11, atol=1e-12
        )


def test_with_one_component_the_scale_is_alpha():
    adapter = Nested(nn.Linear(4, 4), 4, alpha=5.0, dropout=0.0, kept=1, frozen=True)
    nn.init.ones_(adapter.B[0])
    torch.testing.assert_close(adapter.delta(), 5.0 * adapter.B[0] @ adapter.A[0])


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_only_the_released_code_moves_what_a_step_does_not_train(profile):
    run = attach(DyLoRA, {"rank": 3, "profile": profile})
    for group in run.optimizer.param_groups:
        group["weight_decay"] = 0.1
    draws = iter([0, 1, 2, 0, 2])
    run.variant.draw = lambda: next(draws)
    adapter = next(iter(run.variant.adapters.values()))
    for index, b in enumerate([0, 1, 2, 0, 2], 1):
        before = [p.detach().clone() for p in adapter.A]
        moments = [{k: v.clone() for k, v in run.optimizer.state.get(p, {}).items()} for p in adapter.A]
        train(run, index)
        for i in range(3):
            still = torch.equal(adapter.A[i], before[i])
            assert still is (profile == "paper" and i != b), f"step {index}, component {i}"
            state = run.optimizer.state.get(adapter.A[i], {})
            if profile == "paper" and i != b:
                assert state.keys() == moments[i].keys() and all(torch.equal(state[k], moments[i][k]) for k in state)
    counts = [int(run.optimizer.state[p]["step"]) for p in adapter.A]
    assert counts == ([2, 1, 2] if profile == "paper" else [5, 5, 5])


def test_draws_are_uniform_the_same_for_all_layers_and_of_a_generator_of_their_own():
    run = attach(DyLoRA, {"rank": 4})
    torch.manual_seed(3)
    state, seen = torch.get_rng_state(), Counter()
    for index in range(1, 4001):
        run.variant.on_step_begin(Step(index, 4000, run.optimizer, run.scheduler))
        (drawn,) = {adapter.drawn for adapter in run.variant.adapters.values()}
        seen[drawn] += 1
    assert torch.equal(torch.get_rng_state(), state)
    assert set(seen) == {1, 2, 3, 4} and all(900 < count < 1100 for count in seen.values())
    assert [DyLoRA(seed=s)._generator.initial_seed() for s in (0, 7)] == [0, 7]


def test_a_run_that_goes_on_draws_what_the_straight_one_draws():
    def drawn(variant: DyLoRA, steps: int) -> list[int]:
        return [variant.draw() for _ in range(steps)]

    straight = attach(DyLoRA, {"rank": 4, "seed": 5}).variant
    first, second = (attach(DyLoRA, {"rank": 4, "seed": 5}).variant for _ in range(2))
    begun = drawn(first, 10)
    second.load_state_dict(first.state_dict())
    assert begun + drawn(second, 20) == drawn(straight, 30)


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_evaluation_is_at_the_fixed_rank_whatever_was_drawn_last(profile):
    run = train(attach(DyLoRA, {"rank": 4, "eval_rank": 2, "profile": profile}), 10)
    found = []
    for drawn in range(1, 5):
        for adapter in run.variant.adapters.values():
            adapter.drawn = drawn
        found.append(run.output())
    assert all(torch.equal(output, found[0]) for output in found)
    assert set(run.variant.ranks().values()) == {2}


def test_the_rank_that_is_kept_is_that_of_evaluation():
    run = train(attach(DyLoRA, {"rank": 4, "eval_rank": 2}), STEPS - 1)
    last = Step(STEPS, STEPS, run.optimizer, run.scheduler)
    before, first = run.output(), {n: whole(a.A, 0)[:2] for n, a in run.variant.adapters.items()}
    assert run.variant.effective_parameters() * 2 == run.variant.closed_form()
    run.variant.on_train_end(last)
    assert torch.equal(run.output(), before)
    run.model.train()
    with torch.no_grad():
        assert torch.equal(run.model(data()[0]), before), "in training mode nothing is drawn any more"
    for name, adapter in run.variant.adapters.items():
        assert torch.equal(whole(adapter.A, 0), first[name]) and adapter.rank == 2
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    trained = {id(p) for p in run.model.parameters() if p.requires_grad}
    assert held == trained and {id(p) for p in run.optimizer.state} <= held
    assert run.variant.effective_parameters() == run.variant.closed_form()


def test_a_component_that_was_never_drawn_is_named_at_the_end(caplog):
    run = attach(DyLoRA, {"rank": 3})
    run.variant.draw = lambda: 1
    with caplog.at_level(logging.WARNING):
        train(run)
    assert "component 0, 2 was never drawn" in caplog.text


def test_under_a_budget_a_layer_with_fewer_ranks_uses_all_it_has():
    run = attach(DyLoRA, {"budget": 150})  # 20 parameters a rank: three layers have two ranks, one has one
    ranks = run.variant.ranks()
    assert sorted(ranks.values()) == [1, 2, 2, 2] and run.variant.effective_parameters() == 140
    for b in (0, 1):
        run.variant.draw = lambda b=b: b
        run.variant.on_step_begin(Step(1, STEPS, run.optimizer, run.scheduler))
        assert {n: a.drawn for n, a in run.variant.adapters.items()} == {n: min(b + 1, r) for n, r in ranks.items()}


def test_every_kind_of_layer_learns():
    variant, model = DyLoRA(rank=3, targets=mixed.KINDS), mixed.Mixed()
    variant.attach(model, HEAD)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    (rows, y), losses = mixed.data(), []
    for index in range(1, TOTAL + 1):
        model.train()
        variant.on_step_begin(Step(index, TOTAL, optimizer, schedule))
        F.mse_loss(model(rows), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            losses.append(F.mse_loss(model.eval()(rows), y).item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(b.any() for adapter in variant.adapters.values() for b in adapter.B)


@pytest.mark.parametrize("way", ["two batches", "checkpointed"])
def test_accumulated_batches_and_checkpointing_use_one_draw(way):
    plain, run = (attach(DyLoRA, {"rank": 3}, torch.float64) for _ in range(2))
    train(plain)
    x, y = data(torch.float64)
    for index in range(1, STEPS + 1):
        step = Step(index, STEPS, run.optimizer, run.scheduler)
        run.model.train()
        run.variant.on_step_begin(step)
        if way == "two batches":
            for half in (slice(0, 32), slice(32, 64)):
                (F.mse_loss(run.model(x[half]).float(), y[half]) / 2).backward()
        else:
            F.mse_loss(checkpoint(run.model, x, use_reentrant=False).float(), y).backward()
        run.variant.on_gradients(step)
        run.optimizer.step()
        run.scheduler.step()
        run.model.zero_grad()
    torch.testing.assert_close(run.output(), plain.output(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank: 0, allowed: a whole number ≥ 1"),
        ({"rank": 4, "eval_rank": 5}, "eval_rank: 5, allowed: at most rank, which is 4"),
        ({"eval_rank": 0}, "eval_rank: 0, allowed: a whole number ≥ 1"),
        ({"profile": "official"}, "profile: 'official', allowed: paper, released"),
        ({"seed": -1}, "seed: -1, allowed: a whole number ≥ 0"),
    ],
)
def test_what_can_not_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DyLoRA(**settings)


def test_a_rank_that_a_layer_can_not_have_is_refused_before_the_weights_are_there():
    with torch.device("meta"), pytest.raises(ValueError, match=r"rank: 9 for a layer of size 12×8, allowed: 1 … 8"):
        DyLoRA(rank=9).check(Toy(), HEAD)
