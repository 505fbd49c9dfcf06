"""The largest of scores, and checks of numbers, computed for many layers at once."""

from __future__ import annotations

import pytest
import torch

from variants.core.adapters.sparse_delta import check_finite, largest, largest_in_rows, largest_of_groups


@pytest.mark.parametrize("count", [0, 1, 5, 11, 12, 20])
def test_the_largest_of_rows_are_those_of_a_stable_sort(count: int) -> None:
    scores = torch.randint(0, 4, (6, 12), generator=torch.Generator().manual_seed(0)).double()
    expected = [row.argsort(descending=True, stable=True)[:count].sort().values for row in scores]
    assert largest_in_rows(scores, count).tolist() == [places.tolist() for places in expected]
    assert largest(scores[0].view(3, 4), count).tolist() == expected[0].tolist()


def test_groups_of_several_share_one_ranking_and_groups_of_one_are_computed_as_if_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.rand(size, generator=generator) for size in (5, 5, 7, 3, 4)]
    groups = [[vectors[0]], [vectors[1]], [vectors[2], vectors[3], vectors[4]]]
    found = largest_of_groups(groups, [2, 2, 6])
    assert [places.tolist() for (places,) in found[:2]] == [largest(v, 2).tolist() for v in vectors[:2]]
    mask = torch.zeros(14, dtype=torch.bool).index_fill(0, largest(torch.cat(vectors[2:]), 6), True)
    assert [p.tolist() for p in found[2]] == [part.nonzero().flatten().tolist() for part in mask.split([7, 3, 4])]


def test_groups_without_room_or_with_empty_vectors() -> None:
    empty, some = torch.zeros(0), torch.tensor([3.0, 1.0, 2.0])
    assert [p.tolist() for p in largest_of_groups([[empty, some]], [2])[0]] == [[], [0, 2]]
    assert [p.tolist() for p in largest_of_groups([[some, empty]], [5])[0]] == [[0, 1, 2], []]
    assert largest_of_groups([], []) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_that_is_not_finite_is_named(bad: float) -> None:
    numbers = {"a": torch.ones(2, 2), "empty": torch.zeros(0), "b": torch.tensor([0.0, bad]), "c": torch.tensor([bad])}
    with pytest.raises(ValueError, match=r"^of b: not finite$"):
        check_finite(numbers, "of {}: not finite")
    check_finite({"a": torch.ones(2), "empty": torch.zeros(0)}, "of {}")
    check_finite({}, "of {}")
