"""One run, from config to record. The order is: check, begin, load, train, evaluate, write."""

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
from trainer.runs import assemble, predictions_file
from trainer.runs.assemble import Parts
from trainer.runs.predictions_file import PREDICTIONS
from trainer.sweeps import found_ranks
from trainer.sweeps.plan import Planned, plan
from trainer.trackers import guard
from variants.core import state_files
from variants.core.out_of_memory import is_out_of_memory
from variants.core.target_modules import by_block

log = logging.getLogger(__name__)

PACKAGES = ("loratory", "torch", "transformers", "accelerate", "datasets", "tokenizers", "peft", "numpy", "hydra-core")


def check(planned: Planned) -> Parts:
    """What a run needs but weights. Raises `ConfigError` where it can't be; nothing of it is on disk then."""
    with assemble.apart(planned.config):
        processes.agree("machine.device", assemble.device(planned.config.machine.device).type)
        with garbage.paused():  # the first check imports transformers
            parts = assemble.check(planned.config)
        garbage.freeze_imports()
        return parts


def run(planned: Planned, overrides: list[str], parts: Parts | None = None) -> record.Record:
    """Carries out a run and writes its record; whatever goes wrong is recorded, then raised.

    parts: what `check` gave, where it was asked already.
    """
    parts, clock = parts or check(planned), _Clock()
    row = _blank(planned, overrides, clock.now())
    try:
        record.refuse_unreadable(row)
    except record.CorruptRecord as error:
        raise ConfigError(f"{error}; no record could be written of the run") from None
    log.info("running: %s", planned.title)
    if processes.is_first():
        _begin(planned)
    tracker = guard.begin(planned) if processes.is_first() else None
    try:
        with assemble.apart(planned.config):
            _carry_out(planned, parts, row, clock)
    except Exception as raised:
        failure = processes.cause(raised)
        if processes.is_first():
            _record_failure(planned.folder, row, failure, clock)
        traceback.clear_frames(raised.__traceback__)  # they hold the model, and the sweep holds the error
        if failure is raised:
            raise
        raise failure from raised
    finally:
        if tracker is not None:
            tracker.end()  # the record is there: the tracker shows it, whatever became of the run
    return row


def _begin(planned: Planned) -> None:
    """The run's folder, with its config and nothing of a record."""
    if planned.replaces is not None:
        _keep_aside(planned.replaces)
    _make_room(planned)
    planned.folder.mkdir(parents=True, exist_ok=True)
    (planned.folder / "traceback.txt").unlink(missing_ok=True)
    config = found_ranks.settled(planned.config, found_ranks.find(planned.config, plan))
    OmegaConf.save(config, planned.folder / record.CONFIG, resolve=True)


def _make_room(planned: Planned) -> None:
    """Takes the last record of a run that ended badly away; one that can't be trusted is kept, with all beside it."""
    path = planned.folder / record.FILENAME
    if planned.record is not None:
        path.unlink(missing_ok=True)
    elif os.path.lexists(path):
        log.warning("%s: not trusted, and kept in %s", path, _keep_aside(planned.folder))


def _keep_aside(folder: Path) -> Path:
    """Moves the folder of a finished run to where no table and no plan looks; its place there."""
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
    """Records as failed a run whose process could not do it itself; `line` says what is known."""
    now = _Clock().now()
    row = _blank(planned, overrides, now)
    row.status, row.error, row.finished = "failed", line, now
    _make_room(planned)
    record.write(row, planned.folder)


def _blank(planned: Planned, overrides: list[str], started: str) -> record.Record:
    """The record of a run that starts."""
    return record.Record(
        **planned.names,
        started=started,
        overrides=overrides,
        config=planned.identity.settings,
        identity=planned.identity.leaves,
        git=_git(),
        code={} if planned.code is None else {"variant": planned.code},
        versions=versions(),
        hardware=_hardware(planned.config.machine.threads),
    )


_KNOWN = (ConfigError, RunFailed, Pruned, processes.Diverged)  # their text says all

_IDENTITY = (
    *("run_id", "study", "variant", "task", "model", "seed"),
    *("started", "overrides", "config", "identity", "git", "code", "versions", "hardware"),
)


def _carry_out(planned: Planned, parts: Parts, row: record.Record, clock: _Clock) -> None:
    config, folder = planned.config, planned.folder
    device = assemble.device(config.machine.device)
    cost.reset_peaks(device)
    if parts.rows.truncated:
        what = parts.objective
        log.info(
            "%d %ss are longer than %d %ss and are cut", parts.rows.truncated, what.example, parts.max_length, what.unit
        )
    _say_of_rows(parts)
    if parts.rows.letters:
        log.info("%d texts have the letters of a special token, which are read as letters", parts.rows.letters)
    model = assemble.load(parts)

    # Train.
    row.params.total = sum(p.numel() for p in model.parameters())
    row.params.adapter_start, row.params.head = cost.trainable_parameters(model, parts.head)
    row.params.closed_form = parts.variant.closed_form()
    row.rank.start = _total(parts.variant.ranks())
    loop = assemble.loop(parts, model, folder, device)
    loop.fit()
    row.memory.cuda_train_allocated, row.memory.cuda_train_reserved = cost.cuda_peaks(device)
    row.metric.checkpoint, row.metric.step = config.train.checkpoint, (step := loop.hand_over())
    row.memory.gradients_end = cost.trainable_bytes(model)
    row.memory.optimizer_end = cost.optimizer_bytes(loop.optimizer)

    # Evaluate.
    _evaluate(loop, parts.rows, step, row, folder)
    if processes.is_first():
        state_files.save(loop.weights(), folder / ADAPTER)
    _count(loop, parts, model, row, folder)
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


