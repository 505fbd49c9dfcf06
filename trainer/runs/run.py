"""Carries out one run from config to record: check, begin, load, train, evaluate, write."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import itertools
import logging
import os
import platform
import subprocess
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from trainer import record
from trainer.data import rows as data
from trainer.errors import ConfigError, Pruned, RunFailed, message
from trainer.hashing import sha256
from trainer.loop import cost, unfinished
from trainer.loop.loop import Loop
from trainer.machine import garbage, processes
from trainer.record import ADAPTER
from trainer.runs import assemble, predictions_file, teaching
from trainer.runs.assemble import RunContext
from trainer.runs.predictions_file import PREDICTIONS
from trainer.runs.retention import Retained
from trainer.sweeps import found_ranks
from trainer.sweeps.plan import Planned, plan
from trainer.trackers import guard
from variants.core import state_files
from variants.core.out_of_memory import is_out_of_memory
from variants.core.target_modules import by_block

log = logging.getLogger(__name__)

PACKAGES = ("loratory", "torch", "transformers", "accelerate", "datasets", "tokenizers", "peft", "numpy", "hydra-core")


def check(planned: Planned) -> RunContext:
    """Makes everything that a run needs except weights. Raises `ConfigError` before anything is written."""
    with assemble.apart(planned.config):
        processes.agree("machine.device", assemble.device(planned.config.machine.device).type)
        with garbage.paused():  # the first check imports transformers
            context = teaching.check(assemble.check(planned.config))
        garbage.freeze_imports()
        return context


def run(planned: Planned, overrides: list[str], context: RunContext | None = None) -> record.Record:
    """Carries out a run and writes its record; an error is recorded and raised again.

    context: the result of `check`, if it was called before.
    """
    context, clock = context or check(planned), _Clock()
    row = _blank(planned, overrides, clock.now())
    try:
        record.refuse_unreadable(row)
    except record.CorruptRecord as error:
        raise ConfigError(f"{error}; the run's record could not be written") from None
    log.info("running: %s", planned.title)
    if processes.is_first():
        _begin(planned)
    tracker = guard.begin(planned) if processes.is_first() else None
    try:
        with assemble.apart(planned.config):
            _carry_out(planned, context, row, clock)
    except Exception as raised:
        failure = processes.cause(raised)
        if processes.is_first():
            _record_failure(planned.folder, row, failure, clock)
        traceback.clear_frames(raised.__traceback__)  # the frames reference the model, and the sweep keeps the error
        if failure is raised:
            raise
        raise failure from raised
    finally:
        if tracker is not None:
            tracker.end()  # after the record is written, which the tracker shows for failed runs too
    return row


def _begin(planned: Planned) -> None:
    """Makes the run's folder with its config and without a record."""
    if planned.replaces is not None:
        _keep_aside(planned.replaces)
    _make_room(planned)
    planned.folder.mkdir(parents=True, exist_ok=True)
    (planned.folder / "traceback.txt").unlink(missing_ok=True)
    config = found_ranks.settled(planned.config, found_ranks.find(planned.config, plan))
    OmegaConf.save(config, planned.folder / record.CONFIG, resolve=True)


def _make_room(planned: Planned) -> None:
    """Removes the record of a failed run; a folder whose record can't be trusted is moved aside."""
    path = planned.folder / record.FILENAME
    if planned.record is not None:
        path.unlink(missing_ok=True)
    elif os.path.lexists(path):
        log.warning("%s: not trusted, moved to %s", path, _keep_aside(planned.folder))


def _keep_aside(folder: Path) -> Path:
    """Moves a run's folder to where tables and plans don't look, and returns its new path."""
    aside = folder.parent / record.REPLACED
    aside.mkdir(exist_ok=True)
    number = next(n for n in itertools.count(1) if not (aside / f"{folder.name}-{n}").exists())
    return folder.rename(aside / f"{folder.name}-{number}")


