"""How users rate items: matrix factorisation and two-tower models, whose embeddings of users and items are adapted.

Trained are single ratings, on their squared error. An example of an evaluation is a user with all its ratings of a
split, so that a resample of examples is one of users. Its errors are of these ratings. Its ranking is of all items of
the model, without those that train has for the user: no sample of items, of which ranking metrics are inconsistent
(Krichene and Rendle, "On Sampled Metrics for Item Recommendation", KDD 2020). Relevant are its items of the split.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from trainer.data.ragged import Ragged
from trainer.data.rows import Rows
from trainer.data.sources import two_tower as vocabularies
from trainer.errors import ConfigError
from trainer.model import agreement, two_tower
from trainer.objectives import metrics
from trainer.objectives.metrics import METRICS, Metric
from trainer.objectives.objective import Encoded, NotFinite, Objective, Predictions
from variants.core.step import Loss

if TYPE_CHECKING:
    from trainer.data.rows import Column
    from trainer.loop.batches import Batch
    from trainer.loop.network import Network

TOP = 10  # items of a ranking
ENTRIES = 2**22  # of vectors that a ranking makes at a time
OF_RANKINGS = ("ndcg_10", "recall_10")


@dataclass(frozen=True)
class Vocabulary:
    """The names of a model's users and items, by number."""

    users: Mapping[str, int]
    items: Mapping[str, int]

    model_input_names: ClassVar[list[str]] = ["user_ids", "item_ids"]

    def save_pretrained(self, folder: Path) -> None:
        vocabularies.write(folder, list(self.users), list(self.items))


@functools.cache
def _vocabulary(folder: Path) -> Vocabulary:
    users, items = vocabularies.read(folder)
    return Vocabulary(*({name: number for number, name in enumerate(names)} for names in (users, items)))