def _say_of_rows(parts: Parts) -> None:
    """What a reader of the metrics must know of the rows, and would not see in a number."""
    rows = parts.rows
    for warns, line in parts.objective.notes({"train": rows.train, rows.select_name: rows.select, **rows.report}):
        log.log(logging.WARNING if warns else logging.INFO, line)


def _evaluate(loop: Loop, rows: data.Prepared, step: int, row: record.Record, folder: Path) -> None:
    """The reported splits: metrics into the row, every example's prediction into a file."""
    cost.reset_cuda_peaks(loop.device)
    objective, found = loop.objective, {}
    for place, (split, part) in enumerate(rows.report.items()):
        evaluation = loop.final_evaluation(part, step)
        found[split] = evaluation.predictions
        prefix = "" if place == 0 else f"{split}."
        row.metrics |= {f"{prefix}{name}": value for name, value in evaluation.metrics.items()}
        if place == 0:
            name = objective.asked[0]
            row.metric.name, row.metric.value, row.metric.split = name, evaluation.metrics[name], split
            row.metric.higher_is_better, row.metric.percent = objective.higher_is_better, objective.percent
            row.metric.positive = objective.positive_class if objective.metrics[name].positive else None
    if processes.is_first():
        predictions_file.write(folder, found, rows.ids, objective)


def _count(loop: Loop, parts: Parts, model: torch.nn.Module, row: record.Record, folder: Path) -> None:
    variant, rows = parts.variant, parts.rows
    counters, config = loop.counters, loop.cfg
    row.params.adapter_end, _ = cost.trainable_parameters(model, loop.head)
    silent = loop.silent()
    idle, never = cost.idle_parameters(model, variant, silent)
    if idle:
        log.warning(
            "no gradient ever came to %s: it has no part in what is learned, and does not count as effective",
            by_block(idle),
        )
    row.params.effective = cost.effective_parameters(model, variant, loop.head, silent)
    if (budget := config.variant.get("budget")) is not None:
        off = 100 * (row.params.effective - budget) / budget
        log.info("budget %s: %s parameters are in use (%+.2f %%)", f"{budget:,}", f"{row.params.effective:,}", off)
    row.method = variant.report()
    if left_out := sum(parts.left_out.values()):
        row.method["left_out"] = left_out
    if never:
        row.method["without_gradient"] = never
    ranks = variant.ranks()
    row.rank.layers, row.rank.end = (len(ranks), _total(ranks)) if ranks else (None, None)
    row.memory.weights, row.memory.gradients = counters.weights, counters.gradients
    row.memory.optimizer, row.memory.activations = counters.optimizer, counters.activations
    processes.wait()  # until the first has written it
    row.memory.adapter_file = sum(file.stat().st_size for file in (folder / "adapter").iterdir())
    row.data = record.Data(
        protocol=config.data.protocol,
        train=rows.counts["train"],
        select=rows.counts["select"],
        report=rows.counts[next(iter(rows.report))],
        labels=parts.objective.outputs,
        truncated=rows.truncated,
        classes=None if rows.labels is None else list(rows.labels),
        positive=parts.objective.positive_class,
        unit=None if parts.objective.unit == "token" else parts.objective.unit,
    )
    done, epochs = loop.done, loop.step_log.epoch(loop.done)
    row.steps = record.Steps(total=loop.steps, done=done, epochs=epochs, skipped=counters.skipped)
    row.time = record.Time(
        train=counters.train_seconds,
        eval=counters.eval_seconds,
        tokens_per_second=counters.tokens / counters.train_seconds,
        steps_per_second=done / counters.train_seconds,
    )


def _largest(memory: record.Memory) -> record.Memory:
    """Of every number, that of the process that needs most."""
    everyone = [asdict(found) for found in processes.gathered(memory)]
    most = {
        name: max((found[name] for found in everyone if found[name] is not None), default=None) for name in everyone[0]
    }
    return record.Memory(**most)


def _total(ranks: dict[str, int]) -> int | None:
    return sum(ranks.values()) if ranks else None


class _Clock:
    """UTC as the machine's clock said it at the start, and moved on with the time that passed: it never goes back."""

    def __init__(self) -> None:
        self._start, self._mark = datetime.datetime.now(datetime.UTC), time.monotonic()

    def now(self) -> str:
        passed = datetime.timedelta(seconds=time.monotonic() - self._mark)
        return (self._start + passed).isoformat(timespec="seconds")


def _line(error: Exception) -> str:
    """An error as one line; a name in front where the message alone would not say what happened."""
    text = message(error)
    text = text if isinstance(error, _KNOWN) else f"{type(error).__name__}: {text}"
    return f"out of memory: {text}" if is_out_of_memory(error) else text


# What a new file in counts as a change of the code.
_CODE = (*(f":/{name}/**.py" for name in ("variants", "trainer", "analysis", "weights", "hydra_plugins")), ":/conf")


@functools.cache
def _git() -> dict[str, Any]:
    """Commit of this code, and whether files differ from it or are new in its packages; empty outside a checkout."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        changed = ask("status", "--porcelain", "--untracked-files=no")
        new = ask("ls-files", "--others", "--exclude-standard", *_CODE)
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(changed or new)}
    except (OSError, subprocess.SubprocessError):
        return {}


@functools.cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what a run computes."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _hardware(threads: int | None) -> dict[str, Any]:
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    found: dict[str, Any] = {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "memory": memory[0] if memory else None,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
