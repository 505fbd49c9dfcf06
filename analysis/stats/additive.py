"""A metric that is a formula of sums over examples, on many resamples at once: one product of matrices for each sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer.objectives import formula as formulas


@dataclass(frozen=True)
class Additive:
    """formula: see `trainer.objectives.formula`. stats: by name, of m models the numbers of n examples, each (m, n)."""

    formula: str
    stats: Mapping[str, np.ndarray]

    def over(self, index: np.ndarray) -> np.ndarray:
        """The metric of m models on R resamples, shape (m, R). index: (R, k), places in 0 … n − 1."""
        resamples, k = index.shape
        n = next((column.shape[1] for column in self.stats.values()), int(index.max(initial=-1)) + 1)
        # How often each example is in each resample.
        places = index + n * np.arange(resamples)[:, None]
        times = np.bincount(places.ravel(), minlength=n * resamples).reshape(resamples, n).T.astype(np.float64)
        needed = formulas.names(self.formula)
        # Model by model: rounding in a product of whole matrices depends on the row, and two alike would differ.
        sums = {
            name: np.stack([row.astype(np.float64) @ times for row in column])
            for name, column in self.stats.items()
            if name in needed
        }
        return formulas.value(self.formula, sums | {"examples": np.full((1, resamples), float(k))})
