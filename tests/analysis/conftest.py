"""Run folders made by hand: a small done run, of which a test changes what it is about."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from analysis.commands import cli
from trainer import identity
from trainer import record as records
from trainer.record import Record

MIB = 2**20
METRIC = {
    "metric.name": "accuracy",
    "metric.higher_is_better": True,
    "metric.split": "validation",
    "metric.checkpoint": "best",
    "data.protocol": "dev",
    "steps.total": 100,
    "params.adapter_start": 331_776,
    "params.effective": 331_776,
    "params.head": 770,
    "memory.weights": 90 * MIB,
    "memory.gradients": 2 * MIB,
    "memory.optimizer": 4 * MIB,
    "memory.activations": 50 * MIB,
    "memory.adapter_file": 3 * MIB // 2,
    "memory.peak_rss": 700 * MIB,
    "time.train": 12.5,
    "time.tokens_per_second": 4321.4,
}


class Store:
    """Writes run folders below a temporary folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self,
        variant: str = "lora",
        seed: int = 0,
        value: float | None = 0.8,
        task: str = "movie",
        *,
        under: str = "runs",
        model: str = "minilm",
        config: Mapping[str, Any] | None = None,
        error: str | None = None,
        **changes: Any,
    ) -> Path:
        """One run. `config` adds to its settings, `error` makes it a failed one, `changes` are
        names of the flat record with `__` for the dot; a None takes the name out."""
        settings = {"variant.rank": 8, "optim.lr": 0.001, "task.name": task, "model.name": model}
        settings |= {"seed": seed, "variant.name": variant, **(config or {})}
        settings = {key: entry for key, entry in settings.items() if entry is not None}
        row: dict[str, Any] = {
            "version": records.VERSION,
            "run_id": identity.run_id(settings),
            "study": "demo",
            "variant": variant,
            "task": task,
            "model": model,
            "seed": seed,
            "status": "failed" if error else "done",
            "overrides": [f"variant={variant}", f"seed={seed}"],
            "git.commit": "0123456789abcdef",
            "git.dirty": False,
            **{f"config.{key}": entry for key, entry in settings.items()},
        }
        row |= {"error": error} if error else {**METRIC, "metric.value": value}
        row |= {key.replace("__", "."): entry for key, entry in changes.items()}
        row = {key: entry for key, entry in row.items() if entry is not None}
        record = Record.from_row(row | {records.CHECKSUM: records.checksum(row)})
        folder = self.root / under / record.run_id
        records.write(record, folder)
        return folder

    def raw(self, name: str, text: str | bytes) -> Path:
        """A `record.json` with exactly this in it; returns its path."""
        path = self.root / "runs" / name / records.FILENAME
        path.parent.mkdir(parents=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    # Paths in notes are as the user typed them: tests type relative ones.
    monkeypatch.chdir(tmp_path)
    return Store(Path())


class Table(str):
    """Standard output of the command; as Markdown it can be asked for its parts."""

    @property
    def cells(self) -> list[list[str]]:
        """The cells line by line, header first, without the rule."""
        lines = [line for line in self.splitlines() if line.startswith("| ")]
        split = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines]
        return [line for line in split if not line[0].startswith(":-")]

    @property
    def labels(self) -> list[str]:
        return [line[0] for line in self.cells[1:]]

    @property
    def notes(self) -> list[str]:
        return [line.removeprefix("- ") for line in self.splitlines() if line.startswith("- ")]

    def column(self, header: str) -> list[str]:
        """The cells below the header that starts with `header`."""
        place = next(place for place, name in enumerate(self.cells[0]) if name.startswith(header))
        return [line[place] for line in self.cells[1:]]

    def note(self, start: str) -> str:
        """The one note that starts so, without its start."""
        (note,) = [note for note in self.notes if note.startswith(start)]
        return note.removeprefix(start)


@pytest.fixture
def table(capsys: pytest.CaptureFixture[str]) -> Callable[..., Table]:
    """`python -m analysis table …`, which must succeed; the default argument is `runs`."""

    def call(*arguments: str) -> Table:
        assert cli.main(["table", *(arguments or ("runs",))]) == 0
        return Table(capsys.readouterr().out)

    return call


class Report(str):
    """The text of a page, which can be asked for its parts."""

    def data(self, name: str) -> Any:
        """What scripts read under a name."""
        (text,) = re.findall(f'<script type="application/json" id="data-{name}">(.*?)</script>', self, re.DOTALL)
        return json.loads(text)

    def column(self, name: str) -> list[Any]:
        """All values of a field, run by run, as the scripts decode them."""
        found = self.data("runs")["fields"][name]
        if "pool" in found:
            return [found["pool"][place] for place in found["at"]]
        return found.get("all") or [found["same"]] * self.data("runs")["count"]

    def section(self, name: str) -> str:
        """A part as a reader sees it: no tags, spaces as one."""
        (part,) = re.findall(f'<section id="{name}".*?</section>', self, re.DOTALL)
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", part)).split())

    @property
    def lines(self) -> list[list[str]]:
        """The rows of the headline's table, cell by cell."""
        (table,) = re.findall(r'<table class="results sortable" id="headline">.*?</table>', self, re.DOTALL)
        rows = re.findall(r"<tr data-model.*?</tr>", table, re.DOTALL)
        cells = [re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in rows]
        return [[" ".join(html.unescape(re.sub(r"<[^>]*>", " ", cell)).split()) for cell in row] for row in cells]


@pytest.fixture
def report(capsys) -> Callable[..., Report]:
    """`python -m analysis report …`, which must succeed; without pictures and from `runs` by default."""

    def call(*arguments: str) -> Report:
        assert cli.main(["report", *(arguments or ("runs", "--no-pictures"))]) == 0
        return Report(Path("report.html").read_text(encoding="utf-8"))

    return call
