"""The rows of a run: the task's splits, the protocol, the limits.

A task is read once per process and encoded once per model; a run takes a view.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from trainer.data.ragged import Ragged
from trainer.data.sources import TaskData
from trainer.data.sources.split import groups
from trainer.errors import ConfigError
from trainer.instantiate import make
from trainer.model.agreement import row_name

if TYPE_CHECKING:
    from trainer.objectives.objective import Encoded, Objective

log = logging.getLogger(__name__)


Column = Ragged | np.ndarray


class Rows(torch.utils.data.Dataset):
    """Rows of one `split` as a model's inputs: `indices` into columns that all views of the split share.

    examples_of: of each row of the columns the example of the split that it is of; None where row and example are one.
    """

    def __init__(
        self,
        columns: Mapping[str, Column],
        labels: Any,
        indices: np.ndarray,
        examples_of: np.ndarray | None = None,
        split: str = "",
    ) -> None:
        self.columns = columns
        self.all_labels = labels
        self.indices = indices
        self.examples_of = examples_of
        self.split = split

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        at = int(self.indices[index])
        row = {name: column[at] for name, column in self.columns.items()}
        return row | {"labels": self.all_labels[at]}

    def view(self, indices: np.ndarray) -> Rows:
        """These rows, by their place in this view."""
        return Rows(self.columns, self.all_labels, self.indices[indices], self.examples_of, self.split)

    @property
    def lengths(self) -> list[int]:
        """Units of each row: tokens, or one for rows that all have the same size."""
        ids = self.columns.get("input_ids")
        if not isinstance(ids, Ragged):
            return [1] * len(self)
        found: list[int] = ids.lengths[self.indices].tolist()
        return found

    @property
    def labels(self) -> np.ndarray:
        found: np.ndarray = self.all_labels[self.indices]
        return found

    @property
    def sources(self) -> np.ndarray:
        """Of each row the example that it is of."""
        return self.indices if self.examples_of is None else self.examples_of[self.indices]

    @property
    def examples(self) -> list[int]:
        """The examples that the rows are of, each once, in the order in which they come."""
        return list(dict.fromkeys(self.sources.tolist()))

    def longest_first(self) -> Rows:
        """The same rows ordered by length, so that an evaluation pads little."""
        return self.view(np.argsort(-np.asarray(self.lengths), kind="stable"))


class Order(torch.utils.data.Sampler):
    """The order of the rows, a function of seed and epoch alone, so that it can be taken up again."""

    def __init__(self, rows: Rows, group: int, by_length: bool, seed: int) -> None:
        self.lengths = rows.lengths
        self.group = group  # rows of one optimizer step
        self.by_length = by_length
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.by_length:
            from transformers.trainer_pt_utils import get_length_grouped_indices

            return iter(get_length_grouped_indices(self.lengths, self.group, generator=generator))
        return iter(torch.randperm(len(self.lengths), generator=generator).tolist())


@dataclass(frozen=True)
class Prepared:
    """What one run trains and evaluates on.

    select: the split on which the checkpoint is chosen. report: the splits whose numbers are
    reported, the deciding one first. counts: examples of each, "train" and "select" among them. truncated: examples cut
    at `max_length`, over all of them. letters: texts in which the letters of a special token were split like any
    others.
    """

    train: Rows
    select_name: str
    select: Rows
    report: dict[str, Rows]
    ids: dict[str, list[str]]
    labels: tuple[str, ...] | None
    counts: dict[str, int]
    truncated: int
    letters: int

    def splits(self) -> Iterator[tuple[str, Rows]]:
        """The split of the task that rows are of, and the rows, for all that the run reads."""
        yield "train", self.train
        if all(self.select is not rows for rows in self.report.values()):
            yield "train", self.select
        yield from self.report.items()


def load(task: DictConfig) -> TaskData:
    """The task's rows, read once per process."""
    return load_source(OmegaConf.to_container(task.source, resolve=True))


def load_source(source: Any) -> TaskData:
    """The same of the plain values of `task.source`."""
    return _load(json.dumps(source, sort_keys=True))


@functools.cache
def _load(source: str) -> TaskData:
    return make("task.source", json.loads(source)).load()


