"""LoSiA: importance, subnets, rates and training of the released code."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.variants import oracles
from variants.core.variant import Step
from variants.losia import LoSiA
from variants.testing.toys import Toy, Trained, attach, through_disk, train


def restarts(step: int) -> float:
    """The stored run's schedule without restarts: a warm-up of 6 steps, then a cosine to a tenth."""
    return step / 6 if step < 6 else 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 6) / 54)) / 2


def test_every_number_of_the_released_code() -> None:
    oracle = oracles.load("losia")
    model, turns = oracle.model(), [["fc3"], ["fc1"], ["fc2"]]
    settings: dict[str, Any] = {"factor": 0.5, "rows_only": {"fc3": 0.5}, "interval": 7, "turns": turns}
    variant = LoSiA(**settings, decay_after_step=0.1, profile="released", warmup=6)
    variant.drawn = lambda name, size, counts: tuple(
        oracle.tensor(f"{side}/initial/{name}").sort().values for side in ("rows", "cols")
    )
    variant.attach(model)
    for name, adapter in variant.adapters.items():
        assert len(adapter.indices) == len(oracle.arrays[f"rows/initial/{name}"]) * len(
            oracle.arrays[f"cols/initial/{name}"]
        )
    choose = variant._choose

    def chosen(step: Step) -> None:
        for name, averages in variant._averages.items():
            oracle.close(averages[0], f"ipt_avg/{step.index - 1:03d}/{name}")
            oracle.close(averages[1], f"ipt_unc/{step.index - 1:03d}/{name}")
        choose(step)

    variant._choose = chosen

    def watch(done: int, step: Step) -> None:
        for name, adapter in variant.adapters.items():
            stored = oracle.tensor(f"mask_after_step/{name}")[done - 1].flatten().nonzero().flatten()
            assert torch.equal(adapter.indices, stored), (done, name)

    parameters = {f"{n}.weight": lambda a=a: a.weight + a.delta_weight() for n, a in variant.adapters.items()}
    optimizer = oracles.optimizer(
        model, variant, lr=0.02, weight_decay=0.1, kind="tests.variants.optimizers.EarlyEps", eps=1e-6
    )
    oracles.follow(
        oracle, model, variant, optimizer, 60, parameters=parameters, watch=watch, schedule=restarts, norms_are=False
    )


def test_the_blocks_of_the_model_choose_in_turn_and_warm_up() -> None:
    run, moved, rates = attach(LoSiA, {"factor": 0.5, "interval": 3, "rewarm": 2}), [], []
    for number in range(1, 10):
        before = {name: adapter.indices for name, adapter in run.variant.adapters.items()}
        train(run, number)
        moved.append([n for n, a in run.variant.adapters.items() if not torch.equal(a.indices, before[n])])
        step = run.step(number + 1)
        name = "layer.0.fc1"
        rates.append(run.variant._scale(name, step, 0) if run.variant._rises(name, step) else 1.0)
    first, second = (["layer.0.fc1", "layer.0.fc2"], ["layer.1.fc1", "layer.1.fc2"])
    assert [set(names) <= set(turn) for names, turn in zip(moved[2::3], (first, second, first), strict=True)] == [
        True
    ] * 3
    assert not any(moved[0::3] + moved[1::3])
    assert rates == [1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0]


def test_a_step_at_rate_zero_leaves_the_values_as_they_are() -> None:
    run = train(attach(LoSiA, {"factor": 0.5, "interval": 3}), 3)
    before = {name: adapter.delta().detach().clone() for name, adapter in run.variant.adapters.items()}
    train(run, 4)
    for name, adapter in run.variant.adapters.items():
        assert torch.equal(adapter.delta(), before[name]) == name.startswith("layer.0")


@pytest.mark.parametrize("budget", [7, 101, 384])
def test_a_budget_is_met_to_a_row_or_column(budget: int) -> None:
    run = attach(LoSiA, {"budget": budget, "interval": 4})
    assert budget - 8 < run.variant.closed_form() <= budget


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 0.0}, "factor: 0.0, allowed: 0 < factor ≤ 1"),
        ({"rows_only": {"a": 2.0}}, "rows_only: 2.0, allowed: fractions"),
        ({"warmup": 2}, "warmup: 2 with profile: paper, allowed: 0"),
        ({"profile": "code"}, "profile: 'code', allowed: paper, released"),
        ({"factor": 0.5, "budget": 30}, "factor: 0.5 with budget: 30"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoSiA(**settings)


def test_a_layer_without_a_turn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"turns: layer.0.fc1 has 0 turns, allowed: one"):
        LoSiA(turns=[["fc2"]]).check(Toy(), ("head",))


def test_names_of_no_layer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"turns: \['fc9'\] is no adapted layer, allowed: names of one or more"):
        LoSiA(turns=[["fc1", "fc2"], ["fc9"]]).check(Toy(), ("head",))
    with pytest.raises(ValueError, match="rows_only: no adapted layer ends in 'fc9'"):
        LoSiA(rows_only={"fc9": 0.5}).check(Toy(), ("head",))


def leave_out(run: Trained) -> None:
    """The next step, whose gradients are not finite: nothing moves."""
    run.steps_done += 1
    run.variant.on_step_begin(run.step(run.steps_done))


@pytest.mark.parametrize("turns", [(), [["fc1", "fc2"]]], ids=["blocks", "one turn"])
def test_a_choice_whose_step_was_left_out_is_made_after_the_next(turns: list[list[str]]) -> None:
    settings = {"factor": 0.5, "interval": 3, "turns": turns}
    run = train(attach(LoSiA, settings), 2)
    leave_out(run)
    resumed = attach(LoSiA, settings).restore(through_disk(run.snapshot()))
    before = {name: adapter.indices.clone() for name, adapter in run.variant.adapters.items()}
    for each in (run, resumed):
        train(each, 4)
        moved = {n for n, a in each.variant.adapters.items() if not torch.equal(a.indices, before[n])}
        assert moved and (turns or moved <= {"layer.0.fc1", "layer.0.fc2"})
        assert each.variant._chosen_at.keys() == ({*before} if turns else {"layer.0.fc1", "layer.0.fc2"})
        train(each, 6)
        assert set(each.variant._chosen_at) == {*before}  # the next turn ends when it would have
    for name, adapter in run.variant.adapters.items():
        assert torch.equal(adapter.delta(), resumed.variant.adapters[name].delta())


def test_a_run_whose_choices_were_all_left_out_fails() -> None:
    run = train(attach(LoSiA, {"factor": 0.5, "interval": 3}), 2)
    run.variant.on_train_end(run.step(2))  # no turn was over
    leave_out(run)
    with pytest.raises(RuntimeError, match="interval: 3, and all steps from there to the last, 3, were left out"):
        run.variant.on_train_end(run.step(3))
    train(run, 4)
    run.variant.on_train_end(run.step(4))
    resumed = attach(LoSiA, {"factor": 0.5, "interval": 3}).restore(through_disk(run.snapshot()))
    resumed.variant.on_train_end(resumed.step(4))
