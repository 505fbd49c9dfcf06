"""Learning from a teacher's outputs beside the labels.

Source: G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv:1503.02531). A
step minimises, per row or token that counts,

    (1 − weight) · task loss + weight · T² · KL(softmax(teacher / T) ‖ softmax(student / T)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from trainer.loop import cost
from trainer.objectives.objective import Objective
from variants.core.step import Loss

if TYPE_CHECKING:
    from trainer.loop.batches import Batch
    from trainer.loop.counters import Counters
    from trainer.loop.network import Network


class Distillation:
    """The loss of a run with a teacher, called as `Objective.loss` is.

    teacher: in evaluation mode; nothing of it is trained. weight: 0 to 1. counters: of the run, which get the bytes of
    the teacher and the number of its forward passes.
    """

    def __init__(
        self, objective: Objective, teacher: Network, temperature: float, weight: float, counters: Counters
    ) -> None:
        self._objective, self._teacher = objective, teacher
        self._temperature, self._weight = temperature, weight
        self._counters = counters
        counters.teacher = cost.weight_bytes(teacher.model)

    def __call__(self, model: Network, batch: Batch) -> Loss:
        """Computes the loss of a batch as a sum over the units of its weight."""
        with torch.no_grad():
            taught = self._objective.unit_logits(self._teacher, batch)
        self._counters.taught += 1
        logits = self._objective.unit_logits(model, batch)
        own = self._objective.loss_of(logits, batch)
        student, teacher = (F.log_softmax(each / self._temperature, dim=-1) for each in (logits, taught))
        distance = F.kl_div(student, teacher, reduction="sum", log_target=True) * self._temperature**2
        return Loss((1 - self._weight) * own.sum + self._weight * distance, own.weight)
