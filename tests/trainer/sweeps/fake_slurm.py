"""Slurm's commands, as far as submitit calls them, on this machine: jobs are processes, a requeue starts one again.

A test puts links named sbatch, srun, scontrol and sacct to this file into PATH. What happened is in FAKE_SLURM: the
script that sbatch was given, `requeued` with one line for each requeue, `pids` with the processes that were started.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

JOB = "77"


def sbatch(script: str) -> None:
    place = Path(os.environ["FAKE_SLURM"])
    shutil.copy(script, place / "script.sh")
    found = re.search(r"^#SBATCH --array=0-(\d+)", Path(script).read_text(), re.M)
    for task in range(int(found[1]) + 1 if found else 1):
        name = f"{JOB}_{task}" if found else JOB
        command = [sys.executable, __file__, "job", str(place / "script.sh"), name]
        with (place / "out").open("a") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        with (place / "pids").open("a") as pids:
            pids.write(f"{process.pid}\n")
    print(f"Submitted batch job {JOB}")


def job(script: str, name: str) -> None:
    """Runs the script until it ends without having asked for a requeue."""
    array, _, task = name.partition("_")
    told = {"ID": name.replace("_", "0"), "NTASKS": 1, "NUM_NODES": 1, "NODELIST": "here"}
    environment = {f"SLURM_JOB_{key}": str(value) for key, value in told.items()}
    environment |= {f"SLURM_{key}": "0" for key in ("NODEID", "PROCID", "LOCALID")} | {"SLURM_NTASKS": "1"}
    if task:
        environment |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": task}
    requeued = Path(os.environ["FAKE_SLURM"], "requeued")
    while True:
        before = requeued.read_text().count(name) if requeued.exists() else 0
        subprocess.run(["bash", script], env=os.environ | environment, check=False)
        if not requeued.exists() or requeued.read_text().count(name) == before:
            return


def srun(*arguments: str) -> None:
    command = list(arguments)
    while command[0].startswith("-"):
        takes_value = command[0] in ("--output", "--error")
        del command[: 1 + takes_value]
    os.execvp(command[0], command)


def scontrol(verb: str, name: str) -> None:
    assert verb == "requeue", verb
    with Path(os.environ["FAKE_SLURM"], "requeued").open("a") as file:
        file.write(f"{name}\n")


def sacct(*arguments: str) -> None:
    print("JobID|State|NodeList")
    for task in range(10):
        print(f"{JOB}_{task}|RUNNING|here")


if __name__ == "__main__":
    name, *arguments = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if arguments and arguments[0] == "job":
        name, arguments = "job", arguments[1:]
    globals()[name](*arguments)
