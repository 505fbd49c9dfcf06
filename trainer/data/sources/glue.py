"""The nine tasks of GLUE, from the Hub's `nyu-mll/glue` or a local folder with its layout.

Source: A. Wang, A. Singh, J. Michael, F. Hill, O. Levy, S. Bowman, "GLUE: A Multi-Task
Benchmark and Analysis Platform for Natural Language Understanding", ICLR 2019; the YAML file of
each task names its authors. The test splits have no public labels, so no run reads them;
`weights.glue` reads them for a submission.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.sources.checks import Examples, class_ids, numbers, task_data, texts
from trainer.data.sources.hub import Repository
from trainer.data.sources.paths import expanded
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError
from trainer.hashing import sha256


@dataclass(frozen=True)
class _Task:
    columns: tuple[str, ...]  # of the text or the two texts
    labels: tuple[str, ...] | None  # class names by class id; None for a regression
    sizes: dict[str, int]  # examples by split; the split after train provides the run's metric


_NLI = ("entailment", "neutral", "contradiction")
_RTE = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")
TASKS = {
    "cola": _Task(("sentence",), ("unacceptable", "acceptable"), {"train": 8551, "validation": 1043}),
    "sst2": _Task(("sentence",), ("negative", "positive"), {"train": 67349, "validation": 872}),
    "mrpc": _Task(_SENTENCES, ("not_equivalent", "equivalent"), {"train": 3668, "validation": 408}),
    "qqp": _Task(("question1", "question2"), ("not_duplicate", "duplicate"), {"train": 363846, "validation": 40430}),
    "stsb": _Task(_SENTENCES, None, {"train": 5749, "validation": 1500}),
    "mnli": _Task(
        ("premise", "hypothesis"),
        _NLI,
        {"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832},
    ),
    "qnli": _Task(("question", "sentence"), _RTE, {"train": 104743, "validation": 5463}),
    "rte": _Task(_SENTENCES, _RTE, {"train": 2490, "validation": 277}),
    "wnli": _Task(_SENTENCES, ("not_entailment", "entailment"), {"train": 635, "validation": 71}),
}


@dataclass(frozen=True)
class Glue:
    """One task of GLUE.

    task: its name on the Hub. repo, revision: of the data set on the Hub. path: a local folder with
    `<task>/<split>-*.parquet` that replaces the Hub.
    """

    task: str
    repo: str
    revision: str
    path: str | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f"task.source.task: {self.task!r}; allowed: {', '.join(TASKS)}")

    def load(self) -> TaskData:
        """Returns the splits train and validation. Raises `ConfigError`."""
        folder = self._folder()
        splits = {split: self._examples(folder, split) for split in TASKS[self.task].sizes}
        return task_data(splits, TASKS[self.task].labels, self._where(folder))

    def identity(self) -> dict[str, str]:
        """Returns the hash of each file of a local mirror; nothing for a pinned revision of the Hub."""
        if self.path is None:
            return {} if self._repository.pinned else {"commit": self._folder().name}
        folder = self._folder()
        files = [path for split in TASKS[self.task].sizes for path in shards(folder / self.task, split)]
        return {path.name: sha256(path) for path in files}

    @property
    def _repository(self) -> Repository:
        return Repository(
            self.repo,
            self.revision,
            "dataset",
            "glue.path=<a folder with its layout>, task=movie, task=file with your own texts",
        )

    def _folder(self) -> Path:
        if self.path is None:
            known = f"{self.task}/train-00000-of-00001.parquet"
            return self._repository.snapshot(known, self._wanted, self._problem)
        folder = expanded(self.path)
        if not (folder / self.task).is_dir():
            existing = sorted(path.name for path in folder.glob("*/")) if folder.is_dir() else []
            listing = ", ".join(name for name in existing if name in TASKS) or "none of GLUE's tasks"
            raise ConfigError(f"glue.path: {self.path!r} has no folder {self.task} (found: {listing})")
        problem = self._problem(folder)
        if problem is not None:
            raise ConfigError(f"glue.path: {self.path!r}: {problem}")
        return folder

    def _wanted(self, names: Iterable[str]) -> list[str]:
        """Selects the parquet files of the splits that runs read from all files of the repository."""
        starts = tuple(f"{self.task}/{split}-" for split in TASKS[self.task].sizes)
        return sorted(name for name in names if name.startswith(starts) and name.endswith(".parquet"))

    def _problem(self, folder: Path) -> str | None:
        for split in TASKS[self.task].sizes:
            if not shards(folder / self.task, split):
                return f"{self.task} lacks {split}-*.parquet or some of its shards"
        return None

    def _where(self, folder: Path) -> str:
        return f"glue.path: {self.task} in {self.path!r}" if self.path is not None else f"{self._repository}"

    def _examples(self, folder: Path, split: str) -> Examples:
        task, where = TASKS[self.task], self._where(folder)
        table = read_shards(folder / self.task, split, (*task.columns, "label", "idx"), where)
        if table.num_rows != task.sizes[split]:
            raise ConfigError(f"{where}: {split} has {table.num_rows} examples; allowed: GLUE's {task.sizes[split]}")
        columns = [
            texts(table.column(name).to_pylist(), f"{where}: {split}, column {name}", empty=True)
            for name in task.columns
        ]
        label = table.column("label").to_pylist()
        if task.labels is None:
            label = numbers(label, f"{where}: {split}, column label")
        else:
            label = class_ids(label, len(task.labels), f"{where}: {split}, column label")
        return Examples(
            id=[f"{split}-{number}" for number in table.column("idx").to_pylist()],
            text=columns[0],
            text_pair=columns[1] if len(columns) == 2 else None,
            label=label,
        )


def read_shards(folder: Path, split: str, columns: Sequence[str], where: str) -> Any:
    """Reads columns of a split's files into one `pyarrow.Table`. where: the start of a `ConfigError`."""
    return read_parquet(shards(folder, split), columns, where)


def read_parquet(files: Iterable[Path], columns: Sequence[str], where: str) -> Any:
    """Reads columns of parquet files into one `pyarrow.Table`. where: the start of a `ConfigError`."""
    import pyarrow
    import pyarrow.parquet

    tables = []
    for path in files:
        try:
            table = pyarrow.parquet.ParquetFile(path).read()
        except (pyarrow.ArrowException, OSError) as error:
            raise ConfigError(f"{where}: {path.name} is truncated or not parquet ({error})") from None
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            existing = ", ".join(table.column_names)
            raise ConfigError(f"{where}: {path.name} has no column {missing[0]} (found: {existing})")
        tables.append(table.select(list(columns)))
    return pyarrow.concat_tables(tables, promote_options="default")


def shards(folder: Path, split: str) -> list[Path]:
    """Returns the files `<split>-00000-of-00003.parquet` … of a split in order; none if one is missing."""
    files = sorted(folder.glob(f"{split}-*.parquet"))
    matches = [re.fullmatch(rf"{split}-(\d+)-of-(\d+)\.parquet", path.name) for path in files]
    if any(match is not None and int(match[2]) != len(files) for match in matches):
        return []
    return files