@dataclass(eq=False)
class Rating(Objective):
    """Rows have `user`, `item` and `rating`, a number.

    relevant: the lowest rating with which an item is relevant for a ranking; None means that each is.
    """

    relevant: float | None = None

    kind: ClassVar[str] = "rating"
    unit: ClassVar[str] = "rating"
    example: ClassVar[str] = "user"
    tokens: ClassVar[bool] = False
    auto_class: ClassVar[str] = "AutoModel"
    peft_task: ClassVar[str | None] = None
    metrics: ClassVar[Mapping[str, Metric]] = {
        "rmse": Metric("sqrt(squared_error / ratings)", higher_is_better=False, percent=False),
        **{name: METRICS[name] for name in ("mae", *OF_RANKINGS)},
    }
    smooth: ClassVar[tuple[str, ...]] = ("squared_error",)

    # -- before a run ---------------------------------------------------------------------------

    @property
    def title(self) -> str:
        return "task of ratings"

    @property
    def ranks(self) -> bool:
        """Whether a metric is of rankings."""
        return not set(self.asked).isdisjoint(OF_RANKINGS)

    def check(self) -> None:
        there = self.content.column_names
        if not {"user", "item", "rating"} <= set(there):
            columns = ", ".join(name for name in there if name != "id")
            raise ConfigError(f"task: columns {columns} for a {self.title}; allowed: user, item, rating")
        metrics.check(self.asked, self.metrics, self.title)
        if self.relevant is not None and not self.ranks:
            raise ConfigError(f"task.relevant: {self.relevant} without {' or '.join(OF_RANKINGS)}; allowed: null")
        for split, table in self.content.splits.items():
            values = np.asarray(table["rating"][:], np.float64)
            if len(wrong := np.flatnonzero(~np.isfinite(values))):
                name = agreement.row_name(self.content, split, int(wrong[0]))
                raise ConfigError(f"task: {name} has the rating {values[wrong[0]]}; allowed: a finite number")
            if self.relevant is not None and split != "train" and values.max() < self.relevant:
                raise ConfigError(
                    f"task.relevant: {self.relevant}, allowed: up to {values.max():g}, the highest rating of {split}"
                )

    def processor(self, folder: Path) -> Any:
        return _vocabulary(folder)

    @staticmethod
    def head(model: Any) -> tuple[str, ...]:
        """None: biases and vectors are the model's own."""
        return ()

    def check_model(self, model: Any, processor: Any) -> None:
        taken = inspect.signature(model.forward).parameters
        if not {*processor.model_input_names} <= set(taken):
            raise ConfigError(f"model: {model.config.model_type}, allowed: a model of user_ids and item_ids")
        for what, names in (("users", processor.users), ("items", processor.items)):
            if (size := getattr(model.config, what, None)) != len(names):
                raise ConfigError(
                    f"model: its {vocabularies.VOCABULARY} names {len(names)} {what}, and its config.json has {size}; "
                    "allowed: as many"
                )

    # -- rows -----------------------------------------------------------------------------------

    def texts(self, split: str) -> list[Sequence[str]]:
        table = self.content.splits[split]
        return [[json.dumps(pair) for pair in zip(table["user"][:], table["item"][:], strict=True)]]

    def encode(self, split: str, folder: Path, max_length: int) -> Encoded:
        users, items = self._numbers(split, folder)
        ones = np.arange(1, len(users) + 1)
        ratings = np.asarray(self.content.splits[split]["rating"][:], np.float64)
        rows = Rows({"user": users, "items": Ragged(items, ones)}, Ragged(ratings, ones), ones - 1, split=split)
        return Encoded(rows, np.zeros(len(users), dtype=bool), np.zeros(len(users), dtype=np.int8))

    def _numbers(self, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Returns the model's number of each row's user and item. Raises `ConfigError` for one without."""
        table, known = self.content.splits[split], _vocabulary(folder)
        found = []
        for what, names in (("user", known.users), ("item", known.items)):
            numbers = [names.get(name, -1) for name in table[what][:]]
            if -1 in numbers:
                row = numbers.index(-1)
                raise ConfigError(
                    f"task: row {row + 1} of {split}: the {what} {table[what][row]!r} is none of the model's "
                    f"{len(names)} {what}s; allowed: one that the model has a vector for"
                )
            found.append(np.asarray(numbers, np.int64))
        return found[0], found[1]

    def for_evaluation(self, rows: Rows, folder: Path, max_length: int) -> Rows:
        """Makes a row of each user's ratings, with the items that train has for the user, those rated here excepted."""
        users, items = self._numbers(rows.split, folder)
        trained: dict[int, list[int]] = {}
        for user, item in zip(*self._numbers("train", folder), strict=True):
            trained.setdefault(int(user), []).append(int(item))
        groups: dict[int, list[int]] = {}
        for row in rows.indices.tolist():
            groups.setdefault(int(users[row]), []).append(row)
        own = [items[group].tolist() for group in groups.values()]
        seen = [sorted(set(trained.get(user, ())) - set(rated)) for user, rated in zip(groups, own, strict=True)]
        ratings = self.content.splits[rows.split]["rating"]
        columns: dict[str, Column] = {
            "user": np.fromiter(groups, np.int64),
            "items": _ragged(own, np.int64),
            "seen": _ragged(seen, np.int64),
            "units": np.array([len(group) for group in own]),
        }
        labels = _ragged([[ratings[row] for row in group] for group in groups.values()], np.float64)
        first = np.array([group[0] for group in groups.values()])
        return Rows(columns, labels, np.arange(len(own)), first, rows.split).longest_first()

    def pad(self, folder: Path) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """Behind a user's items stands item 0, whose rating is nan; behind the seen ones, −1."""

        def padded(rows: list[dict[str, Any]]) -> Mapping[str, torch.Tensor]:
            found = {
                "user_ids": torch.tensor([int(row["user"]) for row in rows]),
                "item_ids": _padded([row["items"] for row in rows], 0),
                "labels": _padded([row["labels"] for row in rows], torch.nan),
            }
            return found | ({"seen": _padded([row["seen"] for row in rows], -1)} if "seen" in rows[0] else {})

        return padded

    def weigh(self, labels: torch.Tensor, rows: Sequence[int]) -> int:
        """Ratings; those of a row of weight 0 are taken out."""
        labels[torch.tensor(rows) == 0] = torch.nan
        return int((~labels.isnan()).sum())

    # -- steps and evaluation -------------------------------------------------------------------

    def size(self, batch: Batch) -> int:
        return batch.inputs["item_ids"].numel()

    def units(self, batch: Batch) -> torch.Tensor:
        return (~batch.labels.isnan()).sum()

    def loss(self, model: Network, batch: Batch) -> Loss:
        """Squared error, summed over the ratings."""
        errors = self._ratings(model, **self._inputs(batch)) - batch.labels.nan_to_num(0.0)
        return Loss(torch.where(batch.labels.isnan(), 0.0, errors**2).sum(), batch.weight)

    def predict(self, model: Network, batch: Batch) -> list[Any]:
        """Returns for each user its predicted ratings, and what `_ranked` says."""
        found = self._ratings(model, **self._inputs(batch)).double().cpu().numpy()
        labels = batch.labels.double().cpu().numpy()
        rankings = self._rankings(model, batch) if self.ranks else [{}] * len(labels)
        counts = (~np.isnan(labels)).sum(1)
        return [(row[:count], ranking) for row, count, ranking in zip(found, counts, rankings, strict=True)]

    def _rankings(self, model: Network, batch: Batch) -> list[dict[str, float]]:
        users, config = batch.inputs["user_ids"], model.model.config
        step = max(1, ENTRIES // (len(users) * config.factors))
        every = torch.arange(config.items, device=users.device)
        parts = [
            self._ratings(model, user_ids=users, item_ids=part.expand(len(users), -1)) for part in every.split(step)
        ]
        scores = torch.cat(parts, dim=1).double().cpu().numpy()
        rows = zip(
            scores,
            *(batch.inputs[name].cpu().numpy() for name in ("item_ids", "seen")),
            batch.labels.cpu().numpy(),
            strict=True,
        )
        return [self._ranked(*row) for row in rows]

    def _ranked(self, scores: np.ndarray, own: np.ndarray, seen: np.ndarray, ratings: np.ndarray) -> dict[str, float]:
        """Returns ndcg and recall of a user's ranking, and `ranked` 1; zeros if it has none of relevant items.

        All three are nan where the score of any item of the ranking is not finite.
        """
        from sklearn.metrics import ndcg_score

        relevant = np.zeros(len(scores))
        liked = ~np.isnan(ratings) if self.relevant is None else ratings >= self.relevant  # nan is not
        relevant[own[liked]] = 1
        candidates = np.ones(len(scores), dtype=bool)
        candidates[seen[seen >= 0]] = False
        scores, relevant = scores[candidates], relevant[candidates]
        if not np.isfinite(scores).all():
            return dict.fromkeys(("ndcg", "recall", "ranked"), float("nan"))
        if not relevant.any() or len(scores) < 2:
            return {"ndcg": 0.0, "recall": 0.0, "ranked": 0.0}
        top = np.argsort(-scores, kind="stable")[:TOP]
        ndcg = float(ndcg_score(relevant[None], scores[None], k=TOP))
        return {"ndcg": ndcg, "recall": float(relevant[top].sum() / relevant.sum()), "ranked": 1.0}

    def evaluated(self, rows: Rows, found: Sequence[Any]) -> tuple[Predictions, float]:
        if not all(np.isfinite([*ratings, *ranking.values()]).all() for ratings, ranking in found):
            raise NotFinite
        right = [np.asarray(rows.all_labels[place]) for place in rows.indices.tolist()]
        stats = [
            {
                "squared_error": float(((guess - own) ** 2).sum()),
                "absolute_error": float(np.abs(guess - own).sum()),
                "ratings": float(len(own)),
                **ranking,
            }
            for own, (guess, ranking) in zip(right, found, strict=True)
        ]
        columns = {name: np.array([one[name] for one in stats], np.float64) for name in stats[0]}
        loss = float(columns["squared_error"].sum() / columns["ratings"].sum())
        texts = [[" ".join(f"{value:.7g}" for value in row) for row in side] for side in (right, [r for r, _ in found])]
        return Predictions(texts[0], texts[1], columns), loss

    def row_outputs(self, logits: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Those of the first item of each row, (rows, 1)."""
        return logits[:, :1]

    @staticmethod
    def _inputs(batch: Batch) -> dict[str, torch.Tensor]:
        return {name: batch.inputs[name] for name in Vocabulary.model_input_names}

    @staticmethod
    def _ratings(model: Network, **inputs: torch.Tensor) -> torch.Tensor:
        """Computes ratings (rows, items), in at least float32."""
        logits: torch.Tensor = model(**inputs).logits
        return logits if logits.dtype.itemsize >= 4 else logits.float()

    # -- reports --------------------------------------------------------------------------------

    def notes(self, splits: Mapping[str, Rows]) -> list[tuple[bool, str]]:
        """Returns how many users and items are evaluated and have no rating to train on."""
        found = []
        for split, part in splits.items():
            for what in ("users", "items") if split != "train" else ():
                if new := self._numbered(what, part) - self._numbered(what, splits["train"]):
                    line = (
                        f"{len(new)} {what} of {split} have no rating in train; their vectors are the model's as it was"
                    )
                    found.append((True, line))
        return found

    @staticmethod
    def _numbered(what: str, rows: Rows) -> set[int]:
        """Returns the numbers of the users or items of rows."""
        if what == "users":
            return set(np.asarray(rows.columns["user"])[rows.indices].tolist())
        return {item for row in rows.indices.tolist() for item in rows.columns["items"][row]}


def _ragged(rows: Sequence[Sequence[Any]], dtype: Any) -> Ragged:
    return Ragged(
        np.concatenate([np.asarray(row, dtype) for row in rows]), np.cumsum([len(row) for row in rows], dtype=np.int64)
    )


def _padded(rows: Sequence[Sequence[Any]], filling: float) -> torch.Tensor:
    """Returns rows of numbers as (rows, longest), filled up."""
    dtype = torch.float32 if isinstance(filling, float) else torch.long
    found = torch.full((len(rows), max(map(len, rows))), filling, dtype=dtype)
    for place, row in enumerate(rows):
        found[place, : len(row)] = torch.tensor(row, dtype=dtype)
    return found


two_tower.register(Rating.auto_class)
