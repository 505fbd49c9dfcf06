"""The sweep: what is missing of a study, handed to a launcher, and what came of it.

Hydra takes plugins from packages of this name alone. It is Hydra's own sweeper in what its overrides mean; it differs
in that finished runs never reach the launcher (a cluster gets no job that would find nothing to do), that no config
and no result of more than a batch is held, that a failed run ends no sweep, and that a batch whose worker died is
taken up again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from trainer.errors import ConfigError, Held, Pruned, one_line
from trainer.machine import garbage, launch, signals
from trainer.overrides import quoted
from trainer.sweeps import estimate, sweep, titles
from trainer.sweeps.estimate import Durations
from trainer.sweeps.plan import Planned
from trainer.sweeps.titles import Fault, Titles

log = logging.getLogger("trainer.sweeps.sweep")

SHOWN = 50  # runs that are done already are listed up to so many

# What the launchers raise where a process died that carried out a job: joblib, submitit, ray.
DIED = ("BrokenProcessPool", "UncompletedJobError", "WorkerCrashedError", "OutOfMemoryError")


class Incomplete(ConfigError):
    """Runs of the sweep are not done at its end; one line that says how many and why."""


class StudySweeper(Sweeper):
    """See the module. batch: runs that the launcher gets at once; null for what suits the launcher."""

    def __init__(self, params: DictConfig | None = None, batch: int | None = None) -> None:
        self.params: Mapping[Any, Any] = params or {}
        self.batch = batch

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.master, self.loader = config, hydra_context.config_loader
        self._launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        sweep.refuse_several_processes(type(self).__name__, self.master.hydra.launcher)
        sweep.refuse_unread(self.master.hydra, multirun=True)
        texts = [f"{key}={value}" for key, value in self.params.items()] + arguments
        self._begin(sweep.product(self.loader, texts))
        left = self._plan()
        if self.dry_run:
            self._predict(left)
            return
        left = self._that_can_be(left)
        size = self.batch or batch_size(self.master.hydra.launcher)
        for start in range(0, len(left), size):
            self._carry_out(left[start : start + size])
            self._say_what_is_left(left[start + size :])
        self._conclude()

    def _begin(self, jobs: list[list[str]]) -> None:
        self.runs = sweep.Runs(self.loader, self.master, jobs)
        self.titles = Titles(jobs)
        self.durations = Durations()
        self.faults: dict[int, Fault] = {}
        self.kinds: dict[int, tuple[str, str]] = {}  # of runs that are to do, for their durations
        self.tally: Counter[str] = Counter()
        self.first_error = ""
        self.dry_run = self.skip_invalid = False

    def _plan(self) -> list[int]:
        """Says what there is to do; the places of the runs that are not done."""
        left: list[int] = []
        shown: list[str] = []
        failed = 0
        for number in range(len(self.runs)):
            run = self._planned(number)
            if run is None:
                left.append(number)
                continue
            self.dry_run |= bool(run.config.machine.dry_run)
            self.skip_invalid |= bool(run.config.skip_invalid)
            failed += run.failed
            if not run.done:
                left.append(number)
                self.kinds[number] = estimate.kind(run.config)
                continue
            if run.record is not None:
                self.durations.take(run.record)
            if len(shown) < SHOWN:
                shown.append(run.summary)
        done = len(self.runs) - len(left)
        self.tally["done already"] = done
        again = " (failed runs are tried again)" if failed else ""
        counts = (len(self.runs), done, failed, len(left) - failed, again, self._time_for(left))
        log.info("%d runs: %d done, %d failed, %d to do%s%s", *counts)
        for line in shown if done <= SHOWN else ():
            log.info("done already: %s", line)
        return left

    def _planned(self, number: int) -> Planned | None:
        """The run in place `number`, or None where it can't be: then `faults` says why."""
        config = None
        try:
            config = self.runs.config(number)
            run = self.runs.plan(number)
            return replace(run, label=self.titles.label(number, config))
        except Exception as error:  # Hydra's and OmegaConf's have no class in common
            self._fault(number, config, error)
            return None

    def _fault(self, number: int, config: DictConfig | None, error: Exception) -> None:
        if not isinstance(error, ConfigError | HydraException | OmegaConfBaseException):
            raise error
        seed = None if config is None else config.seed
        self.faults[number] = Fault(self.titles.setting(number, config), seed, one_line(error))

    def _that_can_be(self, left: list[int]) -> list[int]:
        """Of the runs that are to do those that can be. Raises `ConfigError` unless the others are to be left out."""
        if not left:
            return left  # and nothing is imported
        with garbage.paused():
            from trainer.machine import processes
            from trainer.runs.check import Checks

        checks = Checks()
        with processes.joined():
            for number in left:
                if number not in self.faults and (run := self._planned(number)) is not None:
                    try:
                        checks.check(run.config)
                    except ConfigError as error:
                        self._fault(number, run.config, error)
            processes.agree("runs that can't be", sorted(self.faults))
        self._say_faults()
        if self.faults and not self.skip_invalid:
            raise ConfigError(
                f"{len(self.faults)} of {len(self.runs)} runs can't be carried out, and none was started; "
                "skip_invalid=true leaves them out"
            )
        self.tally["invalid"] = len(self.faults)
        return [number for number in left if number not in self.faults]

    def _say_faults(self) -> None:
        lines = list(titles.lines(self.faults.values()))
        for line in lines[:SHOWN]:
            log.error("invalid: %s", line)
        if len(lines) > SHOWN:
            log.error("invalid: %d more settings", len(lines) - SHOWN)

    def _predict(self, left: Sequence[int]) -> None:
        """Prints what the runs will cost, and carries out none. Raises `ConfigError` where some can't be."""
        if launch.this().rank or not left:
            return
        from trainer.runs import dry_run

        found: dict[str, list[int]] = {}
        for number in left:
            if number not in self.faults and (run := self._planned(number)) is not None:
                found.setdefault(self.titles.setting(number, run.config), []).append(number)
        rows = []
        for setting, numbers in found.items():
            run = self.runs.plan(numbers[0])
            try:
                prediction = dry_run.predict(run)
            except ConfigError as error:
                self.faults |= {number: Fault(setting, None, one_line(error)) for number in numbers}
                continue
            seconds = self.durations.expected([estimate.kind(run.config)] * len(numbers))
            rows.append(dry_run.Row(setting, len(numbers), prediction, seconds))
        print(*dry_run.table(rows), sep="\n")
        self._say_faults()
        if self.faults:
            raise ConfigError(f"{len(self.faults)} of {len(self.runs)} runs can't be carried out")

    def _say_what_is_left(self, left: Sequence[int]) -> None:
        if left:
            log.info("%d of %d runs are left%s", len(left), len(self.runs), self._time_for(left))

    def _time_for(self, left: Sequence[int]) -> str:
        seconds = self.durations.expected(self.kinds[number] for number in left if number in self.kinds)
        if not seconds:
            return ""
        return f", about {estimate.words(seconds / sweep.side_by_side(self.master.hydra.launcher))}"

    def _carry_out(self, batch: Sequence[int], attempt: int = 1) -> None:
        """Hands runs to the launcher and counts what came back; goes on where a worker died."""
        jobs = [[*self.runs.jobs[number], *self._name(number)] for number in batch]
        launcher = self.master.hydra.launcher
        here = launcher._target_.endswith("BasicLauncher")  # then the run listens to signals itself
        begun = time.monotonic()
        try:
            with contextlib.nullcontext() if here else signals.raising():
                returned = self._launcher.launch(jobs, initial_job_idx=batch[0])
        except Exception as error:
            if not any(cls.__name__ in DIED for cls in type(error).__mro__):
                raise
            self._after_death(batch, attempt, error)
            return
        each = (time.monotonic() - begun) / len(batch) * sweep.side_by_side(launcher)
        for number, job in zip(batch, returned, strict=True):
            self._count(job)
            if number in self.kinds and job.status == JobStatus.COMPLETED:
                self.durations.add(self.kinds[number], each)

    def _name(self, number: int) -> list[str]:
        """The override that tells a run what its sweep calls it; Hydra's own, so that it stands in no record."""
        try:
            label = self.titles.label(number, self.runs.config(number))
        except Exception:  # the run says itself what is wrong with it
            return []
        return [f"hydra.job.name={quoted(label)}"]

    def _after_death(self, batch: Sequence[int], attempt: int, error: Exception) -> None:
        """A dead worker takes its batch with it: the others go on from their checkpoints, the culprit is found."""
        self.runs.forget()
        left = [number for number in batch if not self._done(number)]
        self.tally["ran"] += len(batch) - len(left)
        if not left:
            return
        if attempt > 1 and len(batch) == 1:
            self._give_up(batch[0], error)
            return
        log.warning("a worker died (%s); its runs go on from their checkpoints", type(error).__name__)
        for part in [left] if attempt == 1 else [[number] for number in left]:
            self._carry_out(part, attempt + 1)

    def _done(self, number: int) -> bool:
        try:
            return self.runs.plan(number).record is not None
        except ConfigError:
            return False

    def _give_up(self, number: int, error: Exception) -> None:
        """Records that a run's process dies, whenever it is tried."""
        from trainer.runs.run import record_death

        run, overrides = self.runs.plan(number), self.runs.jobs[number]
        line = f"the process that carried out this run died each time: {one_line(error)}"
        with run.alone():
            record_death(run, overrides, line)
        log.error("failed: %s: %s", run.title, line)
        self._failure(line)

    def _count(self, job: JobReturn) -> None:
        result = job._return_value  # the property of this name prints, and raises what the job raised
        if job.status == JobStatus.COMPLETED:
            self.tally[getattr(result, "how", "ran")] += 1
        elif isinstance(result, Held):
            self.tally["held elsewhere"] += 1
        elif isinstance(result, Pruned):
            self.tally["pruned"] += 1
        else:
            self._failure(one_line(result))

    def _failure(self, line: str) -> None:
        self.tally["failed"] += 1
        self.first_error = self.first_error or line

    def _conclude(self) -> None:
        seldom = [name for name in ("pruned", "invalid") if self.tally[name]]
        names = ["ran", "done already", *seldom, "failed", "held elsewhere"]
        counts = ", ".join(f"{self.tally[name]} {name}" for name in names)
        log.info("%d runs: %s", len(self.runs), counts)
        if self.tally["failed"]:
            raise Incomplete(f"{self.tally['failed']} of {len(self.runs)} runs failed, the first: {self.first_error}")
        if self.tally["invalid"]:
            first = next(titles.lines(self.faults.values()))
            raise Incomplete(f"{self.tally['invalid']} of {len(self.runs)} runs were left out, the first: {first}")
        if self.tally["held elsewhere"]:
            raise Incomplete(f"{self.tally['held elsewhere']} of {len(self.runs)} runs are in another process's hands")


def batch_size(launcher: DictConfig) -> int:
    """Runs that a launcher gets at once: one config and one result of each is held, and a batch ends as a whole."""
    if launcher._target_.endswith(("BasicLauncher", ".LocalLauncher")):
        return sweep.side_by_side(launcher)
    return 500  # below the 1,001 jobs that Slurm allows an array by default
