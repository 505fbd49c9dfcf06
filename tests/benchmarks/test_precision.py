"""How much faster a step above a bfloat16 backbone is, of steps whose times are known and of real ones."""

from __future__ import annotations

import pytest
import torch

from benchmarks import precision
from benchmarks.stepper import Stepper
from tests.classifiers import pristine

CPU = torch.device("cpu")


@pytest.fixture
def source(tiny_model, monkeypatch):
    found = pristine(tiny_model, 2)
    monkeypatch.setattr(precision, "default_backbone", lambda: ("tiny", found))
    return found


def test_times_faster_is_the_median_of_the_ratios_round_by_round(source, monkeypatch):
    taken = {"float32": iter([1e6, 1e6, 10, 30, 20, 60]), "bfloat16": iter([1e6, 1e6, 10, 10, 10, 15])}

    class Scripted:
        def __init__(self, source, variant, batch, length, device, dtype):
            assert (batch, length, device) == (2, 5, CPU)
            self.times = taken[dtype]

        def step(self):
            return next(self.times), 0.0

    monkeypatch.setattr(precision, "Stepper", Scripted)
    found = precision.measure("lora", 2, 5, 4, CPU)  # ratios 1, 3, 2, 4 after two steps to warm up
    assert found == {"float32": 25, "bfloat16": 10, "times": 2.5, "low": 1.25, "high": 3.75}


@pytest.mark.parametrize("method", precision.METHODS)
def test_adapters_and_head_train_in_float32_above_both(source, method):
    for kind in ("float32", "bfloat16"):
        taken = Stepper(source, precision.METHODS[method](), 2, 5, CPU, kind)
        assert {p.dtype for p in taken.model.parameters() if p.requires_grad} == {torch.float32}
        frozen = {p.dtype for p in taken.model.parameters() if not p.requires_grad}
        assert frozen == {getattr(torch, kind)}
        before = [p.detach().clone() for p in taken.model.parameters() if p.requires_grad]
        taken.step()
        after = [p for p in taken.model.parameters() if p.requires_grad]
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
