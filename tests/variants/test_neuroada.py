"""NeuroAda: entries and training of the released code; GPS chooses by gradients."""

from __future__ import annotations

import pytest
import torch

from tests.variants import oracles
from variants.neuroada import NeuroAda
from variants.testing.toys import HEAD, Toy, attach, passes


def test_every_number_of_the_released_code() -> None:
    oracle = oracles.load("neuroada")
    model = oracle.model()
    variant = NeuroAda(per_row=2)
    variant.attach(model)
    for name, adapter in variant.adapters.items():
        rows, columns = oracle.tensor(f"indices/{name}")
        assert torch.equal(adapter.indices, rows * adapter.in_features + columns)
    parameters = {f"{name}.values": lambda a=a: a.values for name, a in variant.adapters.items()}
    optimizer = oracles.optimizer(model, variant, lr=0.02)
    oracles.follow(oracle, model, variant, optimizer, 60, parameters=parameters)
    for name, adapter in variant.adapters.items():
        adapter.merge()
        oracle.close(adapter.weight, f"merged/{name}")


def test_every_row_has_the_entries_with_the_largest_gradients() -> None:
    run = attach(NeuroAda, {"per_row": 2, "score": "gradient", "batches": 3}, torch.float64)
    toy, fresh = Toy(torch.float64), NeuroAda()
    fresh.attach(toy, HEAD)
    taken = passes(toy, torch.float64)
    gradients = [taken.gradients(fresh.adapters, batch) for batch in taken.steps(3)]
    for name, adapter in run.variant.adapters.items():
        mean = sum(gradient[name] for gradient in gradients).abs()
        pattern = torch.zeros_like(mean, dtype=torch.bool)
        pattern.view(-1)[adapter.indices] = True
        assert (pattern.sum(1) == 2).all()
        assert (mean.where(pattern, torch.inf).amin(1) >= mean.where(~pattern, 0.0).amax(1)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "best"}, "score: 'best', allowed: magnitude, gradient"),
        ({"batches": 2}, "batches: 2 with score: magnitude, allowed: 1"),
        ({"per_row": 2, "budget": 30}, "per_row: 2 with budget: 30"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuroAda(**settings)
