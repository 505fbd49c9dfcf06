"""`python -m analysis sync`: uploads runs to a dashboard after they have ended.

Without `--to`, it uploads runs that W&B has logged offline, with W&B's own `wandb beta sync`. With `--to`, it uploads
any run that has ended from the run's own files; the dashboard shows the same as for a live run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands import wandb_account
from analysis.commands.command import Verb, add_runs, read_runs
from analysis.errors import AnalysisError
from analysis.records.discovery import Run

if TYPE_CHECKING:
    from trainer.trackers.upload import Destination

OFFLINE, ONLINE = "offline-run-", "run-"  # prefixes of the names of W&B's folders
TRACKERS = ("wandb", "trackio")
PROJECT = "loratory"  # that of conf/tracker/wandb.yaml


def offline_folders(roots: Iterable[Path], online: bool = False) -> list[Path]:
    """W&B's folders of offline runs below `roots`, sorted by their start.

    online: whether to add online runs, whose upload may have been interrupted. Raises `AnalysisError` if a root does
    not exist.
    """
    starts = (OFFLINE, ONLINE) if online else (OFFLINE,)
    folders = set()
    for root in roots:
        if not root.is_dir():
            raise AnalysisError(f"{root}: no such folder")
        for folder, names, files in os.walk(root):
            if Path(folder).name.startswith(starts) and any(name.endswith(".wandb") for name in files):
                folders.add(Path(folder))
                names.clear()
    return sorted(folders, key=lambda folder: (folder.name.partition("run-")[2], str(folder)))


def command(folders: Iterable[Path], arguments: argparse.Namespace) -> list[str]:
    """The command that uploads `folders`."""
    options = [f"--{name}={getattr(arguments, name)}" for name in ("project", "entity") if getattr(arguments, name)]
    online = ["--no-skip-online"] if arguments.online else []
    dry = ["--dry-run"] if arguments.dry_run else ["--yes"]
    return [sys.executable, "-m", "wandb", "beta", "sync", *dry, *online, *options, *map(str, folders)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sync`."""
    add_runs(parser)
    parser.add_argument("--to", choices=TRACKERS, help="upload runs that were not logged there, from their own files")
    parser.add_argument(
        "--project",
        help="default: the one that each run was logged to; with --to wandb: WANDB_PROJECT, else loratory, "
        "with --to trackio: the run's study",
    )
    parser.add_argument("--entity", help="W&B team or user; default: that of each run, or else of the key")
    parser.add_argument(
        "--online", action="store_true", help="also upload online W&B runs whose upload was interrupted"
    )
    parser.add_argument("--dry-run", action="store_true", help="only list what would be uploaded; needs no key")


def run(arguments: argparse.Namespace) -> int:
    """Uploads, or lists. Returns W&B's exit code, or with `--to` 1 if a run can't be uploaded."""
    if arguments.to is not None:
        return _to_tracker(arguments)
    if importlib.util.find_spec("wandb") is None:
        raise AnalysisError("sync: 'wandb' is not installed: pip install 'loratory[wandb]'")
    folders = offline_folders(arguments.runs, arguments.online)
    if not folders:
        raise AnalysisError("no offline W&B run in " + ", ".join(map(str, arguments.runs)))
    if not arguments.dry_run:
        wandb_account.need()
    return subprocess.run(command(folders, arguments)).returncode


def _to_tracker(arguments: argparse.Namespace) -> int:
    """Uploads the runs that the tracker doesn't show yet, from their own files, one line each."""
    from trainer.trackers.upload import CannotUpload, info, upload

    for option in ("online", *(["entity"] if arguments.to == "trackio" else [])):
        if getattr(arguments, option):
            raise AnalysisError(f"--{option}: with --to {arguments.to}, allowed: without it")
    run_set = read_runs(arguments.runs)
    tracker_of = _tracker_of(arguments, run_set.runs)
    if arguments.to == "wandb" and not arguments.dry_run and os.environ.get("WANDB_MODE") != "offline":
        wandb_account.need()
    for reason in run_set.untrusted:
        print(f"{reason}; not uploaded", file=sys.stderr)
    failed = len(run_set.untrusted)
    for run in sorted(run_set.runs, key=lambda run: (run.finished, run.path)):
        try:
            if not run.folder.joinpath("metrics.jsonl").exists():
                raise CannotUpload("no metrics.jsonl")
            described = info(run.folder, run.record)
            if arguments.dry_run:
                print(f"{run.path}: would be uploaded, unless it is there already")
                continue
            result = upload(described, tracker_of(run), arguments.to)
        except CannotUpload as error:
            failed += 1
            print(f"{run.path}: not uploaded: {error}", file=sys.stderr)
            continue
        said = result if isinstance(result, str) else f"uploaded, {result.warning or result.note}"
        print(f"{run.path}: {said}", flush=True)
    return 1 if failed else 0


def _tracker_of(arguments: argparse.Namespace, runs: list[Run]) -> Callable[[Run], Destination]:
    """What makes the tracker of a run. Raises `AnalysisError` where its settings can't work."""
    from trainer.trackers.trackio import Trackio
    from trainer.trackers.wandb import Wandb

    if arguments.to == "wandb":
        project = arguments.project or os.environ.get("WANDB_PROJECT") or PROJECT
        made: dict[str, Destination] = {r.path: Wandb(project=project, entity=arguments.entity) for r in runs}
    else:
        # As conf/tracker/trackio.yaml has it: runs/.trackio for runs/STUDY/RUN_ID.
        stores = {os.environ.get("TRACKIO_DIR") or str(run.folder.resolve().parents[1] / ".trackio") for run in runs}
        if len(stores) > 1:
            raise AnalysisError(f"sync: runs of {len(stores)} folders of studies; set TRACKIO_DIR to where they go")
        (store,) = stores
        made = {run.path: Trackio(project=arguments.project or run.record.study, dir=store) for run in runs}
    for tracker in made.values():
        try:
            tracker.check()
        except ValueError as error:
            raise AnalysisError(f"sync: {error}") from None
    return lambda run: made[run.path]


VERB = Verb(
    name="sync",
    summary="uploads runs to W&B or trackio afterwards",
    description=(
        "Without --to, uploads the runs that W&B has kept offline below the folders. What has been uploaded is left\n"
        "out the next time; the parts of a run that was interrupted become one.\n"
        "With --to, uploads every run that has ended from its own files: curves, ranks, config and record are those\n"
        "that a live run shows. A run that is there already is left alone. trackio's store is that of TRACKIO_DIR,\n"
        "else .trackio in the folder of the studies."
    ),
    example=(
        "python -m analysis sync runs/demo --dry-run\n"
        "python -m analysis sync runs/demo\n"
        "python -m analysis sync runs/demo --to trackio\n"
        "python -m analysis sync runs/demo --to wandb --entity my-team"
    ),
    add_arguments=add_arguments,
    run=run,
)
