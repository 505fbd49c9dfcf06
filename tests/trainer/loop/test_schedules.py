"""Learning-rate schedules are those of transformers, to the bit."""

from __future__ import annotations

import pytest
import torch
import transformers
from omegaconf import OmegaConf

from trainer.config import SCHEDULES
from trainer.loop.optim import build_schedule

STEPS = 12


def rates(schedule) -> list[list[float]]:
    found = []
    for _ in range(STEPS + 2):  # a schedule may be asked for steps after the last
        found.append(schedule.get_last_lr())
        schedule.optimizer.step()
        schedule.step()
    return found


def optimizer() -> torch.optim.Optimizer:
    one, other = (torch.zeros(2, requires_grad=True) for _ in range(2))
    return torch.optim.AdamW([{"params": [one], "lr": 3e-3}, {"params": [other], "lr": 0.7}])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup, steps", [(0, 0), (0.3, 4), (5, 5), (STEPS - 1, STEPS - 1)])
def test_every_schedule_gives_the_rates_of_transformers(schedule, warmup, steps):
    config = OmegaConf.create({"schedule": schedule, "warmup": warmup, "lr": 3e-3})
    ours = rates(build_schedule(optimizer(), config, STEPS))
    theirs = transformers.get_scheduler(schedule, optimizer(), num_warmup_steps=steps, num_training_steps=STEPS)
    assert ours == rates(theirs)


@pytest.mark.parametrize("schedule", sorted({*SCHEDULES} - {"constant"}))
def test_a_warmup_may_take_all_steps(schedule):
    config = OmegaConf.create({"schedule": schedule, "warmup": STEPS, "lr": 3e-3})
    rising = [first for first, _ in rates(build_schedule(optimizer(), config, STEPS))[:STEPS]]
    assert rising == pytest.approx([3e-3 * step / STEPS for step in range(STEPS)])
