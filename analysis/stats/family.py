"""Many tests at once.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 1979

Holm's correction bounds the chance of even one false claim in the whole family, whatever the
tests have to do with one another: tests of one baseline against many, on the same test examples,
depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p values, in the order given; none for none."""
    if len(p_values) < 2:
        return list(p_values)  # a single test needs no correction
    # statsmodels' `multipletests` gives the same bits and collects all garbage at each call, for a tenth of a second.
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    steps = np.take(p_values, order) * np.arange(len(p_values), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(p) for p in adjusted]
