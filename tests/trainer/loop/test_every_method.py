"""Every method of conf/variant in the loop: cut off, evaluated, checkpointed, accumulated, it trains as it would have.

The contract checks the same of a method on toys; here it is the trainer that calls the hooks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.conftest import folder_of
from tests.trainer.every_method import FIRST, LAST, LOOP, acts_in_steps, class_of
from tests.trainer.left_behind import outcome
from trainer.loop.checkpoints import Checkpoints
from trainer.model import backbone as models
from variants.core import state_files
from variants.core.variant import Variant
from variants.lora import LoRA
from variants.testing.case import same

pytestmark = pytest.mark.slow


def divides_otherwise(cls: type[Variant]) -> bool:
    """Whether accumulation is more for a method than the function `take`, which it shares with the contract: batches
    of passes before training, a penalty."""
    return any(getattr(cls, hook) is not getattr(Variant, hook) for hook in ("before_training", "penalty"))


DIVIDED = {
    cls: run
    for cls, run in {class_of(name): run for name, run in reversed(FIRST.values())}.items()
    if cls.same_in_batches and (cls is LoRA or divides_otherwise(cls))
}


@pytest.fixture
def ends_with(carry_out, tmp_path) -> Callable[..., dict[str, Any]]:
    """Carries out a run; what it ended with and what it wrote, but for what evaluations and recomputing may change."""

    def carried_out(*overrides: str) -> dict[str, Any]:
        record = carry_out(*LOOP, *overrides)
        folder = folder_of(record, tmp_path)
        left, row = outcome(record, tmp_path), record.row()
        lines = map(json.loads, str(left["metrics"]).splitlines())
        return {
            "state": state_files.load(folder / "adapter" / "state"),
            "effective": record.params.effective,
            "log": [line for line in lines if "train/task_loss" in line],
            "row": {
                name: value for name, value in row.items() if name.startswith(("metric", "params", "rank", "steps"))
            },
            **{name: left[name] for name in ("ranks", "predictions", "files")},
        }

    return carried_out


@pytest.mark.parametrize("method", [run for _, run in LAST.values()], ids=LAST)
def test_cut_off_and_taken_up_evaluated_and_recomputed_it_ends_with_the_same_bits(method, ends_with, monkeypatch):
    few = "data.eval_limit=8"
    expected = ends_with(*method, few)
    acts = acts_in_steps(class_of(method[0].removeprefix("variant=")))
    write, stops = Checkpoints.write, [4, 8] if acts else [8]

    def write_and_die(self, step, state):
        write(self, step, state)
        if step in stops:
            stops.remove(step)
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "write", write_and_die)
    disturbed = ["machine.save_every=4", "train.eval_every=1", "train.gradient_checkpointing=true", "study=disturbed"]
    for _ in range(len(stops)):
        with pytest.raises(KeyboardInterrupt):
            ends_with(*method, few, *disturbed)
    assert same(ends_with(*method, few, *disturbed), expected) and not stops


@pytest.mark.parametrize("method", DIVIDED.values(), ids=lambda run: run[0])
def test_accumulated_batches_make_the_steps_and_the_ranks_of_large_ones(method, ends_with, monkeypatch):
    fresh = models.fresh

    def without_dropout(*arguments):
        model = fresh(*arguments)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return model

    monkeypatch.setattr(models, "fresh", without_dropout)
    settings = [o if "variant.dropout" not in o else "variant.dropout=0.0" for o in method] + ["model.dtype=float64"]
    large = ends_with(*settings, "train.batch_size=8", "study=large")
    small = ends_with(*settings, "train.batch_size=4", "train.accumulate=2", "study=small")
    assert small["ranks"] == large["ranks"] and small["effective"] == large["effective"]
    parameters, expected = (run["state"]["parameters"] for run in (small, large))
    assert parameters.keys() == expected.keys()
    for name, tensor in parameters.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-9, msg=name)
