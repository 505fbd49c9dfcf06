"""Random masks: every layer's own, the same for a seed, another one for another seed."""

from __future__ import annotations

import pytest
import torch

from variants.core.seeding import generator
from variants.shira import SHiRA
from variants.sparse import SparseLoRA
from variants.spiel import SpIEL
from variants.svft import SVFT
from variants.testing.toys import attach


def test_seed_and_name_decide_and_nothing_else_does():
    first, again, seed, name = (
        torch.rand(4, generator=generator(*a)) for a in ((0, "x"), (0, "x"), (1, "x"), (0, "y"))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, seed) and not torch.equal(first, name) and not torch.equal(seed, name)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_no_two_of_many_layers_draw_the_same(seed: int):
    draws = {tuple(torch.rand(2, generator=generator(seed, f"layer.{n}")).tolist()) for n in range(200)}
    assert len(draws) == 200


@pytest.mark.parametrize(
    ("cls", "params", "places"),
    [
        (SHiRA, {"rank": 2}, lambda adapter: adapter.indices),
        (SVFT, {"pattern": "random", "off_diagonals": 1}, lambda adapter: torch.stack([adapter.rows, adapter.columns])),
        (SparseLoRA, {"rank": 4, "schedule": "rigl"}, lambda adapter: adapter.indices["A"]),
        (SpIEL, {"density": 0.2}, lambda adapter: adapter.indices),
    ],
    ids=["shira", "svft", "sparse", "spiel"],
)
def test_two_layers_of_one_size_have_masks_of_their_own(cls, params, places):
    def found(seed: int) -> list[torch.Tensor]:
        adapters = attach(cls, {**params, "seed": seed}).variant.adapters
        return [places(adapters[f"layer.{block}.fc1"]) for block in range(2)]

    one, two = found(0)
    assert not torch.equal(one, two)
    assert torch.equal(one, found(0)[0]) and not torch.equal(one, found(1)[0])