def _record_failure(folder: Path, row: record.Record, error: Exception, clock: _Clock) -> None:
    status = "pruned" if isinstance(error, Pruned) else "failed"
    failed = record.Record(**{name: getattr(row, name) for name in _IDENTITY}, status=status)
    failed.error, failed.finished = _line(error), clock.now()
    if not isinstance(error, _KNOWN):
        (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    record.write(failed, folder)


def record_death(planned: Planned, overrides: list[str], line: str) -> None:
    """Records a run as failed whose process could not do so itself. line: the known cause."""
    now = _Clock().now()
    row = _blank(planned, overrides, now)
    row.status, row.error, row.finished = "failed", line, now
    _make_room(planned)
    record.write(row, planned.folder)


def _blank(planned: Planned, overrides: list[str], started: str) -> record.Record:
    """Makes the record of a starting run."""
    return record.Record(
        **planned.names,
        started=started,
        overrides=overrides,
        config=planned.identity.settings,
        identity=planned.identity.leaves,
        git=_git(),
        code=planned.code,
        versions=versions(),
        hardware=_hardware(planned.config.machine.threads, planned.config.machine.device),
    )


_KNOWN = (ConfigError, RunFailed, Pruned, processes.Diverged)  # their messages are complete

_IDENTITY = (
    *("run_id", "study", "variant", "task", "model", "seed"),
    *("started", "overrides", "config", "identity", "git", "code", "versions", "hardware"),
)


def _carry_out(planned: Planned, context: RunContext, row: record.Record, clock: _Clock) -> None:
    config, folder = planned.config, planned.folder
    device = assemble.device(config.machine.device)
    cost.reset_peaks(device)
    if truncated := context.rows.truncated:
        example, unit = context.objective.example, context.objective.unit
        log.info("%d %ss are longer than %d %ss and are truncated", truncated, example, context.max_length, unit)
    _log_notes(context)
    if context.rows.letters:
        log.info("%d texts spell a special token, which is read as ordinary text", context.rows.letters)
    retained = Retained(context, device)
    retained.before()
    cost.reset_cuda_peaks(device)  # the evaluation of general texts is no part of training
    model = assemble.load(context)

    # Train.
    row.params.total = cost.parameters(model)
    row.params.adapter_start, row.params.head = cost.trainable_parameters(model, context.head)
    row.params.closed_form = context.variant.closed_form()
    row.rank.start = _total(context.variant.ranks())
    loop = teaching.loop(context, model, folder, device)
    loop.fit()
    _start_after(loop, row)
    row.memory.cuda_train_allocated, row.memory.cuda_train_reserved = cost.cuda_peaks(device)
    row.metric.checkpoint, row.metric.step = config.train.checkpoint, (step := loop.finish())
    row.memory.gradients_end = cost.trainable_bytes(model)
    row.memory.optimizer_end = cost.optimizer_bytes(loop.optimizer)

    # Evaluate.
    _evaluate(loop, context.rows, step, row, folder)
    retained.after(loop.network)
    row.retention = retained.record
    if processes.is_first():
        state_files.save(loop.weights(), folder / ADAPTER)
    _record_costs(loop, context, model, row, folder)
    row.time.retention = retained.seconds or None
    row.memory.peak_rss = cost.peak_rss()
    row.memory.cuda_eval_allocated, row.memory.cuda_eval_reserved = cost.cuda_peaks(device)
    row.memory = _largest(row.memory)

    # Write: the record last, then what only an unfinished run needs goes.
    row.finished = clock.now()
    if processes.is_first():
        names = {"weights": f"{ADAPTER}.safetensors", "outline": f"{ADAPTER}.json", "predictions": PREDICTIONS}
        row.files = record.Files(**{field: sha256(folder / name) for field, name in names.items()})
        record.write(row, folder)
        unfinished.remove(folder)


def _start_after(loop: Loop, row: record.Record) -> None:
    """Writes to `row` the method as it starts and the cost of passes before the first step, if there were any."""
    if (prepared := loop.counters.prepared) is None:
        return
    row.params.total, row.params.adapter_start = prepared["total"], prepared["adapter"]
    row.params.closed_form = prepared["formula"]
    row.rank.start = prepared["rank"]
    row.memory.peak_rss_before, row.memory.cuda_before_allocated = prepared["rss"], prepared["cuda"]


def _log_notes(context: RunContext) -> None:
    """Logs what a reader of the metrics must know about the rows."""
    rows = context.rows
    for is_warning, line in context.objective.notes(
        {"train": rows.train, rows.select_name: rows.select, **rows.report}
    ):
        log.log(logging.WARNING if is_warning else logging.INFO, line)


def _evaluate(loop: Loop, rows: data.TaskSplits, step: int, row: record.Record, folder: Path) -> None:
    """The metrics of the reported splits and of the selection split into the row; predictions into a file."""
    cost.reset_cuda_peaks(loop.device)
    objective, predictions = loop.objective, {}
    for number, (split, split_rows) in enumerate(rows.report.items()):
        evaluation = loop.final_evaluation(split_rows, step)
        predictions[split] = evaluation.predictions
        prefix = "" if number == 0 else f"{split}."
        row.metrics |= {f"{prefix}{name}": value for name, value in evaluation.metrics.items()}
        if number == 0:
            name = objective.asked[0]
            row.metric.name, row.metric.value, row.metric.split = name, evaluation.metrics[name], split
            row.metric.higher_is_better, row.metric.percent = objective.higher_is_better, objective.percent
            row.metric.positive = objective.positive_class if objective.metrics[name].positive else None
    if rows.select_name not in rows.report:
        row.select = dict(loop.final_evaluation(rows.select, step).metrics)
    if processes.is_first():
        predictions_file.write(folder, predictions, rows.ids, objective)


def _record_costs(loop: Loop, context: RunContext, model: torch.nn.Module, row: record.Record, folder: Path) -> None:
    """Writes parameters, ranks, memory, rows, steps and time to `row`."""
    variant, rows = context.variant, context.rows
    counters, config = loop.counters, loop.cfg
    row.params.adapter_end, _ = cost.trainable_parameters(model, loop.head)
    silent = loop.silent()
    idle, never = cost.idle_parameters(model, variant, silent)
    if idle:
        log.warning(
            "%s never had a gradient: it learns nothing and does not count as effective",
            by_block(idle),
        )
    row.params.effective = cost.effective_parameters(model, variant, loop.head, silent)
    if (budget := config.variant.get("budget")) is not None:
        off = 100 * (row.params.effective - budget) / budget
        log.info("budget %s: %s parameters are in use (%+.2f %%)", f"{budget:,}", f"{row.params.effective:,}", off)
    row.method = variant.report()
    if left_out := sum(context.left_out.values()):
        row.method["left_out"] = left_out
    if never:
        row.method["without_gradient"] = never
    ranks = variant.ranks()
    row.rank.layers, row.rank.end = (len(ranks), _total(ranks)) if ranks else (None, None)
    row.memory.weights, row.memory.gradients = counters.weights + counters.teacher, counters.gradients
    row.memory.teacher, taught = counters.teacher or None, counters.taught or None
    row.memory.optimizer, row.memory.activations = counters.optimizer, counters.activations
    processes.wait()  # until the first process has written it
    row.memory.adapter_file = sum(file.stat().st_size for file in (folder / "adapter").iterdir())
    row.data = record.Data(
        protocol=config.data.protocol,
        train=rows.counts["train"],
        select=rows.counts["select"],
        report=rows.counts[next(iter(rows.report))],
        labels=context.objective.outputs,
        truncated=rows.truncated,
        classes=None if rows.labels is None else list(rows.labels),
        positive=context.objective.positive_class,
        unit=None if context.objective.unit == "token" else context.objective.unit,
    )
    done, epochs = loop.done, loop.step_log.epoch(loop.done)
    row.steps = record.Steps(total=loop.steps, done=done, epochs=epochs, skipped=counters.skipped, teacher=taught)
    if counters.prepared is not None:
        row.steps.before = counters.prepared["passes"]
    row.time = record.Time(
        train=counters.train_seconds,
        eval=counters.eval_seconds,
        tokens_per_second=counters.tokens / counters.train_seconds if done else None,
        steps_per_second=done / counters.train_seconds if done else None,
    )
    if counters.prepared is not None:
        row.time.before = counters.prepared["seconds"]


def _largest(memory: record.Memory) -> record.Memory:
    """Returns the maximum of each number over the processes."""
    by_process = [asdict(own) for own in processes.gathered(memory)]
    largest = {
        name: max((own[name] for own in by_process if own[name] is not None), default=None) for name in by_process[0]
    }
    return record.Memory(**largest)


def _total(ranks: dict[str, int]) -> int | None:
    return sum(ranks.values()) if ranks else None


class _Clock:
    """UTC of the machine's clock at the start, advanced by elapsed time, so that it never goes back."""

    def __init__(self) -> None:
        self._start, self._mark = datetime.datetime.now(datetime.UTC), time.monotonic()

    def now(self) -> str:
        elapsed = datetime.timedelta(seconds=time.monotonic() - self._mark)
        return (self._start + elapsed).isoformat(timespec="seconds")


def _line(error: Exception) -> str:
    """Returns an error in one line; it starts with the class's name unless the message is complete."""
    text = message(error)
    text = text if isinstance(error, _KNOWN) else f"{type(error).__name__}: {text}"
    return f"out of memory: {text}" if is_out_of_memory(error) else text


# A new file in these folders counts as a change of the code.
_CODE = (*(f":/{name}/**.py" for name in ("variants", "trainer", "analysis", "weights", "hydra_plugins")), ":/conf")


@functools.cache
def _git() -> dict[str, Any]:
    """Returns the commit, and whether files differ from it or are new in the packages; empty outside a checkout."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", __file__)  # an installed suite may lie in a checkout of other code
        changed = ask("status", "--porcelain", "--untracked-files=no")
        new = ask("ls-files", "--others", "--exclude-standard", *_CODE)
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(changed or new)}
    except (OSError, subprocess.SubprocessError):
        return {}


@functools.cache
def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect a run's results."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _hardware(threads: int | None, device: str) -> dict[str, Any]:
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    hardware: dict[str, Any] = {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "memory": memory[0] if memory else None,
    }
    if torch.cuda.is_available() and device != "cpu":  # that of the run, not whichever comes first
        hardware["gpu"] = torch.cuda.get_device_name(None if device == "auto" else device)
    return hardware


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
