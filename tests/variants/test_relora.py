"""ReLoRA: merges, restarts and training of the released code."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.variants import oracles
from variants.core.restarts import Restarts
from variants.core.variant import Step
from variants.relora import ReLoRA
from variants.testing.toys import attach, train


def test_every_number_of_the_released_code() -> None:
    oracle = oracles.load("relora")
    model = oracle.model()
    variant = ReLoRA(rank=2, alpha=4, interval=20, restart_warmup=5, first_warmup=5)
    variant.plan(70)
    variant.attach(model)
    parameters = {}
    for name, adapter in variant.adapters.items():
        adapter.A.data = oracle.tensor(f"after_000/param/{name}.A").clone()
        parameters |= {f"{name}.A": lambda a=adapter: a.A, f"{name}.B": lambda a=adapter: a.B}
    variant.drawn = lambda name, adapter: oracle.tensor(f"reinit/{adapter.rounds}/{name}.A")
    # A moment is pruned after its layer's merge.
    variant.after_reset = lambda name, moment: oracle.tensor(
        f"reinit/{variant.adapters[name.split('.')[0]].rounds - 1}/{name}"
    )

    def watch(done: int, step: Step) -> None:
        if done in (21, 41, 61):
            for name, adapter in variant.adapters.items():
                oracle.close(adapter.weight + adapter.past, f"reinit/{done // 20 - 1}/{name}.merged_weight")
        rates.append(step.scheduler.get_last_lr()[0])

    rates: list[float] = []
    optimizer = oracles.optimizer(model, variant, lr=0.02, weight_decay=0.01)
    oracles.follow(oracle, model, variant, optimizer, 70, whole=True, max_norm=1.0, parameters=parameters, watch=watch)
    np.testing.assert_allclose(rates[:-1], oracle.arrays["lr"][1:], rtol=1e-12)
    assert list(variant.ranks().values()) == [6, 8, 4]


@pytest.mark.parametrize("name", ["a", "b"])
def test_learning_rates_of_the_released_code(name: str) -> None:
    oracle = oracles.load("schedules")
    given = json.loads((oracles.FOLDER / "schedules" / "oracle.json").read_text())["configurations"]["relora_lr"][name]
    curve = Restarts(
        given["num_training_steps"],
        given["first_warmup_steps"],
        given["restart_warmup_steps"],
        given["restart_every"],
        given["min_lr_ratio"],
        given["adjust_step"],
    )
    stored = oracle.arrays[f"relora_lr/{name}"]
    np.testing.assert_allclose([curve(step) for step in range(len(stored))], stored, rtol=1e-12, atol=1e-15)


def test_a_merge_changes_no_output_and_the_rank_grows() -> None:
    run = train(attach(ReLoRA, {"rank": 1, "interval": 4, "reset": "zero"}, torch.float64), 4)
    assert set(run.variant.ranks().values()) == {1}
    before = {name: adapter.delta().detach().clone() for name, adapter in run.variant.adapters.items()}
    for adapter in run.variant.adapters.values():
        x = torch.randn(3, adapter.in_features, dtype=torch.float64)
        expected = adapter(x)
        adapter.restart(adapter.drawn())
        torch.testing.assert_close(adapter(x), expected, rtol=1e-12, atol=1e-14)
    for name, adapter in run.variant.adapters.items():
        torch.testing.assert_close(adapter.delta(), before[name], rtol=1e-13, atol=1e-15)
    assert set(run.variant.ranks().values()) == {2}


@pytest.mark.parametrize(("reset", "pruned"), [("random", 0.9), ("magnitude", 0.75), ("zero", 0.999)])
def test_a_reset_prunes_the_moments(reset: str, pruned: float) -> None:
    torch.manual_seed(0)
    variant = ReLoRA(reset=reset, pruned=pruned)
    left = variant.after_reset("layer.A.exp_avg", torch.randn(40, 100))
    kept = int(torch.count_nonzero(left)) / 4000
    assert kept == pytest.approx(0.0 if reset == "zero" else 1 - pruned, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 1}, "interval: 1, allowed: a whole number ≥ 2"),
        ({"reset": "all"}, "reset: 'all', allowed: random, magnitude, zero"),
        ({"restart_warmup": 1000}, "restart_warmup: 1000, allowed: below interval, which is 1000"),
        ({"first_warmup": 3}, "first_warmup: 3 with restart_warmup: 0, allowed: 0"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReLoRA(**settings)


def test_a_run_without_a_merge_is_refused() -> None:
    with pytest.raises(ValueError, match="interval: 1000, allowed: fewer than the run's 70 steps"):
        ReLoRA().plan(70)