@functools.lru_cache(maxsize=8)
def _encoded(objective: Objective, split: str, folder: Path, max_length: int) -> Encoded:
    return objective.encode(split, folder, max_length)


def prepare(objective: Objective, data: DictConfig, seed: int, folder: Path, max_length: int) -> Prepared:
    """The run's view of the task: protocol and limits applied, examples as the inputs of the model in `folder`."""
    content = objective.content
    train = _encoded(objective, "train", folder, max_length).rows
    order = np.random.default_rng(seed).permutation(len(train))
    select_name, select = "", None
    if data.protocol == "split":
        size = max(1, round(len(train) * data.select_share))
        held_out = _held_out(order, size, _texts_in_common(objective))
        select_name, select = "train (held out)", train.view(np.sort(order[held_out]))
        order = order[~held_out]
    train = train.view(np.sort(order[: data.limit]))
    report = {}
    for name in content.splits:
        if name == "train":
            continue
        rows = _encoded(objective, name, folder, max_length).rows
        if data.eval_limit is not None:
            # Not the run's seed: every run of a comparison is evaluated on the same rows.
            rows = rows.view(np.sort(np.random.default_rng(0).permutation(len(rows))[: data.eval_limit]))
        report[name] = rows
    if select is None:
        select_name, select = next(iter(report.items()))
    objective.check_training(train, data.limit)
    own = {"train": train, "select": select, **report}
    chosen = Prepared(train, select_name, select, report, {}, content.labels, {k: len(v) for k, v in own.items()}, 0, 0)
    truncated = letters = 0
    for split, rows in chosen.splits():
        found = _encoded(objective, split, folder, max_length)
        truncated += int(found.cut[rows.indices].sum())
        letters += int((found.letters[rows.indices] == 1).sum())
        refuse_letters(content, split, rows, found)
    arranged = {name: objective.for_evaluation(rows, folder, max_length) for name, rows in report.items()}
    return replace(
        chosen,
        train=objective.for_training(train, folder, max_length),
        select=arranged[select_name]
        if select_name in arranged
        else objective.for_evaluation(select, folder, max_length),
        report=arranged,
        ids={name: content.splits[name].select(rows.examples)["id"][:] for name, rows in arranged.items()},
        truncated=truncated,
        letters=letters,
    )


def refuse_letters(task: TaskData, split: str, rows: Rows, found: Encoded) -> None:
    """Raises `ConfigError` for a text with the letters of a special token that can't be read as letters."""
    for row in rows.indices[found.letters[rows.indices] == 2][:1]:
        raise ConfigError(
            f"task: {row_name(task, split, row)} has the letters of a special token, and the model's tokenizer "
            "can't read them as letters; allowed: texts without them"
        )


@functools.lru_cache(maxsize=8)
def _texts_in_common(objective: Objective) -> np.ndarray:
    """Of each row of train the number of its group: rows with a text in common, directly or over others, share one."""
    return groups(objective.texts("train"))


def _held_out(order: np.ndarray, size: int, group: np.ndarray) -> np.ndarray:
    """Which of the rows in `order` are held out of training to select on: `size` at most, and no text on both sides.

    Groups are taken whole, in the order of their first rows, each that still has room. Where no text is there twice
    these are the first `size` rows. Raises `ConfigError` where no group has room.
    """
    rows = group[order]
    numbers, first, counts = np.unique(rows, return_index=True, return_counts=True)
    taken = np.zeros(len(counts), dtype=bool)
    left = size
    for place in np.argsort(first):
        if counts[place] <= left:
            taken[place] = True
            left -= counts[place]
    if not taken.any():
        raise ConfigError(
            f"data.select_share: {size} of {len(order)} training rows, allowed: a share from {counts.min()} rows on,"
            " the fewest that have no text in common with others"
        )
    if (largest := counts.max()) > size:
        log.warning(
            "%d training rows have texts in common and stay in train: the selection split has room for %d; it is"
            " drawn from the others",
            largest,
            size,
        )
    held_out: np.ndarray = taken[np.searchsorted(numbers, rows)]
    return held_out
