"""The sweep: plans the runs of a study and gives the unfinished ones to a launcher.

Hydra only loads plugins from packages of this name. Overrides mean the same as for Hydra's own sweeper. The
differences: finished runs never reach the launcher, so that a cluster gets no job without work; at most one batch of
configs and results is in memory; a failed run does not end the sweep; and a batch whose worker died is repeated.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from trainer.data.sources.paths import expanded
from trainer.errors import ConfigError, Locked, Pruned, one_line
from trainer.machine import garbage, launch, lock, signals
from trainer.overrides import quoted
from trainer.sweeps import estimate, found_ranks, sweep, titles
from trainer.sweeps.estimate import Durations
from trainer.sweeps.plan import Planned
from trainer.sweeps.titles import Fault, Titles

log = logging.getLogger("trainer.sweeps.sweep")

SHOWN = 50  # most finished runs, and most faults, that are listed

# Errors of joblib, submitit and ray when the process of a job died.
DIED = ("BrokenProcessPool", "UncompletedJobError", "WorkerCrashedError", "OutOfMemoryError")


class Incomplete(ConfigError):
    """Some runs of the sweep are not done at its end; the message says how many and why."""


class StudySweeper(Sweeper):
    """See the module. batch: number of runs that the launcher gets at once; null for the launcher's default."""

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
        sweep.refuse_ignored(self.master.hydra, multirun=True)
        texts = [f"{key}={value}" for key, value in self.params.items()] + arguments
        self._begin(sweep.product(self.loader, texts))
        left = self._plan()
        if self.dry_run:
            self._predict(left)
            return
        left = self._without_faults(left)
        size = self.batch or batch_size(self.master.hydra.launcher)
        waves = self._waves(left)
        batches = [wave[start : start + size] for wave in waves for start in range(0, len(wave), size)]
        for place, batch in enumerate(batches, 1):
            self._carry_out(batch)
            self._log_remaining([number for later in batches[place:] for number in later])
        self._conclude()

    def _waves(self, left: Sequence[int]) -> list[list[int]]:
        """The runs in an order in which they can be carried out: those that wait for a run come after it."""
        waves, waiting = [], list(left)
        while waiting:
            ids = {self.names[number] for number in waiting if number in self.names}
            ready = [number for number in waiting if self.waits.get(number) not in ids]
            waves.append(ready or waiting)
            waiting = [number for number in waiting if number not in waves[-1]]
        return waves

    def _begin(self, jobs: list[list[str]]) -> None:
        self.runs = sweep.Runs(self.loader, self.master, jobs)
        self.titles = Titles(jobs)
        self.durations = Durations()
        self.faults: dict[int, Fault] = {}
        self.kinds: dict[int, tuple[str, str]] = {}  # variant and task of unfinished runs, to estimate durations
        self.names: dict[int, str] = {}  # identities of unfinished runs
        self.waits: dict[int, str] = {}  # identity of the unfinished run whose ranks a run is given
        self.tally: Counter[str] = Counter()
        self.first_error = ""
        self.dry_run = self.skip_invalid = False

    def _plan(self) -> list[int]:
        """Logs which runs are done. Returns the numbers of the others."""
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
                self._note_order(number, run)
                continue
            if run.record is not None:
                self.durations.take(run.record)
            if len(shown) < SHOWN:
                shown.append(run.summary)
        done = len(self.runs) - len(left)
        self.tally["done already"] = done
        again = " (failed runs are repeated)" if failed else ""
        counts = (len(self.runs), done, failed, len(left) - failed, again, self._time_for(left))
        log.info("%d runs: %d done, %d failed, %d to do%s%s", *counts)
        for line in shown if done <= SHOWN else ():
            log.info("done already: %s", line)
        return left

    def _note_order(self, number: int, run: Planned) -> None:
        self.names[number] = run.identity.run_id
        if (origin := self.runs.origin(number)) is not None and origin.record is None and origin.ranks is None:
            self.waits[number] = origin.run_id

    def _config_to_check(self, number: int, run: Planned) -> DictConfig:
        """The run's config; without the ranks that it waits for. Raises `ConfigError` if no run will find them."""
        if number not in self.waits:
            return run.config
        if self.waits[number] not in self.names.values():
            origin = self.runs.origin(number)
            assert origin is not None
            origin.by_layer()  # raises, because it is not done
        return found_ranks.without(run.config)

    def _planned(self, number: int) -> Planned | None:
        """The run of this number. If its config is refused: None, with the reason in `faults`."""
        config = None
        try:
            config = self.runs.config(number)
            run = self.runs.plan(number)
            return replace(run, label=self.titles.label(number, config))
        except Exception as error:  # errors of Hydra and OmegaConf share no base class
            self._fault(number, config, error)
            return None

    def _fault(self, number: int, config: DictConfig | None, error: Exception) -> None:
        if not isinstance(error, ConfigError | HydraException | OmegaConfBaseException):
            raise error
        seed = None if config is None else config.seed
        self.faults[number] = Fault(self.titles.setting(number, config), seed, one_line(error))

    def _without_faults(self, left: list[int]) -> list[int]:
        """Checks runs and returns those without fault. Raises `ConfigError` for faults unless `skip_invalid` is set."""
        if not left:
            return left  # without importing torch
        with garbage.paused():
            from trainer.machine import processes
            from trainer.runs.check import Checks

        checks = Checks()
        with processes.joined():
            for number in left:
                if number not in self.faults and (run := self._planned(number)) is not None:
                    try:
                        checks.check(self._config_to_check(number, run))
                    except ConfigError as error:
                        self._fault(number, run.config, error)
            processes.agree("runs with faults", sorted(self.faults))
        self._log_faults()
        if self.faults and not self.skip_invalid:
            raise ConfigError(
                f"{len(self.faults)} of {len(self.runs)} runs can't be carried out, and none was started; "
                "skip_invalid=true leaves them out"
            )
        self.tally["invalid"] = len(self.faults)
        return [number for number in left if number not in self.faults]

    def _log_faults(self) -> None:
        lines = list(titles.lines(self.faults.values()))
        for line in lines[:SHOWN]:
            log.error("invalid: %s", line)
        if len(lines) > SHOWN:
            log.error("invalid: %d more settings", len(lines) - SHOWN)

    def _predict(self, left: Sequence[int]) -> None:
        """Prints the predicted costs of the runs and starts none. Raises `ConfigError` if some have a fault."""
        if launch.this().rank or not left:
            return
        from trainer.runs import dry_run
        from trainer.runs.check import Checks

        checks = Checks()
        by_setting: dict[str, list[int]] = {}
        for number in left:
            if number not in self.faults and (run := self._planned(number)) is not None:
                by_setting.setdefault(self.titles.setting(number, run.config), []).append(number)
        rows = []
        for setting, numbers in by_setting.items():
            run = self.runs.plan(numbers[0])
            try:
                if (origin := self.waits.get(numbers[0])) is not None:
                    checks.check(self._config_to_check(numbers[0], run))
                    prediction: Any = f"its ranks are not known before the run {origin}"
                else:
                    prediction = dry_run.predict(run)
            except ConfigError as error:
                self.faults |= {number: Fault(setting, None, one_line(error)) for number in numbers}
                continue
            rows.append(dry_run.Row(setting, len(numbers), prediction, self._seconds(numbers)))
        shown = [number for numbers in by_setting.values() for number in numbers if number not in self.faults]
        print(*dry_run.table(rows, self._seconds(shown)), sep="\n")
        self._log_faults()
        if self.faults:
            raise ConfigError(f"{len(self.faults)} of {len(self.runs)} runs can't be carried out")

    def _log_remaining(self, left: Sequence[int]) -> None:
        if left:
            log.info("%d of %d runs remain%s", len(left), len(self.runs), self._time_for(left))

    def _time_for(self, left: Sequence[int]) -> str:
        seconds = self._seconds(left)
        return f", about {estimate.words(seconds)}" if seconds else ""

    def _seconds(self, left: Sequence[int]) -> float | None:
        """Seconds until these runs are done, as many side by side as the launcher carries out; None if not known."""
        seconds = self.durations.expected(self.kinds[number] for number in left if number in self.kinds)
        return None if seconds is None else seconds / self._at_once(left)

    def _at_once(self, numbers: Sequence[int]) -> int:
        """How many of these runs the launcher carries out at once."""
        return max(1, min(len(numbers), sweep.side_by_side(self.master.hydra.launcher)))

    def _carry_out(self, batch: Sequence[int], attempt: int = 1) -> None:
        """Gives runs to the launcher and counts their results. Runs of a worker that died are repeated."""
        jobs = [[*self.runs.jobs[number], *self._name(number)] for number in batch]
        launcher = self.master.hydra.launcher
        here = launcher._target_.endswith("BasicLauncher")  # then the run handles signals itself
        begun = time.monotonic()
        studies = set() if here else {expanded(c.runs_dir) / c.study for c in map(self.runs.config, batch)}
        try:
            with contextlib.nullcontext() if here else signals.passing_on(lambda: _running(studies)):
                returned = self._launcher.launch(jobs, initial_job_idx=batch[0])
        except Exception as error:
            if not any(cls.__name__ in DIED for cls in type(error).__mro__):
                raise
            self._after_death(batch, attempt, error)
            return
        each = (time.monotonic() - begun) / len(batch) * self._at_once(batch)
        for number, job in zip(batch, returned, strict=True):
            self._count(job)
            if number in self.kinds and job.status == JobStatus.COMPLETED:
                self.durations.add(self.kinds[number], each)

    def _name(self, number: int) -> list[str]:
        """The override that gives a run its title. It is a field of Hydra's, so that no record contains it."""
        try:
            label = self.titles.label(number, self.runs.config(number))
        except Exception:  # the run itself reports the error
            return []
        return [f"hydra.job.name={quoted(label)}"]

    def _after_death(self, batch: Sequence[int], attempt: int, error: Exception) -> None:
        """Repeats the batch of a worker that died: first as a whole, then one by one to find the run that kills it."""
        self.runs.forget()
        left = [number for number in batch if not self._done(number)]
        self.tally["ran"] += len(batch) - len(left)
        if not left:
            return
        if attempt > 1 and len(batch) == 1:
            self._give_up(batch[0], error)
            return
        log.warning("a worker died (%s); its runs resume from their checkpoints", type(error).__name__)
        for part in [left] if attempt == 1 else [[number] for number in left]:
            self._carry_out(part, attempt + 1)

    def _done(self, number: int) -> bool:
        try:
            return self.runs.plan(number).record is not None
        except ConfigError:
            return False

    def _give_up(self, number: int, error: Exception) -> None:
        """Records a run as failed because its process died at every attempt."""
        from trainer.runs.run import record_death

        run, overrides = self.runs.plan(number), self.runs.jobs[number]
        line = f"the process that carried out this run died each time: {one_line(error)}"
        with run.locked():
            record_death(run, overrides, line)
        log.error("failed: %s: %s", run.title, line)
        self._failure(line)

    def _count(self, job: JobReturn) -> None:
        result = job._return_value  # the property `return_value` would raise the job's error
        if job.status == JobStatus.COMPLETED:
            self.tally[getattr(result, "how", "ran")] += 1
        elif isinstance(result, Locked):
            self.tally["locked elsewhere"] += 1
        elif isinstance(result, Pruned):
            self.tally["pruned"] += 1
        else:
            self._failure(one_line(result))

    def _failure(self, line: str) -> None:
        self.tally["failed"] += 1
        self.first_error = self.first_error or line

    def _conclude(self) -> None:
        optional = [name for name in ("pruned", "invalid") if self.tally[name]]
        names = ["ran", "done already", *optional, "failed", "locked elsewhere"]
        counts = ", ".join(f"{self.tally[name]} {name}" for name in names)
        log.info("%d runs: %s", len(self.runs), counts)
        if self.tally["failed"]:
            raise Incomplete(f"{self.tally['failed']} of {len(self.runs)} runs failed, the first: {self.first_error}")
        if self.tally["invalid"]:
            first = next(titles.lines(self.faults.values()))
            raise Incomplete(f"{self.tally['invalid']} of {len(self.runs)} runs were left out, the first: {first}")
        if self.tally["locked elsewhere"]:
            raise Incomplete(f"{self.tally['locked elsewhere']} of {len(self.runs)} runs are locked by another process")


def _running(studies: Collection[Path]) -> list[tuple[Path, int]]:
    """The runs of these studies that other processes of this sweep carry out, with their processes."""
    return [running for study in studies for running in lock.carried_out_by_children(study)]


def batch_size(launcher: DictConfig) -> int:
    """Number of runs that a launcher gets at once. Their configs and results are in memory until the batch ends."""
    if launcher._target_.endswith(("BasicLauncher", ".LocalLauncher")):
        return sweep.side_by_side(launcher)
    return 500  # Slurm's default limit for a job array is 1,001
