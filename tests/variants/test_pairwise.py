"""Any two values of a covering occur together, and there are fewer than all combinations."""

from __future__ import annotations

import itertools

from tests.variants.pairwise import covering


def test_every_pair_of_values_occurs_together() -> None:
    values = {"a": [1, 2, 3], "b": ["x", "y"], "c": [None, True], "d": [0, 1, 2]}
    found = covering(values)
    for (i, one), (j, other) in itertools.combinations(enumerate(values.values()), 2):
        assert {(row[i], row[j]) for row in found} == set(itertools.product(one, other))
    assert len(found) < 3 * 2 * 2 * 3 / 3 and found == covering(values)
