"""A class for each word of a sentence: names of people and places, parts of speech.

A word's class is that of its first token; its other tokens count in no loss. Precision, recall and F1 are of whole
entities, as seqeval reads them from IOB tags (`B-PER`, `I-PER`, `O`): right is one with the same words and the same
type. A word that no token stands for, as it was cut off or the tokenizer drops it, is outside of any entity.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from trainer.data.ragged import Ragged
from trainer.data.rows import Rows
from trainer.errors import ConfigError
from trainer.model import backbone as models
from trainer.objectives import placed
from trainer.objectives.metrics import METRICS, Metric
from trainer.objectives.objective import IGNORED, Encoded, NotFinite, Objective, Predictions, refuse_headless
from variants.core.step import Loss

if TYPE_CHECKING:
    from trainer.loop.batches import Batch
    from trainer.loop.network import Network

OUTSIDE = "O"
OF_ENTITIES = ("f1", "precision", "recall")
_IOB = re.compile(r"[BIES]-.+", re.DOTALL)


@dataclass(eq=False)
class TokenClassification(Objective):
    """Rows have `tokens`, words, and `tags`, the number of each word's class."""

    kind: ClassVar[str] = "token_classification"
    example: ClassVar[str] = "sentence"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    peft_task: ClassVar[str] = "TOKEN_CLS"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "f1": Metric("2 * tp / (2 * tp + fp + fn)"),
        "precision": METRICS["precision"],
        "recall": METRICS["recall"],
        "accuracy": Metric("correct / words"),
        "loss": METRICS["loss"],
    }
    smooth: ClassVar[tuple[str, ...]] = ("nll",)

    # -- before a run ---------------------------------------------------------------------------

    @property
    def labels(self) -> tuple[str, ...]:
        return self.content.labels or ()

    @property
    def of_entities(self) -> bool:
        """Whether the classes are IOB tags."""
        return OUTSIDE in self.labels and all(name == OUTSIDE or _IOB.fullmatch(name) for name in self.labels)

    def check(self) -> None:
        there = self.content.column_names
        if not {"tokens", "tags"} <= set(there):
            columns = ", ".join(name for name in there if name != "id")
            raise ConfigError(f"task: columns {columns} for a {self.title}; allowed: tokens, tags")
        if len(self.labels) < 2:
            named = ", ".join(self.labels) or "without names"
            raise ConfigError(f"task: classes {named} for a {self.title}; allowed: two or more, by name")
        if not self.of_entities and (wrong := [name for name in self.asked if name in OF_ENTITIES]):
            odd = next((name for name in self.labels if name != OUTSIDE and not _IOB.fullmatch(name)), None)
            found = f"no class {OUTSIDE}" if odd is None else f"a class {odd!r}"
            raise ConfigError(
                f"task.metrics: {wrong[0]!r} with {found}; allowed: accuracy, loss, or classes O, B-…, I-… (E-…, S-…)"
            )
        for split, table in self.content.splits.items():
            for number, row in enumerate(table, 1):
                if wrong_row := self._wrong(row["tokens"], row["tags"]):
                    raise ConfigError(f"task: row {number} of {split}: {wrong_row}")

    def _wrong(self, words: Sequence[Any] | None, tags: Sequence[Any] | None) -> str | None:
        """What is wrong with a row, and what is allowed; None if nothing is."""
        if not words or tags is None:
            return "it has no words; allowed: one or more, with a tag for each"
        if len(words) != len(tags):
            return f"{len(words)} words and {len(tags)} tags; allowed: as many"
        for place, (word, tag) in enumerate(zip(words, tags, strict=True), 1):
            if not isinstance(word, str) or not word.strip():
                return f"word {place} is {word!r}; allowed: a text"
            if isinstance(tag, bool) or not isinstance(tag, int) or not 0 <= tag < len(self.labels):
                return f"the tag of word {place} is {tag!r}; allowed: 0 to {len(self.labels) - 1}"
        return None

    @property
    def outputs(self) -> int:
        return len(self.labels)

    @staticmethod
    def head(model: Any) -> tuple[str, ...]:
        return refuse_headless(model, models.head_modules(model))

    def check_model(self, model: Any, tokenizer: Any) -> None:
        placed.refuse_without_places(tokenizer)

    def describe(self, config: Any) -> Any:
        config = models.describe(config, self.labels)
        config.problem_type = None
        return config

    # -- rows -----------------------------------------------------------------------------------

    def texts(self, split: str) -> list[Sequence[str]]:
        return [[" ".join(words) for words in self.content.splits[split]["tokens"][:]]]

    def encode(self, split: str, folder: Path, max_length: int) -> Encoded:
        """Sentences as words with a space between, from which the tokenizer makes what it makes of any text."""
        tokenizer, table = models.tokenizer(folder, self.architecture), self.content.splits[split]
        rows, labels, words, cut, letters = [], [], [], [], []
        found = placed.windows(tokenizer, self.texts(split)[0], truncation=True, max_length=max_length)
        for (window, *rest), marked, row in self._with_rows(found, table):
            own, numbers = _labelled(window, row["tokens"], row["tags"])
            rows.append(window)
            labels.append(own)
            words.append(numbers)
            cut.append(bool(rest))
            letters.append(marked)
        columns = placed.columns(rows) | {"words": placed.ragged(words)}
        return Encoded(
            Rows(columns, placed.ragged(labels), np.arange(len(rows)), split=split),
            np.array(cut),
            np.array(letters, np.int8),
        )

    @staticmethod
    def _with_rows(found: Iterator[tuple[list[placed.Window], int]], table: Any) -> Iterator[tuple[Any, int, Any]]:
        return ((windows, marked, row) for (windows, marked), row in zip(found, table, strict=True))

    def check_training(self, rows: Rows, limit: int | None) -> None:
        table = self.content.splits[rows.split]["tags"]
        there = set(itertools.chain.from_iterable(table[row] for row in rows.sources.tolist()))
        if len(there) < 2:
            only = self.labels[next(iter(there))]
            raise ConfigError(f"data.limit: {limit} leaves training rows of which each word is {only!r}; allowed: more")

    def pad(self, folder: Path) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        from transformers import DataCollatorForTokenClassification

        tokenizer = models.tokenizer(folder, self.architecture)
        collate: Any = DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED)
        names = [*tokenizer.model_input_names, "labels"]

        def padded(rows: list[dict[str, Any]]) -> Mapping[str, torch.Tensor]:
            found: Mapping[str, torch.Tensor] = collate(
                [{name: row[name] for name in names if name in row} for row in rows]
            )
            return found

        return padded

    def weigh(self, labels: torch.Tensor, rows: Sequence[int]) -> int:
        """Words that count; those of a row of weight 0 are taken out."""
        labels[torch.tensor(rows) == 0] = IGNORED
        return int((labels != IGNORED).sum())

    # -- steps and evaluation -------------------------------------------------------------------

    def loss(self, model: Network, batch: Batch) -> Loss:
        """Cross-entropy, summed over the words that count."""
        return Loss(_nll(self._logits(model, batch), batch.labels).sum(), batch.weight)

    def predict(self, model: Network, batch: Batch) -> list[Any]:
        """Of each row the class of each of its words that a token stands for, and the sum of their losses."""
        logits = self._logits(model, batch)
        nll = _nll(logits, batch.labels).double().sum(1).tolist()
        chosen, counted = logits.argmax(-1).cpu().numpy(), (batch.labels != IGNORED).cpu().numpy()
        return [(one[places], loss) for one, places, loss in zip(chosen, counted, nll, strict=True)]

    def evaluated(self, rows: Rows, found: Sequence[Any]) -> tuple[Predictions, float]:
        if not np.isfinite([nll for _, nll in found]).all():
            raise NotFinite
        table, words = self.content.splits[rows.split], rows.columns["words"]
        references, guesses, stats = [], [], []
        for row, (classes, nll) in zip(rows.indices.tolist(), found, strict=True):
            right = [self.labels[tag] for tag in table["tags"][row]]
            guess = [OUTSIDE if self.of_entities else ""] * len(right)
            for word, number in zip(words[row], classes.tolist(), strict=True):
                guess[word] = self.labels[number]
            references.append(" ".join(right))
            guesses.append(" ".join(guess))
            stats.append(self._statistics(right, guess) | {"nll": nll, "tokens": len(classes)})
        columns = {name: np.array([one[name] for one in stats], np.float64) for name in stats[0]}
        loss = float(columns["nll"].sum() / max(1.0, columns["tokens"].sum()))
        return Predictions(references, guesses, columns), loss

    def _statistics(self, right: Sequence[str], guess: Sequence[str]) -> dict[str, float]:
        """Of one sentence: words whose class is right, and entities that were found, made up and missed."""
        hits = sum(a == b for a, b in zip(right, guess, strict=True))
        found: dict[str, float] = {"correct": hits, "words": len(right)}
        if self.of_entities:
            from seqeval.metrics.sequence_labeling import get_entities

            there, said = set(get_entities(list(right))), set(get_entities(list(guess)))
            found |= {"tp": len(there & said), "fp": len(said - there), "fn": len(there - said)}
        return found

    def row_outputs(self, logits: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Those of the first and the last token of each row, (rows, 2, classes)."""
        return placed.ends(logits, inputs)

    def _logits(self, model: Network, batch: Batch) -> torch.Tensor:
        """Outputs (rows, length, classes), in at least float32."""
        logits: torch.Tensor = model(**batch.inputs).logits
        logits = logits[:, -batch.labels.shape[1] :]  # a method may have put words of its own in front
        return logits if logits.dtype.itemsize >= 4 else logits.float()

    # -- what is said ---------------------------------------------------------------------------

    def notes(self, splits: Mapping[str, Rows]) -> list[tuple[bool, str]]:
        """How many words no token stands for."""
        found = []
        for split, part in splits.items():
            table, words = self.content.splits[part.split]["tokens"], part.columns["words"]
            assert isinstance(words, Ragged)
            lost = sum(len(table[row]) - len(words[row]) for row in part.indices.tolist())
            if lost:
                as_what = "outside of any entity" if self.of_entities else "wrong"
                found.append((True, f"{lost} words of {split} have no token, as they were cut off; each is {as_what}"))
        return found


def _labelled(window: placed.Window, words: Sequence[str], tags: Sequence[int]) -> tuple[list[int], list[int]]:
    """Of each token its label: that of the word whose first one it is, or `IGNORED`; and the numbers of these words."""
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
    text, labels, numbers = " ".join(words), [IGNORED] * len(window.parts), [-1]
    for token in np.flatnonzero(window.parts == 0).tolist():
        begin, end = window.places[token].tolist()
        begin += len(text[begin:end]) - len(text[begin:end].lstrip())
        if begin >= end:  # white space alone
            continue
        word = int(np.searchsorted(starts, begin, side="right")) - 1
        if word > numbers[-1]:
            labels[token] = tags[word]
            numbers.append(word)
    return labels, numbers[1:]


def _nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of each token the cross-entropy (rows, length), 0 where it does not count."""
    losses = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(labels.shape)
