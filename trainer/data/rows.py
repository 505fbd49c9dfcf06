"""Selects the rows of a run: the task's splits under the protocol and the limits.

A process reads each task once and encodes it once per model; a run holds views of the result.
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

from trainer.data import shares
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
    """The rows of one `split` as a model's inputs: `indices` into columns that all views of the split share.

    examples_of: for each row of the columns, the index of the example it was made from; None if row i is example i.
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
        position = int(self.indices[index])
        row = {name: column[position] for name, column in self.columns.items()}
        return row | {"labels": self.all_labels[position]}

    def view(self, indices: np.ndarray) -> Rows:
        """The rows at `indices` of this view."""
        return Rows(self.columns, self.all_labels, self.indices[indices], self.examples_of, self.split)

    @property
    def lengths(self) -> list[int]:
        """The units of each row: the column `units` if there is one, else its tokens, or 1 for rows of one size."""
        if isinstance(units := self.columns.get("units"), np.ndarray):
            return list(units[self.indices].tolist())
        ids = self.columns.get("input_ids")
        if not isinstance(ids, Ragged):
            return [1] * len(self)
        lengths: list[int] = ids.lengths[self.indices].tolist()
        return lengths

    @property
    def labels(self) -> np.ndarray:
        labels: np.ndarray = self.all_labels[self.indices]
        return labels

    @property
    def sources(self) -> np.ndarray:
        """For each row, the index of the example it was made from."""
        return self.indices if self.examples_of is None else self.examples_of[self.indices]

    @property
    def examples(self) -> list[int]:
        """The indices of the rows' examples, each once, in order of first occurrence."""
        return list(dict.fromkeys(self.sources.tolist()))

    def longest_first(self) -> Rows:
        """The same rows ordered by length, so that evaluation needs little padding."""
        return self.view(np.argsort(-np.asarray(self.lengths), kind="stable"))


class EpochSampler(torch.utils.data.Sampler):
    """Shuffles the rows of an epoch. The order depends on seed and epoch alone, so a resumed run repeats it.

    group: rows of one optimizer step. by_length: whether rows of similar length share a step.
    """

    def __init__(self, rows: Rows, group: int, by_length: bool, seed: int) -> None:
        self.lengths = rows.lengths
        self.group = group
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
class TaskSplits:
    """The rows that one run trains and evaluates on.

    select: the split that selects the checkpoint. report: the splits whose metrics are reported; the first one's
    metric is the run's. ids: of the examples of each reported split. counts: the number of examples of each split,
    "train" and "select" included. truncated: the number of examples truncated at `max_length`, over all splits.
    letters: the number of texts that spell a special token and were split as ordinary text.
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
        """Yields every set of rows that the run reads, with the name of the task's split that it belongs to."""
        yield "train", self.train
        if all(self.select is not rows for rows in self.report.values()):
            yield "train", self.select
        yield from self.report.items()


def load(task: DictConfig) -> TaskData:
    """Returns the task's examples; each process reads them once."""
    return load_source(OmegaConf.to_container(task.source, resolve=True))


def load_source(source: Any) -> TaskData:
    """Returns the examples of a source, given the plain values of `task.source`."""
    return _load(json.dumps(source, sort_keys=True))


@functools.cache
def _load(source: str) -> TaskData:
    return make("task.source", json.loads(source)).load()


@functools.lru_cache(maxsize=8)
def _encoded(objective: Objective, split: str, folder: Path, max_length: int) -> Encoded:
    return objective.encode(split, folder, max_length)


