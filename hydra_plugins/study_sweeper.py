"""The sweep: what is missing of a study, handed to a launcher, and what came of it.

Hydra takes plugins from packages of this name alone. It is Hydra's own sweeper in what its overrides mean; it differs
in that finished runs never reach the launcher (a cluster gets no job that would find nothing to do), that no config
and no result of more than a batch is held, that a failed run ends no sweep, and that a batch whose worker died is
taken up again.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Sequence

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from trainer.errors import ConfigError, Held, Pruned, one_line
from trainer.machine import signals
from trainer.sweeps import sweep

log = logging.getLogger("trainer.sweeps.sweep")

SHOWN = 50  # runs that are done already are listed up to so many

# What the launchers raise where a process died that carried out a job: joblib, submitit, ray.
DIED = ("BrokenProcessPool", "UncompletedJobError", "WorkerCrashedError", "OutOfMemoryError")


class Incomplete(ConfigError):
    """Runs of the sweep are not done at its end; one line that says how many and why."""


class StudySweeper(Sweeper):
    """See the module. batch: runs that the launcher gets at once; null for what suits the launcher."""

    def __init__(self, params: DictConfig | None = None, batch: int | None = None) -> None:
        self.params = params or {}
        self.batch = batch

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        sweep.refuse_several_processes(type(self).__name__, self.config.hydra.launcher)
        texts = [f"{key}={value}" for key, value in self.params.items()] + arguments
        self._begin(sweep.product(self.loader, texts))
        left = self._plan()
        size = self.batch or batch_size(self.config.hydra.launcher)
        for start in range(0, len(left), size):
            self._carry_out(left[start : start + size])
        self._conclude()

    def _begin(self, jobs: list[list[str]]) -> None:
        self.runs = sweep.Runs(self.loader, self.config, jobs)
        self.tally: Counter[str] = Counter()
        self.first_error = ""

    def _plan(self) -> list[int]:
        """Says what there is to do; the places of the runs that are not done."""
        left, shown, failed = [], [], 0
        for number in range(len(self.runs)):
            try:
                run = self.runs.plan(number)
            except ConfigError:
                left.append(number)  # says why when its turn comes
                continue
            failed += run.failed
            if not run.done:
                left.append(number)
            elif len(shown) < SHOWN:
                shown.append(run.summary)
        done = len(self.runs) - len(left)
        self.tally["done already"] = done
        again = " (failed runs are tried again)" if failed else ""
        counts = (len(self.runs), done, failed, len(left) - failed, again)
        log.info("%d runs: %d done, %d failed, %d to do%s", *counts)
        for line in shown if done <= SHOWN else ():
            log.info("done already: %s", line)
        return left

    def _carry_out(self, batch: Sequence[int], attempt: int = 1) -> None:
        """Hands runs to the launcher and counts what came back; goes on where a worker died."""
        jobs = [self.runs.jobs[number] for number in batch]
        here = self.config.hydra.launcher._target_.endswith("BasicLauncher")  # then the run listens to signals itself
        try:
            with contextlib.nullcontext() if here else signals.raising():
                returned = self.launcher.launch(jobs, initial_job_idx=batch[0])
        except Exception as error:
            if not any(cls.__name__ in DIED for cls in type(error).__mro__):
                raise
            self._after_death(batch, attempt, error)
            return
        for job in returned:
            self._count(job)

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
        seldom = [name for name in ("pruned", "dry run") if name in self.tally]
        names = ["ran", "done already", *seldom, "failed", "held elsewhere"]
        counts = ", ".join(f"{self.tally[name]} {name}" for name in names)
        log.info("%d runs: %s", len(self.runs), counts)
        if self.tally["failed"]:
            raise Incomplete(f"{self.tally['failed']} of {len(self.runs)} runs failed, the first: {self.first_error}")
        if self.tally["held elsewhere"]:
            raise Incomplete(f"{self.tally['held elsewhere']} of {len(self.runs)} runs are in another process's hands")


def batch_size(launcher: DictConfig) -> int:
    """Runs that a launcher gets at once: one config and one result of each is held, and a batch ends as a whole."""
    if launcher._target_.endswith(("BasicLauncher", ".LocalLauncher")):
        return sweep.side_by_side(launcher)
    return 500  # below the 1,001 jobs that Slurm allows an array by default
