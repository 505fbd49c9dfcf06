"""What a classification or a regression minimises, and what it predicts."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from variants.core.step import Loss


class Objective:
    """regression: whether labels are numbers; class ids if not."""

    def __init__(self, regression: bool) -> None:
        self.regression = regression

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, weight: int) -> Loss:
        """Cross-entropy, or squared error of a regression, summed over the rows.

        logits: (rows, classes) or (rows, 1), in at least float32. weight: how many of the rows count; all of them, or
        none.
        """
        if self.regression:
            return Loss(F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype), reduction="sum"), weight)
        return Loss(F.cross_entropy(logits, labels, reduction="sum"), weight)

    def predicted(self, outputs: np.ndarray) -> np.ndarray:
        """Class ids, or values of a regression, from the model's raw outputs."""
        return outputs.reshape(-1) if self.regression else outputs.argmax(-1)