def prepare(objective: Objective, data: DictConfig, seed: int, folder: Path, max_length: int) -> TaskSplits:
    """Applies protocol and limits to the task and encodes its examples for the model in `folder`."""
    content = objective.content
    train = _encoded(objective, "train", folder, max_length).rows
    order = np.random.default_rng(seed).permutation(len(train))
    select_name, select = "", None
    if data.protocol == "split":
        size = max(1, round(len(train) * data.select_share))
        held_out = _held_out(order, size, _texts_in_common(objective))
        select_name, select = "train (held out)", train.view(np.sort(order[held_out]))
        order = order[~held_out]
    if content.shares is None:
        train = train.view(np.sort(order[: data.limit]))
    else:
        tasks = content.splits["train"]["task"]
        train = train.view(shares.drawn(order, tasks, content.shares, data.limit))
        if select is not None:
            held = [tasks[row] for row in select.indices]
            shares.refuse_absent(held, content.shares, select_name, f"data.select_share: {data.select_share}")
        log.info(shares.said(tasks, train.indices, content.shares))
    report = {}
    for name in content.splits:
        if name == "train":
            continue
        rows = _encoded(objective, name, folder, max_length).rows
        if data.eval_limit is not None:
            # The draw is independent of the run's seed: all runs of a comparison are evaluated on the same rows.
            rows = rows.view(np.sort(np.random.default_rng(0).permutation(len(rows))[: data.eval_limit]))
        report[name] = rows
        if content.shares is not None:
            of_rows = content.splits[name]["task"]
            reported = [of_rows[row] for row in rows.indices]
            shares.refuse_absent(reported, content.shares, name, f"data.eval_limit: {data.eval_limit}")
    if select is None:
        select_name, select = next(iter(report.items()))
    objective.check_training(train, data.limit)
    examples = len(np.unique(train.indices))  # of a mixture's small task some are repeated
    counts = {"train": examples, "select": len(select)} | {name: len(rows) for name, rows in report.items()}
    chosen = TaskSplits(train, select_name, select, report, {}, content.labels, counts, 0, 0)
    truncated = letters = 0
    for split, rows in chosen.splits():
        encoded, once = _encoded(objective, split, folder, max_length), np.unique(rows.indices)
        truncated += int(encoded.cut[once].sum())
        letters += int((encoded.letters[once] == 1).sum())
        refuse_letters(content, split, rows, encoded)
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


def general(objective: Objective, limit: int | None, folder: Path, max_length: int) -> Rows:
    """The rows of a task with one split, all of which are evaluated, at most `limit` of them. Raises `ConfigError`."""
    (split,) = objective.content.splits
    encoded = _encoded(objective, split, folder, max_length)
    rows = encoded.rows
    if limit is not None:
        rows = rows.view(np.sort(np.random.default_rng(0).permutation(len(rows))[:limit]))
    refuse_letters(objective.content, split, rows, encoded)
    return objective.for_evaluation(rows, folder, max_length)


def refuse_letters(task: TaskData, split: str, rows: Rows, encoded: Encoded) -> None:
    """Raises `ConfigError` for a text that spells a special token which the tokenizer can't split as ordinary text."""
    for row in rows.indices[encoded.letters[rows.indices] == 2][:1]:
        raise ConfigError(
            f"task: {row_name(task, split, row)} spells a special token, and the model's tokenizer can't read it as "
            "ordinary text; allowed: texts without special tokens"
        )


@functools.lru_cache(maxsize=8)
def _texts_in_common(objective: Objective) -> np.ndarray:
    """Returns the group number of each training row; rows connected by common texts share a group."""
    return groups(objective.texts("train"))


def _held_out(order: np.ndarray, size: int, group: np.ndarray) -> np.ndarray:
    """Returns a mask over `order`: the rows held out of training for selection, at most `size` of them.

    Whole groups are held out, so that no text is on both sides: in the order of their first rows, each group that
    still fits. Without repeated texts these are the first `size` rows. Raises `ConfigError` if no group fits.
    """
    rows = group[order]
    numbers, first, counts = np.unique(rows, return_index=True, return_counts=True)
    chosen = np.zeros(len(counts), dtype=bool)
    room = size
    for number in np.argsort(first):
        if counts[number] <= room:
            chosen[number] = True
            room -= counts[number]
    if not chosen.any():
        raise ConfigError(
            f"data.select_share: {size} of {len(order)} training rows, allowed: at least"
            f" {counts.min()} rows, the smallest group of rows with common texts"
        )
    if (largest := counts.max()) > size:
        log.warning(
            "%d training rows share texts and stay in train, because the selection split has room for only %d rows; it"
            " is drawn from the other rows",
            largest,
            size,
        )
    held_out: np.ndarray = chosen[np.searchsorted(numbers, rows)]
    return held_out
