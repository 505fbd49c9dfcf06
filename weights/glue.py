"""GLUE's test sets, which have no public labels, and the files for its server: one .tsv for each set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.data.sources.checks import Examples


# By test set, named as on the Hub: the name of its file, and the number of rows that the server expects.
SETS = {
    "cola/test": ("CoLA.tsv", 1063),
    "sst2/test": ("SST-2.tsv", 1821),
    "mrpc/test": ("MRPC.tsv", 1725),
    "stsb/test": ("STS-B.tsv", 1379),
    "qqp/test": ("QQP.tsv", 390965),
    "mnli/test_matched": ("MNLI-m.tsv", 9796),
    "mnli/test_mismatched": ("MNLI-mm.tsv", 9847),
    "qnli/test": ("QNLI.tsv", 5463),
    "rte/test": ("RTE.tsv", 3000),
    "wnli/test": ("WNLI.tsv", 146),
    "ax/test": ("AX.tsv", 1104),  # the diagnostic set, for a model that was trained on MNLI
}
NAMED = ("mnli", "qnli", "rte", "ax")  # sets whose files have names of classes; others have their numbers
LOWEST, HIGHEST = 0.0, 5.0  # of STS-B's scores


def test_sets(task: str, folder: Path) -> dict[str, Examples]:
    """The test sets for a run on `task` that lie in `folder`, by their names in `SETS`, in the order of `idx`.

    Their labels are empty. Raises `ConfigError`, also for an `idx` that is not 0, 1, …: it names a row.
    """
    from trainer.data.sources.checks import Examples, texts
    from trainer.data.sources.glue import TASKS, read_shards, shards
    from trainer.errors import ConfigError

    columns, where = TASKS[task].columns, f"--glue: {str(folder)!r}"
    found = {}
    for name in SETS:
        owner, _, split = name.partition("/")
        if owner not in (task, "ax" if task == "mnli" else task) or not shards(folder / owner, split):
            continue
        table = read_shards(folder / owner, split, (*columns, "idx"), f"{where}, {name}").sort_by("idx")
        if table.column("idx").to_pylist() != list(range(table.num_rows)) or not table.num_rows:
            raise ConfigError(f"{where}, {name}, column idx; allowed: each of 0, 1, … once")
        read = [texts(table.column(c).to_pylist(), f"{where}, {name}, column {c}", empty=True) for c in columns]
        pair = read[1] if len(read) == 2 else None
        found[name] = Examples(id=[f"{split}-{row}" for row in range(table.num_rows)], text=read[0], text_pair=pair)
    if not any(name.startswith(f"{task}/") for name in found):
        raise ConfigError(f"{where} has no test set of {task}, or not all its parts; allowed: {task}/test…-*.parquet")
    return found


def rows(name: str, predictions: Iterable[float], labels: Sequence[str] | None) -> tuple[str, int]:
    """The .tsv of a test set, and how many scores were moved onto STS-B's scale.

    predictions: class ids or scores, in the order of `idx`. labels: names of the classes by id.
    """
    values, moved = [], 0
    for value in predictions:
        if labels is None:
            score = min(max(float(value), LOWEST), HIGHEST)
            moved += score != float(value)
            values.append(f"{score:.6f}")
        else:
            values.append(labels[int(value)] if name.partition("/")[0] in NAMED else str(int(value)))
    return "\n".join(["index\tprediction", *(f"{row}\t{value}" for row, value in enumerate(values))]) + "\n", moved
