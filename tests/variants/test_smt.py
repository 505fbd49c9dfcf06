"""SMT: scores, blocks and training of the released code."""

from __future__ import annotations

import pytest
import torch

from tests.variants import oracles
from variants.core.variant import Step
from variants.smt import SMT
from variants.testing.toys import attach, train


def test_every_number_of_the_released_code() -> None:
    oracle = oracles.load("smt")
    model = oracle.model()
    variant = SMT(blocks=10, block=2, full_steps=10, full_lr_scale=0.25)
    variant.attach(model)
    sums = variant.scores

    def scores():
        found = sums()
        for name, adapter in variant.adapters.items():
            oracle.near(variant._sums[name].view_as(adapter.weight), f"collected/{name}")
            oracle.near(found[name], f"score/{name}")
        return found

    variant.scores = scores

    def watch(done: int, step: Step) -> None:
        if done == 10:
            for name, adapter in variant.adapters.items():
                rows, columns = adapter.indices // adapter.in_features // 2, adapter.indices % adapter.in_features // 2
                found = set(zip(rows.tolist(), columns.tolist(), strict=True))
                assert found == {tuple(block) for block in oracle.arrays[f"blocks/{name}"].tolist()}

    parameters = {f"{n}.weight": lambda a=a: a.weight + a.delta_weight() for n, a in variant.adapters.items()}
    optimizer = oracles.optimizer(model, variant, lr=0.02)
    oracles.follow(oracle, model, variant, optimizer, 60, parameters=parameters, watch=watch)
    assert variant.effective_parameters() == 40


def test_after_the_full_phase_only_the_blocks_move() -> None:
    run = train(attach(SMT, {"blocks": 20, "block": 2, "full_steps": 2}), 2)
    before = {name: adapter.delta().detach().clone() for name, adapter in run.variant.adapters.items()}
    assert all(delta.all() for delta in before.values())
    train(run)
    for name, adapter in run.variant.adapters.items():
        moved = (adapter.delta().detach() != before[name]).flatten().nonzero().flatten()
        assert torch.equal(moved, adapter.indices)
    assert run.variant.report()["changed_entries"] == 384 and run.variant.effective_parameters() == 80


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": 5}, "block: 5 does not divide layer.0.fc1 of size 12×8"),
        ({"block": 4, "blocks": 25}, "blocks: 25 is 25 blocks, allowed for these targets: 1 … 24"),
        ({"block": 4, "budget": 15}, "budget: 15 is 0 blocks, allowed for these targets: 1 … 24"),
    ],
)
def test_what_it_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(SMT, {"full_steps": 2, **settings})


def test_a_full_phase_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="full_steps: 100, allowed: fewer than the run's 60 steps"):
        SMT().plan(60)
