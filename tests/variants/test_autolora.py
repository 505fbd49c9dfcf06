"""AutoLoRA: the search of the released code; what begins training after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.variants import oracles
from variants.autolora import AutoLoRA, Search
from variants.testing.toys import attach


def test_every_number_of_the_released_search(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = oracles.load("autolora_search")
    model = oracle.model()
    variant = AutoLoRA(rank=4, alpha=8, search_steps=30, lr=0.02, gate_lr=0.05, profile="released")
    variant.attach(model)
    for name, adapter in variant.adapters.items():
        adapter.A.data = oracle.tensor(f"after_000/param/{name}.lora_A").clone()
        assert not adapter.B.any()
    rows = oracle.tensor("toy/batch_idx")
    variant.pairs = lambda passes: zip(rows[:30, None], rows[50:80, None], strict=True)
    step, take, done = Search.step, Search._take, 0

    def taken(self, gradient):
        stored = oracle.arrays["arch_grad"][done]
        np.testing.assert_allclose(torch.stack(gradient).numpy(), stored, rtol=1e-9, atol=1e-9 * np.abs(stored).max())
        take(self, gradient)

    def stepped(self, inner, outer):
        nonlocal done
        step(self, inner, outer)
        gates = torch.stack(variant.gates()).detach().numpy()
        np.testing.assert_allclose(gates, oracle.arrays["alphas_after_step"][done], rtol=1e-9)
        assert list(variant.found().values()) == oracle.arrays["rank"][done].tolist()
        done += 1
        for name, adapter in variant.adapters.items():
            for part, p in (("A", adapter.A), ("B", adapter.B)):
                if (key := f"after_{done:03d}/param/{name}.lora_{part}") in oracle.arrays:
                    oracle.near(p, key)
        if f"after_{done:03d}/output" in oracle.arrays:
            oracle.close(model(oracle.tensor("toy/X")), f"after_{done:03d}/output")

    monkeypatch.setattr(Search, "step", stepped)
    monkeypatch.setattr(Search, "_take", taken)
    passes = oracles.toy_passes(oracle, model)
    variant.before_training(passes)
    assert done == 30 and passes.count == 5 * 30
    assert list(variant.ranks().values()) == [2, 1, 1]


def test_training_begins_as_lora_at_the_ranks_that_were_found() -> None:
    run = attach(AutoLoRA, {"rank": 4, "search_steps": 6, "lr": 0.05, "gate_lr": 0.5})
    for adapter in run.variant.adapters.values():
        assert adapter.gates is None and not adapter.B.any() and adapter.A.all()
        assert adapter.scale == 16 / adapter.rank and 1 <= adapter.rank <= 4
    fresh = attach(AutoLoRA, {"rank": 4, "search_steps": 1})
    assert torch.equal(run.toy.head.weight, fresh.toy.head.weight), "the head begins as it began the search"


@pytest.mark.parametrize("budget", [100, 150])
def test_a_budget_is_met_to_less_than_a_rank(budget: int) -> None:
    run = attach(AutoLoRA, {"rank": 4, "search_steps": 3, "gate_lr": 0.1, "budget": budget})
    assert budget - 20 < run.variant.effective_parameters() <= budget


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search_steps": 0}, "search_steps: 0, allowed: a whole number ≥ 1"),
        ({"gate_lr": 0.0}, "gate_lr: 0.0, allowed: a number > 0"),
        ({"budget": 100, "profile": "released"}, "budget: 100 with profile: released, allowed: null"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoLoRA(**settings)
