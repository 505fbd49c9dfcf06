"""ALoRA: a round against losses of models that were built without adapters, and where ranks go."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from variants.alora import ALoRA
from variants.testing.toys import Toy, attach, data, train

SETTINGS = {"rank": 3, "initial_steps": 4, "interval": 4, "rounds": 2, "exchange": 3}
NAMES = ("layer.0.fc1", "layer.0.fc2", "layer.1.fc1", "layer.1.fc2")


def test_a_round_written_out() -> None:
    run = train(attach(ALoRA, {**SETTINGS, "batches": 2}, torch.float64), 3)
    toy, (x, y), head = Toy(torch.float64), data(torch.float64), run.toy.head
    parts = {name: (a.A.detach().clone(), a.B.detach().clone()) for name, a in run.variant.adapters.items()}
    everything = [(name, i) for name in parts for i in range(3)]

    def loss(components: list[tuple[str, int]]) -> float:
        weights = {f"head.{n}": p.detach() for n, p in head.named_parameters()}
        for name, (a, b) in parts.items():
            weight = toy.get_submodule(name).weight.detach()
            weights[f"{name}.weight"] = weight + sum(
                16 / 3 * torch.outer(b[:, i], a[i]) for n, i in components if n == name
            )
        # The rows of the first two steps.
        return float(F.mse_loss(functional_call(toy, weights, (x[:32],)), y[:32]))

    scores = {one: loss([other for other in everything if other != one]) - loss([one]) for one in everything}
    found = run.variant._score.scores(run.variant.adapters)
    for name in parts:
        expected = torch.tensor([scores[name, i] for i in range(3)], dtype=torch.float64)
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)
    assert run.variant.report()["losses"] == 24
    pruned = sorted(everything, key=scores.__getitem__)[:3]
    spared = [name for name in parts if all(name != owner for owner, _ in pruned)]
    spared.sort(key=lambda name: -sum(scores[name, i] for i in range(3)))
    ranks = {name: 3 - sum(owner == name for owner, _ in pruned) for name in parts}
    for turn in range(3):
        ranks[spared[turn % len(spared)]] += 1
    run.variant.on_update(run.step(4))
    assert run.variant.ranks() == ranks
    for name, (a, b) in parts.items():
        kept = [i for i in range(3) if (name, i) not in pruned]
        adapter = run.variant.adapters[name]
        assert torch.equal(adapter.A[: len(kept)], a[kept]) and torch.equal(adapter.B[:, : len(kept)], b[:, kept])
        assert adapter.A[len(kept) :].any(1).all() and not adapter.B[:, len(kept) :].any()
        assert adapter.scale == 16 / 3


@pytest.mark.parametrize(("budget", "total"), [(None, 9), (240, 12)])
def test_without_a_layer_that_is_spared_ranks_are_lost_unless_there_is_a_budget(budget: int | None, total: int) -> None:
    run = attach(ALoRA, SETTINGS | ({} if budget is None else {"budget": budget, "rank": ALoRA.rank}))
    assert set(run.variant.ranks().values()) == {3}
    scores = {name: [0.0, 1.0, 2.0] for name in NAMES}
    run.variant.exchange = 4
    run.variant._move(scores, run.optimizer)
    assert sum(run.variant.ranks().values()) == (8 if budget is None else total)


def test_the_layers_of_the_largest_mean_gain_first_and_those_without_ranks_nothing() -> None:
    run = attach(ALoRA, SETTINGS)
    empty = torch.tensor([], dtype=torch.int64)
    run.variant.adapters[NAMES[0]].keep(empty, run.optimizer)
    run.variant._move({NAMES[0]: [], NAMES[1]: [9, -1, -2], NAMES[2]: [3, 3, 3], NAMES[3]: [1, 8, 1]}, run.optimizer)
    # The third to go is the first 1 of the last layer: only the third layer is spared.
    assert run.variant.ranks() == dict(zip(NAMES, [0, 1, 6, 2], strict=True))


def test_a_round_whose_step_was_left_out_is_made_after_the_next_one() -> None:
    run = train(attach(ALoRA, SETTINGS), 3)
    for index, made in [(5, 1), (6, 1), (7, 1), (9, 2), (10, 2)]:
        run.variant.on_update(run.step(index))
        assert run.variant._made == made and run.variant.is_final_form(run.step(index)) == (made == 2)


def test_measuring_moves_no_random_number_and_no_weight() -> None:
    run = train(attach(ALoRA, {**SETTINGS, "dropout": 0.2}), 2)
    before, random = run.output(), torch.get_rng_state()
    run.model.train()
    run.variant._score.scores(run.variant.adapters)
    assert torch.equal(random, torch.get_rng_state()) and run.model.training and torch.equal(run.output(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SETTINGS, "rounds": 3}, "rounds: 3, the last one after step 12, allowed: before the last step, 12"),
        ({**SETTINGS, "exchange": 12}, "exchange: 12 of 12 ranks, allowed: at most 11"),
        ({**SETTINGS, "rank": 1, "exchange": None}, "exchange: 4 of 4 ranks, allowed: at most 3"),
        ({"budget": 200, "rank": 2}, "rank: 2 with budget: 200"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(ALoRA, settings)
