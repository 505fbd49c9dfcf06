"""Every method of conf/variant in the loop: cut off, evaluated, checkpointed, accumulated, it trains as it would have.

The contract checks the same of a method on toys; here it is the trainer that calls the hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.conftest import folder_of
from tests.trainer.every_method import LOOP, METHODS, class_of
from tests.trainer.left_behind import outcome
from trainer.loop.checkpoints import Checkpoints
from trainer.model import backbone as models
from variants.core import state_files
from variants.testing.case import same

pytestmark = pytest.mark.slow

every_method = pytest.mark.parametrize("method", [run for _, run in METHODS.values()], ids=METHODS)
SAME = {key: run for key, (name, run) in METHODS.items() if class_of(name).same_in_batches}


@pytest.fixture
def ends_with(carry_out, tmp_path) -> Callable[..., dict[str, Any]]:
    """Carries out a run; what it ended with, and the `whole` of what it left behind."""

    def carried_out(*overrides: str) -> dict[str, Any]:
        record = carry_out(*LOOP, *overrides)
        folder = folder_of(record, tmp_path)
        ranks = folder / "ranks.jsonl"
        return {
            "state": state_files.load(folder / "adapter" / "state"),
            "ranks": ranks.read_text() if ranks.exists() else "",
            "value": record.metric.value,
            "effective": record.params.effective,
            "whole": outcome(record, tmp_path),
        }

    return carried_out


@pytest.fixture(scope="module")
def undisturbed() -> dict[tuple[str, ...], dict[str, Any]]:
    """What runs that nothing disturbed ended with, by their overrides."""
    return {}


@pytest.fixture
def straight(ends_with, undisturbed) -> Callable[[list[str]], dict[str, Any]]:
    """What a run ends with that nothing disturbs; carried out once for all tests."""

    def found(method: list[str]) -> dict[str, Any]:
        key = tuple(method)
        if key not in undisturbed:
            undisturbed[key] = ends_with(*method)
        return undisturbed[key]

    return found


@every_method
def test_cut_off_in_the_middle_and_taken_up_it_ends_with_the_same_bits(method, straight, ends_with, monkeypatch):
    expected = straight(method)
    write, stops = Checkpoints.write, [4, 8]

    def write_and_die(self, step, state):
        write(self, step, state)
        if step in stops:
            stops.remove(step)
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "write", write_and_die)
    overrides = [*method, "machine.save_every=4", "study=cut"]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ends_with(*overrides)
    found = ends_with(*overrides)
    assert not stops and same(found, expected)


@every_method
def test_evaluations_and_recomputed_activations_change_no_bit(method, straight, ends_with):
    found = ends_with(*method, "train.eval_every=1", "train.gradient_checkpointing=true", "study=disturbed")
    expected = straight(method)
    assert found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in found.keys() - {"whole"})


@pytest.mark.parametrize("method", SAME.values(), ids=SAME)
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
