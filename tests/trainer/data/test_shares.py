"""Which rows of a mixture of tasks an epoch has."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from trainer.data import shares
from trainer.errors import ConfigError

TASKS = ["a"] * 10 + ["b"] * 4
ORDER = np.random.default_rng(0).permutation(14)


def counts(rows):
    return Counter(TASKS[row] for row in rows)


def test_without_a_limit_each_row_is_there_and_the_shares_are_kept():
    rows = shares.drawn(ORDER, TASKS, {"a": 1 / 3, "b": 2 / 3}, None)
    assert counts(rows) == {"a": 10, "b": 20} and set(rows) == set(range(14))
    assert set(Counter(row for row in rows if TASKS[row] == "b").values()) == {5}
    assert list(rows) == sorted(rows)
    assert shares.said(TASKS, rows, {"a": 1, "b": 2}) == "an epoch has 30 rows: 10 of a, 20 of b (16 of them repeated)"


def test_proportional_shares_repeat_nothing():
    assert sorted(shares.drawn(ORDER, TASKS, {"a": 10 / 14, "b": 4 / 14}, None)) == list(range(14))


@pytest.mark.parametrize("limit", [3, 5, 7, 13])
def test_a_limit_is_kept_to_the_row_and_takes_the_first_of_the_runs_order(limit):
    rows = shares.drawn(ORDER, TASKS, {"a": 0.5, "b": 0.5}, limit)
    found = counts(rows)
    assert len(rows) == limit and abs(found["a"] - found["b"]) <= 1
    first = [row for row in ORDER if TASKS[row] == "a"][: found["a"]]
    assert {row for row in rows if TASKS[row] == "a"} == set(first)


def test_a_task_without_rows_is_named():
    with pytest.raises(ConfigError, match=r"data\.limit: 1 leaves no training row of "):
        shares.drawn(ORDER, TASKS, {"a": 0.9, "b": 0.1}, 1)
    with pytest.raises(ConfigError, match=r"no training row of b is left"):
        shares.drawn(np.arange(10), TASKS, {"a": 0.9, "b": 0.1}, None)
    with pytest.raises(ConfigError, match=r"data\.eval_limit: 2 leaves no row of b in validation"):
        shares.refuse_absent(["a", "a"], {"a": 1, "b": 1}, "validation", "data.eval_limit: 2")
