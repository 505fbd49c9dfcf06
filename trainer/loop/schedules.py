"""Learning-rate schedules: the factor on the learning rate as a function of the step.

The formulas equal those of `transformers.get_scheduler` to the bit. Importing that function would import PEFT.
"""

from __future__ import annotations

import math
from collections.abc import Callable

END = 1e-7  # final learning rate of a polynomial schedule


def factor(schedule: str, warmup: int, total: int, default_lr: float) -> Callable[[int], float]:
    """Returns the factor as a function of the step, counted from 0, for one of `trainer.config.SCHEDULES`.

    warmup: steps of linear warmup; ``constant` has none. total: steps of the run. default_lr: the optimizer's default
    rate; a polynomial schedule ends at `END / default_lr`.
    """

    def linear(step: int) -> float:
        return max(0.0, float(total - step) / float(max(1, total - warmup)))

    def cosine(step: int) -> float:
        progress = float(step - warmup) / float(max(1, total - warmup))
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))

    def polynomial(step: int) -> float:
        if step > total:
            return END / default_lr
        return ((default_lr - END) * (1 - (step - warmup) / max(1, total - warmup)) + END) / default_lr

    def inverse_sqrt(step: int) -> float:
        timescale = warmup or 10_000
        return 1.0 / math.sqrt((step + timescale - warmup) / timescale)

    decays: dict[str, Callable[[int], float]] = {
        "linear": linear,
        "cosine": cosine,
        "constant": lambda step: 1.0,
        "constant_with_warmup": lambda step: 1.0,
        "polynomial": polynomial,
        "inverse_sqrt": inverse_sqrt,
    }
    decay, rise = decays[schedule], 0 if schedule == "constant" else warmup
    return lambda step: float(step) / float(max(1, rise)) if step < rise else decay(step)
