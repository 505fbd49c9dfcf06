"""Run folders with predictions: runs whose metric is what their predictions give."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.commands import cli
from trainer.objectives import metrics


class Study:
    """Adds runs to a store, each with a predictions.parquet."""

    def __init__(self, store: Any) -> None:
        self.add_record = store.add

    def scored(
        self,
        variant: str,
        seed: int,
        labels: Sequence[float],
        predictions: Sequence[float],
        task: str = "movie",
        *,
        metric: str = "accuracy",
        ids: Sequence[str] | None = None,
        value: float | None = None,
        **changes: Any,
    ) -> Path:
        """One run that predicted this; its value is the metric of it unless told otherwise."""
        of_classes = metric not in ("pearson", "spearman", "rmse")
        changes.setdefault("data__labels", 2 if of_classes else 1)
        if value is None:
            value = metrics.compute(
                [metric], predictions, labels, metrics.Classes(2) if of_classes else metrics.NUMBERS
            )[metric]
        folder: Path = self.add_record(variant, seed, value, task, metric__name=metric, **changes)
        ids = [f"{task}-{number}" for number in range(len(labels))] if ids is None else list(ids)
        outputs = [np.zeros(2, dtype=np.float32)] * len(labels)
        columns = {"id": ids, "label": labels, "prediction": predictions, "outputs": outputs}
        pd.DataFrame({"split": "validation", **columns}).to_parquet(folder / "predictions.parquet", index=False)
        return folder

    def right(self, variant: str, seed: int, right: int, task: str = "movie", *, of: int = 200, **changes: Any) -> Path:
        """One run that gets so many of 0/1 examples right: which ones, seed and variant decide."""
        labels = np.arange(of) % 2
        hit = np.random.default_rng([seed, *variant.encode()]).permutation(of) < right
        return self.scored(variant, seed, labels, np.where(hit, labels, 1 - labels), task, **changes)


@pytest.fixture
def study(store: Any) -> Study:
    return Study(store)


class Comparison(str):
    """Standard output of the command as Markdown."""

    @property
    def bullets(self) -> list[str]:
        return [line.removeprefix("- ") for line in self.splitlines() if line.startswith("- ")]

    def bullet(self, start: str) -> str:
        """The one bullet that starts so, whole."""
        (line,) = [line for line in self.bullets if line.startswith(start)]
        return line

    def has(self, start: str) -> bool:
        return any(line.startswith(start) for line in self.bullets)

    def table(self, title: str) -> list[dict[str, str]]:
        """The table below `title`, line by line."""
        lines = self.partition(f"{title}:\n\n")[2].partition("\n\n")[0].splitlines()
        head, _, *body = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines]
        return [dict(zip(head, line, strict=True)) for line in body]


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Callable[..., Comparison]:
    """`python -m analysis compare … runs` with few resamples; it must succeed."""

    def call(*names: str, resamples: int = 200, **options: str) -> Comparison:
        typed = [word for name, value in options.items() for word in (f"--{name}", value)]
        assert cli.main(["compare", *names, "runs", "--resamples", str(resamples), *typed]) == 0
        return Comparison(capsys.readouterr().out)

    return call


@pytest.fixture
def lines(compare: Callable[..., str]) -> Callable[..., list[dict[str, str]]]:
    """The lines of the csv."""

    def call(*names: str) -> list[dict[str, str]]:
        return list(csv.DictReader(compare(*names, format="csv").splitlines()))

    return call


@pytest.fixture
def data(compare: Callable[..., str]) -> Callable[..., Any]:
    """What the json says."""

    def call(*names: str) -> Any:
        return json.loads(compare(*names, format="json"))

    return call
