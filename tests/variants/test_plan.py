"""A schedule that can't act in the run is refused before a model is there; a run without any update ends in a line."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.variants.found import settings
from variants.adalora import AdaLoRA
from variants.core.variant import Variant
from variants.elalora import ElaLoRA
from variants.increlora import IncreLoRA
from variants.rosa import RoSA
from variants.shira import SHiRA
from variants.sora import SoRA
from variants.sparse import SparseLoRA
from variants.spiel import SpIEL
from variants.testing.contract import STEPS, attach, train

SETTINGS = settings()


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (AdaLoRA(interval=101), "interval: 101, whose first multiple after 0 initial steps is 101, allow"),
        (AdaLoRA(interval=100), "interval: 100, whose .* below 100, where the run ends"),
        (AdaLoRA(interval=60, initial_steps=20, final_steps=50), "interval: 60, .* below 50, where the final phase"),
        (AdaLoRA(initial_steps=99), "interval: 1, whose first multiple after 99 initial steps is 100"),
        (AdaLoRA(interval=1000, profile="released"), "interval: 1000, "),
        (AdaLoRA(interval=1000, hard=True), "interval: 1000, "),
        (AdaLoRA(interval=1000, budget=10_000), "interval: 1000, "),
        (ElaLoRA(interval=100), "interval: 100 leaves no round"),
        (IncreLoRA(interval=100), "interval: 100 leaves no round of growth in 100 steps after 0 initial ones"),
        (IncreLoRA(initial_steps=99), "interval: 1 leaves no round of growth in 100 steps after 99 initial ones"),
        (IncreLoRA(interval=100, budget=10_000), "interval: 100 leaves no round"),
        (IncreLoRA(warmup=100), "warmup: 100, allowed: fewer than the run's 100 steps, or null"),
        (RoSA(warmup_steps=100), "warmup_steps: 100 and collect_steps: 1, allowed"),
        (SHiRA(mask="snip", collect_steps=100), "collect_steps: 100, allowed: fewer"),
        (SoRA(budget=10_000, initial_steps=99), "schedule: 99 initial and 0 final steps do not fit"),
        (SparseLoRA(interval=100), "interval: 100, allowed: at most the 98 steps from 1, where the"),
        (SparseLoRA(interval=99, schedule="rigl"), "interval: 99, allowed: at most the 98 steps"),
        (SparseLoRA(schedule="one_shot", initial_steps=100), "schedule: 100 initial and 1 final steps do not fit"),
        (SpIEL(reselection_steps=200, accumulation_steps=100), "accumulation_steps: 100, allowed: fewer"),
    ],
    ids=str,
)
def test_a_schedule_that_never_acts_is_refused(variant: Variant, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        variant.plan(100)


@pytest.mark.parametrize(
    "variant",
    [
        AdaLoRA(interval=99),
        AdaLoRA(interval=49, initial_steps=20, final_steps=50),
        AdaLoRA(initial_steps=49, final_steps=50),
        IncreLoRA(interval=99),
        IncreLoRA(target_rank=1, interval=1000),  # has nothing to add
        SparseLoRA(interval=98),
        SparseLoRA(schedule="one_shot"),
        SpIEL(reselection_steps=95),
    ],
    ids=str,
)
def test_one_that_acts_once_is_not(variant: Variant, caplog: pytest.LogCaptureFixture) -> None:
    variant.plan(100)
    assert not caplog.records


def test_spiel_says_where_its_entries_move_but_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        SpIEL(reselection_steps=96).plan(100)
    assert [record.message for record in caplog.records] == [
        "spiel: reselection_steps: 96 leaves one selection in 100 steps, after step 5: entries move only once"
    ]


@pytest.mark.parametrize(("cls", "params"), SETTINGS, ids=lambda part: getattr(part, "__name__", str(part)))
def test_a_run_without_any_update_ends_well_or_in_one_line(cls: type[Variant], params: dict[str, Any]) -> None:
    run = attach(cls, params)
    said = ""
    try:
        run.variant.on_train_end(run.step(STEPS))
    except RuntimeError as error:
        said = str(error)
    assert not said or (": " in said and "\n" not in said)


def test_scores_that_were_never_taken_are_told_when_a_mask_needs_them() -> None:
    run = attach(AdaLoRA, {"rank": 4, "target_rank": 2, "initial_steps": 2, "final_steps": 4, "interval": 2})
    run.steps_done = STEPS - 4  # all before the final phase were left out, as with gradients that are not finite
    with pytest.raises(RuntimeError, match="importance: no step was scored; none before the final phase had"):
        train(run)
