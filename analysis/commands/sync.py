"""`python -m analysis sync`: uploads runs that W&B has kept offline, with W&B's own `wandb beta sync`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from analysis.commands import wandb_account
from analysis.commands.command import Verb, add_runs
from analysis.errors import AnalysisError

OFFLINE, ONLINE = "offline-run-", "run-"  # what the names of W&B's folders begin with


def found(roots: Iterable[Path], online: bool = False) -> list[Path]:
    """W&B's folders of offline runs below `roots`, in the order in which they began.

    online: those of online runs, too, whose upload may have been cut off. Raises `AnalysisError` where a root
    isn't there.
    """
    starts = (OFFLINE, ONLINE) if online else (OFFLINE,)
    folders = set()
    for root in roots:
        if not root.is_dir():
            raise AnalysisError(f"{root}: no such folder")
        for place, names, files in os.walk(root):
            if Path(place).name.startswith(starts) and any(name.endswith(".wandb") for name in files):
                folders.add(Path(place))
                names.clear()
    return sorted(folders, key=lambda folder: (folder.name.partition("run-")[2], str(folder)))


def command(folders: Iterable[Path], arguments: argparse.Namespace) -> list[str]:
    """What is called to upload them."""
    options = [f"--{name}={getattr(arguments, name)}" for name in ("project", "entity") if getattr(arguments, name)]
    online = ["--no-skip-online"] if arguments.online else []
    dry = ["--dry-run"] if arguments.dry_run else ["--yes"]
    return [sys.executable, "-m", "wandb", "beta", "sync", *dry, *online, *options, *map(str, folders)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sync`."""
    add_runs(parser)
    parser.add_argument("--project", help="default: the one that each run was logged to")
    parser.add_argument("--entity", help="team or user; default: each run's, else the key's own")
    parser.add_argument("--online", action="store_true", help="online runs, too, whose upload was cut off")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be uploaded; needs no key")


def run(arguments: argparse.Namespace) -> int:
    """Uploads, or lists. Returns W&B's exit code."""
    if importlib.util.find_spec("wandb") is None:
        raise AnalysisError("sync: 'wandb' is not installed: pip install wandb")
    folders = found(arguments.runs, arguments.online)
    if not folders:
        raise AnalysisError("no offline W&B run in " + ", ".join(map(str, arguments.runs)))
    if not arguments.dry_run:
        wandb_account.need()
    return subprocess.run(command(folders, arguments)).returncode


VERB = Verb(
    name="sync",
    summary="uploads offline W&B runs",
    description=(
        "Uploads the runs that W&B has kept offline below the folders. What has been uploaded is left out the next\n"
        "time; the parts of a run that was interrupted become one."
    ),
    example="python -m analysis sync runs/demo --dry-run\npython -m analysis sync runs/demo",
    add_arguments=add_arguments,
    run=run,
)
