"""The entry point.

python train.py variant=lora task=movie                     one run
python train.py -m variant=lora,head task=movie seed=0,1,2  a sweep; finished runs are skipped
python train.py experiment=demo                             a sweep from conf/experiment/
torchrun --nproc-per-node 2 train.py variant=lora task=movie  one run, divided between two processes
python train.py --cfg job                                   prints the config; no run starts
python train.py variant=lora --dry-run                      prints parameters and memory; no run starts
"""

from __future__ import annotations

import logging
import math
import os
import sys
from dataclasses import replace
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from trainer import config as run_config
from trainer import config_files
from trainer.errors import Locked, Pruned, one_line
from trainer.machine import garbage, launch, signals
from trainer.overrides import overrides_first, readable
from trainer.sweeps.plan import Planned, plan
from trainer.sweeps.sweep import Outcome, refuse_hydra_folders, refuse_ignored, threads

log = logging.getLogger("trainer")

FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")  # Hydra's own switch for tracebacks

run_config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> Outcome:
    """Carries out one run, alone or as a job of a sweep."""
    if config.machine.threads is None:
        config.machine.threads = threads(HydraConfig.get().launcher)
    try:
        hydra_config: Any = HydraConfig.get()  # a DictConfig, annotated as its schema
        refuse_ignored(hydra_config, hydra_config.mode == hydra.types.RunMode.MULTIRUN)
        planned = replace(plan(config), label=label())
        if config.machine.dry_run:
            if launch.this().rank == 0:
                from trainer.runs.dry_run import predict

                print(planned.title, *predict(planned).lines(), sep="\n")
            return Outcome(math.nan, "dry run")
        how = "done already"
        if not planned.done or launch.this().count > 1:
            planned, how = carry_out(planned)
    except Locked as locked:
        log.warning("skipped: %s", locked)
        raise
    except Pruned as pruned:
        log.info("%s: %s", planned.title, pruned)
        raise
    except Exception as error:
        if HydraConfig.get().mode != hydra.types.RunMode.MULTIRUN and not FULL_ERROR:
            _exit(error)
        log.error("failed: %s", one_line(error))  # the sweep continues and ends with exit code 1
        raise
    log.info("%s: %s", "done" if how == "ran" else how, planned.summary)
    assert planned.record is not None and planned.record.metric.value is not None
    return Outcome(planned.record.metric.value, how)


def label() -> str | None:
    """The title that `hydra_plugins.study_sweeper` gives to a run of a sweep; None for a single run."""
    hydra_config = HydraConfig.get()
    name = hydra_config.job.name
    return name if hydra_config.mode == hydra.types.RunMode.MULTIRUN and name.startswith("[") else None


def carry_out(planned: Planned) -> tuple[Planned, str]:
    """Carries out a run unless it is done. A signal stops it with a checkpoint, see `trainer.machine.signals`."""
    with garbage.paused():
        from trainer.machine import processes  # here, so that a finished sweep imports no torch
        from trainer.runs.run import check, run

    with processes.joined(planned.config.machine.fsdp), signals.listening():
        processes.agree("run", planned.title)
        context = check(planned) if processes.any_of(not planned.done) else None
        with planned.locked():
            # Another process may have finished the run before the lock was free.
            planned = replace(processes.in_turn(lambda: plan(planned.config)), label=planned.label)
            if planned.done:
                return planned, "done already"
            record = run(planned, list(HydraConfig.get().overrides.task), context)
            return replace(planned, record=record), "ran"


def cli() -> None:
    """Runs `main`. An error is printed as one line, or as a traceback if HYDRA_FULL_ERROR is set."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then passes errors on instead of printing them
    if "--dry-run" in sys.argv:  # Hydra accepts only its own flags
        sys.argv[sys.argv.index("--dry-run")] = "machine.dry_run=true"
    try:
        launch.take()
        refuse_hydra_folders(sys.argv[1:])
        config_files.take(sys.argv[1:])
        sys.argv[1:] = readable(overrides_first(sys.argv[1:]))
        main()
    except signals.Interrupted as stop:
        print(f"{stop.text}: stopped; the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and {"--help", "--cfg"} & set(sys.argv):
            # The reader (`| head`) has what it wants. The interpreter flushes again at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        elif FULL_ERROR:
            raise
        else:
            _exit(error)


def _exit(error: Exception) -> NoReturn:
    # If several processes share the run, only the first prints the error.
    sys.exit(1 if launch.this().rank else f"error: {one_line(error)}")


if __name__ == "__main__":
    cli()
