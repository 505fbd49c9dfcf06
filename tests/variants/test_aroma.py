"""AROMA: checks, merges and training of the released code; its rounds, its end, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from tests.variants import oracles
from variants.aroma import AROMA
from variants.core.variant import Step
from variants.testing.toys import Toy, attach, data, train

RELEASED = {
    "check_every": 2,
    "inner_steps": 9,
    "inner_tolerance": 0.35,
    "outer_tolerance": 0.12,
    "cycle": 15,
    "first_warmup": 3,
    "restart_warmup": 2,
    "profile": "released",
}


def test_every_number_of_the_released_code() -> None:
    oracle = oracles.load("aroma")
    model = oracle.model()
    variant = AROMA(**RELEASED)
    variant.plan(60)
    variant.attach(model)
    parameters = {}
    for name, adapter in variant.adapters.items():
        adapter.A.data = oracle.tensor(f"after_000/param/{name}.lora_A").clone()
        parameters |= {f"{name}.lora_A": lambda a=adapter: a.A, f"{name}.lora_B": lambda a=adapter: a.B}
        parameters[f"{name}.merged_weight"] = lambda a=adapter: a.weight if a.past is None else a.weight + a.past
    variant.drawn = lambda name, adapter: oracle.tensor(f"reinit/{adapter.rounds}/{name}.A")
    variant.after_reset = lambda name, moment: oracle.tensor(
        f"reinit/{variant.adapters[name.split('.')[0]].rounds - 1}/{name}"
    )
    rates: list[float] = []
    rounds: list[int] = []

    def watch(done: int, step: Step) -> None:
        row = done - 1
        rates.append(step.scheduler.get_last_lr()[0])
        rounds.append(sum(adapter.rounds for adapter in variant.adapters.values()))
        for i, (name, layer) in enumerate(variant._progress.items()):
            has_left = variant.adapters[name].has_left
            assert has_left == oracle.arrays["converged"][row, i]
            assert layer.since == oracle.arrays["counter"][row, i]
            if not has_left:  # a merge ends the rest, which is stored from before it
                assert layer.rests == (oracle.arrays["stabilized"][row, i] and not oracle.arrays["merged"][row])
            if layer.reference is not None:
                oracle.near(layer.reference, f"reference/{name}/{row}")
            if np.isfinite(change := oracle.arrays["weight_change"][row, i]):
                assert layer.changes == [pytest.approx(change, rel=1e-9)]

    for name in oracles.LAYERS:  # by step
        oracle.arrays |= {f"reference/{name}/{i}": row for i, row in enumerate(oracle.arrays[f"reference/{name}"])}
    optimizer = oracles.optimizer(model, variant, lr=0.03, weight_decay=0.1)
    options = {"max_norm": 1.0, "schedule": variant.curve(60), "parameters": parameters, "watch": watch}
    oracles.follow(oracle, model, variant, optimizer, 54, whole=True, **options)
    assert variant.is_over() and int(oracle.arrays["stopped_at"]) == 53
    assert np.flatnonzero(np.diff([0, *rounds])).tolist() == [8, 17, 26, 35, 44]  # at 53 the last layer left
    np.testing.assert_allclose(rates[:-1], oracle.arrays["lr"][1:], rtol=1e-12)


def test_the_papers_rounds_written_out() -> None:
    settings = {"inner_steps": 4, "check_every": 1, "inner_tolerance": 0.8, "outer_tolerance": 0.05, "reset": "zero"}
    run = attach(AROMA, settings, torch.float64)
    toy, (x, y) = Toy(torch.float64), data(torch.float64)
    w = {name: toy.get_submodule(name).weight.detach() for name in run.variant.adapters}
    a = {name: adapter.A.detach().clone().requires_grad_() for name, adapter in run.variant.adapters.items()}
    b = {name: torch.zeros(len(w[name]), 1, dtype=torch.float64, requires_grad=True) for name in w}
    optimizer = torch.optim.AdamW([*a.values(), *b.values(), *toy.head.parameters()], lr=0.02, weight_decay=0.0)
    torch.manual_seed(1)
    train(run)
    torch.manual_seed(1)
    merges, since, resting, last, training = 0, 0, set[str](), dict[str, torch.Tensor](), list(w)
    for t in range(12):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - 0.5 * t / 12)
        weights = {f"{n}.weight": w[n] + 4 * b[n] @ a[n] if n in training else w[n] for n in w}
        optimizer.zero_grad()
        F.mse_loss(functional_call(toy, weights, (x,)), y).backward()
        optimizer.step()
        since += 1
        with torch.no_grad():
            products = {n: b[n] @ a[n] for n in training}
            if since < 4:
                resting |= {n for n in last if (products[n] - last[n]).norm() < 0.8 * last[n].norm()}
                last = {n: product for n, product in products.items() if n not in resting}
                if len(resting) < len(training):
                    continue
            for n, product in products.items():
                if merges and 4 * product.norm() < 0.05 * w[n].norm():
                    training.remove(n)
                    continue
                w[n] = w[n] + 4 * product
                a[n].copy_(nn.init.kaiming_uniform_(torch.empty_like(a[n]), a=5**0.5))
                b[n].zero_()
                for factor in (a[n], b[n]):
                    optimizer.state[factor]["exp_avg"].zero_()
                    optimizer.state[factor]["exp_avg_sq"].zero_()
        merges, since, resting, last = merges + 1, 0, set(), {}
    assert merges > 2 and 0 < len(training) < 4  # some rounds ended, and some layers left
    assert list(run.variant.training()) == training
    for name, adapter in run.variant.adapters.items():
        change = w[name] - toy.get_submodule(name).weight
        change = change + 4 * b[name] @ a[name] if name in training else change
        torch.testing.assert_close(adapter.delta(), change, rtol=1e-9, atol=1e-12)


def test_a_layer_that_has_converged_trains_nothing_and_keeps_what_was_merged() -> None:
    run = train(attach(AROMA, AROMA.test_params()[3], torch.float64))
    assert run.variant.is_over() and run.variant.effective_parameters() == 0 == run.variant.closed_form()
    assert run.variant.report() == {"merges": 4, "layers_converged": 4}
    assert set(run.variant.ranks().values()) == {1}
    with pytest.raises(ValueError, match="init_from: all layers of that run have converged"):
        AROMA(**AROMA.test_params()[3]).start_from(run.variant.state_dict())


def test_a_run_ends_when_all_layers_have_converged(carry_out) -> None:
    settings = ["variant=aroma", "variant.inner_steps=3", "variant.check_every=1", "train.max_steps=9"]
    settings += ["variant.inner_tolerance=1e-9", "variant.outer_tolerance=10"]
    record = carry_out(*settings, "train.eval_every=9", "train.checkpoint=last")
    assert (record.steps.done, record.steps.total, record.metric.step) == (6, 9, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner_steps": 2}, "inner_steps: 2, allowed: a whole number ≥ 3"),
        ({"inner_steps": 1, "profile": "released"}, "inner_steps: 1, allowed: a whole number ≥ 2"),
        ({"inner_steps": 20}, "check_every: 10, allowed: at most 9 with inner_steps: 20, or inner_tolerance is never"),
        ({"inner_steps": 10, "profile": "released"}, "check_every: 10, allowed: at most 9 with inner_steps: 10"),
        ({"outer_tolerance": 0.0}, "outer_tolerance: 0.0, allowed: a number > 0"),
        ({"restart_warmup": 3}, "restart_warmup: 3 with cycle: null, allowed: 0"),
        ({"cycle": 3, "restart_warmup": 3}, "cycle: 3, allowed: a whole number ≥ 4"),
        ({"profile": "code"}, "profile: 'code', allowed: paper, released"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AROMA(**settings)


def test_a_run_shorter_than_a_round_is_refused() -> None:
    with pytest.raises(ValueError, match="inner_steps: 1000, allowed: fewer than the run's 70 steps"):
        AROMA().plan(70)
