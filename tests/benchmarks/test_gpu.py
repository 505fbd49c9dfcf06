"""`make gpu`: what it says without CUDA, how it compares two runs, and the tests that need a device."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import gpu
from tests.variants.found import all_variants
from variants.core.variant import AdapterVariant
from variants.testing import toys


def test_without_cuda_it_says_so_and_succeeds(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 0 and capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (([1.0, 0.5], 0.8), None),
        (([1.009, 0.5], 0.81), None),
        (([1.0, 0.6], 0.8), "loss of step 2: 0.6"),
        (([1.0, float("nan")], 0.8), "loss of step 2: nan"),
        (([1.0], 0.8), "1 losses, allowed: 2"),
        (([1.0, 0.5], 0.7), "metric: 0.7"),
    ],
)
def test_the_first_difference_is_named(other, says):
    found = gpu.difference(([1.0, 0.5], 0.8), other)
    assert found is None if says is None else says in found


def test_the_model_of_the_run_has_no_dropout_also_in_its_head(tiny_model, tmp_path):
    from transformers import AutoModelForSequenceClassification

    gpu.without_dropout(tiny_model, tmp_path / "model")
    usual, without = (AutoModelForSequenceClassification.from_pretrained(f) for f in (tiny_model, tmp_path / "model"))
    rates = [
        {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
        for model in (usual, without)
    ]
    assert rates[0]["dropout"] > 0 and rates[1] == dict.fromkeys(rates[0], 0)


@pytest.mark.slow
def test_losses_and_metric_are_those_of_the_run(finished_run, tmp_path):
    folder = finished_run("machine.log_every=1")
    (tmp_path / "place").mkdir()
    folder.parent.rename(tmp_path / "place" / "gpu")
    losses, metric = gpu.outcome(tmp_path / "place")
    assert len(losses) == 12 and 0 <= metric <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("index", range(max(torch.cuda.device_count(), 1)))
@pytest.mark.parametrize("cls", [c for c in all_variants() if issubclass(c, AdapterVariant)], ids=lambda c: c.__name__)
def test_a_method_computes_the_same_on_every_device(cls, index):
    on_cpu, on_device = (toys.attach(cls, cls.test_params()[0], torch.float64) for _ in range(2))
    on_device.model.to(torch.device("cuda", index))
    x, _ = toys.data(torch.float64)
    on_device.model.eval()
    with torch.no_grad():
        y = on_device.model(x.to(torch.device("cuda", index)))
    torch.testing.assert_close(y.cpu(), on_cpu.output(), rtol=1e-9, atol=1e-9)
