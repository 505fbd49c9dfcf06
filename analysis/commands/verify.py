"""`python -m analysis verify`: checks that records, adapters and predictions are as the runs wrote them."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands.command import Verb, add_runs, emit
from analysis.errors import AnalysisError
from analysis.records import discovery
from analysis.records.discovery import Run, Skipped
from analysis.tables.formats.markdown import one_line
from analysis.text.phrases import names, runs
from trainer import record as records
from trainer.hashing import sha256
from trainer.record import CorruptRecord, Record

if TYPE_CHECKING:
    import pyarrow as pa

# By field of `files`, the file in a run's folder. Predictions are hashed when they are read.
_ADAPTER = {"weights": "adapter/state.safetensors", "outline": "adapter/state.json"}


class Findings:
    """wrong: one line for each fault. unchecked: by reason, the folders in which something could not be checked."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.unchecked: dict[str, list[str]] = defaultdict(list)
        self.runs = 0

    def check(self, folder: str) -> None:
        """Checks everything of one run."""
        self.runs += 1
        try:
            record = records.read(folder)
        except CorruptRecord as error:
            self.wrong.append(str(error))
            return
        if record is None:
            self.wrong.append(f"{folder}: {records.FILENAME} vanished while the folders were read")
            return
        if (why := records.misplaced(record.run_id, folder)) is not None:
            self.wrong.append(why)
        run = Run(folder, record)
        self.wrong += [f"{folder}: {reason}" for reason in self._record(run)]
        if run.done:
            self.wrong += [f"{folder}: {reason}" for reason in (*self._adapter(run), *self._metrics(run))]

    def lines(self) -> Iterator[str]:
        """All lines, then a sentence with the numbers."""
        yield from sorted(self.wrong)
        for reason, folders in sorted(self.unchecked.items()):
            which = "all runs" if len(folders) == self.runs > 1 else names(folders, most=3)
            yield f"Not checked, {reason}: {which}"
        what = f"{len(self.wrong)} wrong" if self.wrong else "nothing wrong"
        yield f"{runs(self.runs)} checked, {what}."

    def _record(self, run: Run) -> Iterator[str]:
        """Contradictions within a record. Its checksum was checked when it was read."""
        record, config = run.record, run.record.config
        if record.version == 1:
            self.unchecked["the record as a whole: version 1 has no checksum"].append(run.path)
        elif not record.identity:
            self.unchecked["the run's name: no identity in the record"].append(run.path)
        elif record.identity_hash() != record.run_id:
            yield f"run_id: {record.run_id!r}, its identity has {record.identity_hash()!r}"
        for name, value in record.identity.items() if record.version > 1 else ():
            # identity has a kind instead of a class, and its version is not a setting.
            if name != "identity_version" and not name.endswith("_target_") and config.get(name) != value:
                yield f"identity.{name}: {value!r}, config.{name} is {config.get(name)!r}"
        own = {"seed": record.seed, "variant": record.variant, "task": record.task, "model": record.model}
        for name, value in own.items():
            setting = name if name == "seed" else f"{name}.name"
            if setting in config and config[setting] != value:
                yield f"{name}: {value!r}, config.{setting} is {config[setting]!r}"
        metric = record.metric
        if run.done and record.metrics and record.metrics.get(metric.name or "") != metric.value:
            yield f"metric.value: {metric.value!r}, metrics.{metric.name} is {record.metrics.get(metric.name or '')!r}"

    def _adapter(self, run: Run) -> Iterator[str]:
        for field, place in _ADAPTER.items():
            expected, path = getattr(run.record.files, field), Path(run.path, place)
            if expected is None:
                self.unchecked[f"{place}: no hash in the record"].append(run.path)
            elif not path.exists():
                self.unchecked[f"{place}: not there"].append(run.path)
            else:
                try:
                    if sha256(path) != expected:
                        yield f"{place}: not what the run wrote: its hash is not that of the record"
                except OSError as error:
                    yield f"{place}: can't be read ({error.strerror or error})"

    def _metrics(self, run: Run) -> Iterator[str]:
        from analysis.comparison.predictions import FILENAME, NotUsable, table

        if not Path(run.path, FILENAME).exists():
            self.unchecked[f"metrics: no {FILENAME}"].append(run.path)
            return
        if run.record.files.predictions is None:
            self.unchecked[f"{FILENAME}: no hash in the record"].append(run.path)
        try:
            rows = table(run)
        except NotUsable as error:
            yield str(error).removeprefix(f"{run.path}/")
            return
        for name, value in sorted(_measured(run.record).items()):
            yield from self._metric(run, rows, name, value)

    def _metric(self, run: Run, rows: pa.Table, name: str, recorded: float) -> Iterator[str]:
        """name: as in the record: `f1`, or `validation_mismatched.f1` of another split."""
        from analysis.comparison.predictions import NotUsable, differs, formulas, of_split
        from analysis.stats.metrics import KNOWN

        split, _, metric = name.rpartition(".")
        try:
            known = {*KNOWN, *formulas(rows)}
        except NotUsable as error:
            yield str(error)
            return
        if metric not in known:
            self.unchecked[f"metrics.{name}: no predictions can give it"].append(run.path)
            return
        try:
            computed = of_split(rows, run, split or run.record.metric.split, metric).score(metric)
        except NotUsable as error:
            yield f"metrics.{name}: {str(error).removeprefix(f'{run.path}/')}"
            return
        if differs(computed, recorded):
            yield f"metrics.{name}: {recorded!r}, its predictions give {computed!r}"


def _measured(record: Record) -> dict[str, float]:
    """The metrics of a done run, by name."""
    own = {} if record.metric.value is None else {record.metric.name or "": record.metric.value}
    return own | record.metrics


def run(arguments: argparse.Namespace) -> int:
    """Prints what is wrong and returns 1 if anything is. Raises `AnalysisError` if there is no record."""
    findings, skipped = Findings(), Skipped()
    for folder in discovery.folders(arguments.runs, skipped):
        findings.check(folder)
    findings.wrong += [f"{reason}: can't be looked into" for reason in skipped.untrusted]
    for folder in skipped.begun:
        findings.unchecked["not ended, or killed"].append(folder)
    if not findings.runs:
        raise AnalysisError("no records: " + "; ".join(skipped.empty))
    for reason in skipped.empty:
        folder, _, why = reason.rpartition(": ")
        findings.unchecked[why].append(folder)
    emit("".join(f"{one_line(line)}\n" for line in findings.lines()), None)
    return 1 if findings.wrong else 0


VERB = Verb(
    name="verify",
    summary="checks that records are as their runs wrote them",
    description=(
        "Checks every record below the folders: its checksum, its name (the hash of its settings), fields that must\n"
        "agree, its metrics against predictions.parquet, and the hashes of adapter and predictions.\n"
        "Prints one line for each fault, then what could not be checked and why. Exits 1 if there is a fault."
    ),
    example="python -m analysis verify runs/demo",
    add_arguments=add_runs,
    run=run,
)
