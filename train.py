"""The one entry point.

python train.py variant=lora task=movie                     one run
python train.py -m variant=lora,head task=movie seed=0,1,2  a sweep; finished runs are skipped
python train.py experiment=demo                             a sweep from conf/experiment/
torchrun --nproc-per-node 2 train.py variant=lora task=movie  one run in two processes
python train.py --cfg job                                   the config that would run, and nothing else
python train.py variant=lora --dry-run                      parameters and memory of the run, and nothing else
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
from trainer.errors import Held, Pruned, one_line
from trainer.machine import garbage, launch, signals
from trainer.overrides import readable
from trainer.sweeps.plan import Planned, plan
from trainer.sweeps.sweep import Outcome, refuse_places, refuse_unread, threads

log = logging.getLogger("trainer")

FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")  # Hydra's switch: tracebacks, please

run_config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> Outcome:
    """One run of a sweep, or the only one."""
    if config.machine.threads is None:
        config.machine.threads = threads(HydraConfig.get().launcher)
    try:
        hydra_config: Any = HydraConfig.get()  # a DictConfig, which calls itself by its schema
        refuse_unread(hydra_config, hydra_config.mode == hydra.types.RunMode.MULTIRUN)
        planned = replace(plan(config), label=label())
        if config.machine.dry_run:
            if launch.this().rank == 0:
                from trainer.runs.dry_run import predict

                print(planned.title, *predict(planned).lines(), sep="\n")
            return Outcome(math.nan, "dry run")
        how = "done already"
        if not planned.done or launch.this().count > 1:
            planned, how = carry_out(planned)
    except Held as held:
        log.warning("left alone: %s", held)
        raise
    except Pruned as pruned:
        log.info("%s: %s", planned.title, pruned)
        raise
    except Exception as error:
        if HydraConfig.get().mode != hydra.types.RunMode.MULTIRUN and not FULL_ERROR:
            _exit(error)
        log.error("failed: %s", one_line(error))  # the sweep goes on, and ends with exit code 1
        raise
    log.info("%s: %s", "done" if how == "ran" else how, planned.summary)
    assert planned.record is not None and planned.record.metric.value is not None
    return Outcome(planned.record.metric.value, how)


def label() -> str | None:
    """What the sweep calls this run; see `hydra_plugins.study_sweeper`."""
    hydra_config = HydraConfig.get()
    name = hydra_config.job.name
    return name if hydra_config.mode == hydra.types.RunMode.MULTIRUN and name.startswith("[") else None


def carry_out(planned: Planned) -> tuple[Planned, str]:
    """Carries out a run unless it is done; stops with a checkpoint where a signal asks for it."""
    with garbage.paused():
        from trainer.machine import processes  # here, so that a finished sweep never imports torch
        from trainer.runs.run import check, run

    with processes.joined(planned.config.machine.fsdp), signals.listening():
        processes.agree("run", planned.title)
        parts = check(planned) if processes.any_of(not planned.done) else None
        with planned.alone():
            # Another process may have ended it just now.
            planned = replace(processes.in_turn(lambda: plan(planned.config)), label=planned.label)
            if planned.done:
                return planned, "done already"
            record = run(planned, list(HydraConfig.get().overrides.task), parts)
            return replace(planned, record=record), "ran"


def cli() -> None:
    """Runs `main`; an error is one line, or a traceback where HYDRA_FULL_ERROR is set."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets the error through, and we shape it
    if "--dry-run" in sys.argv:  # Hydra knows no flags but its own
        sys.argv[sys.argv.index("--dry-run")] = "machine.dry_run=true"
    try:
        launch.take()
        refuse_places(sys.argv[1:])
        sys.argv[1:] = readable(sys.argv[1:])
        main()
    except signals.Interrupted as stop:
        print(f"{stop.text}: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if FULL_ERROR:
            raise
        _exit(error)


def _exit(error: Exception) -> NoReturn:
    # Of several processes for one run the first says what is wrong.
    sys.exit(1 if launch.this().rank else f"error: {one_line(error)}")


if __name__ == "__main__":
    cli()
