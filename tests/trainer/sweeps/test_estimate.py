"""How long runs take that are not done yet."""

from __future__ import annotations

from omegaconf import OmegaConf

from hydra_plugins.study_sweeper import StudySweeper
from trainer.sweeps.estimate import Durations


def test_runs_that_are_fewer_than_the_workers_take_as_long_as_one():
    sweeper = object.__new__(StudySweeper)
    sweeper.master = OmegaConf.create({"hydra": {"launcher": {"_target_": "x.Launcher", "n_jobs": 4}}})
    sweeper.durations, sweeper.kinds = Durations(), dict.fromkeys(range(8), ("lora", "movie"))
    sweeper.durations.add(("lora", "movie"), 60.0)
    assert [sweeper._seconds(range(count)) for count in (1, 3, 8)] == [60.0, 60.0, 120.0]
