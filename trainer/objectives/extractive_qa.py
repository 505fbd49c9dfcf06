"""Questions on a text whose answer is a span of it, or is not in it: SQuAD and its kin.

A context that is too long is read in windows, which share `stride` tokens. In each a model scores every token as the
first and as the last of the answer; a window without the answer points to the token in front of the text. The span
with the highest sum of the two scores, over all windows, is the answer. Where a task has questions without an answer,
none is given if the lowest score for that, over the windows, is above that of the best span.

Scores are those of SQuAD's official script (Rajpurkar et al. 2016, 2018): the same words, or F1 of the words, case,
punctuation and articles apart; of several right answers the one that fits best.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from trainer.data.ragged import Ragged
from trainer.data.rows import Rows
from trainer.errors import ConfigError
from trainer.model import agreement
from trainer.model import backbone as models
from trainer.objectives import generated, placed, prompts
from trainer.objectives.metrics import METRICS, Metric
from trainer.objectives.objective import Encoded, NotFinite, Objective, Predictions, refuse_headless
from variants.core.step import Loss

if TYPE_CHECKING:
    from trainer.data.sources import TaskData
    from trainer.loop.batches import Batch
    from trainer.loop.network import Network

COLUMNS = ("context", "question", "answers")


@dataclass(eq=False)
class ExtractiveQA(Objective):
    """Rows have `context`, `question` and `answers`: texts of the context and where they start; none: unanswerable.

    Learned is the first answer. stride: tokens that two windows share, at most half a window. max_answer_tokens: of an
    answer that is chosen, at most. null_threshold: by how much no answer must be likelier than the best one.
    """

    stride: int = 128
    max_answer_tokens: int = 30
    null_threshold: float = 0.0

    kind: ClassVar[str] = "extractive_qa"
    example: ClassVar[str] = "question"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    peft_task: ClassVar[str] = "QUESTION_ANS"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "f1": Metric("f1 / examples"),
        "exact_match": METRICS["exact_match"],
        "loss": Metric("nll / windows", higher_is_better=False, percent=False),
    }
    smooth: ClassVar[tuple[str, ...]] = ("nll",)

    # -- before a run ---------------------------------------------------------------------------

    @property
    def title(self) -> str:
        return "task of questions"

    @functools.cached_property
    def unanswerable(self) -> bool:
        """Whether there are questions without an answer."""
        return any(not row["text"] for table in self.content.splits.values() for row in table["answers"][:])

    def check(self) -> None:
        there = self.content.column_names
        if not set(COLUMNS) <= set(there):
            columns = ", ".join(name for name in there if name != "id")
            raise ConfigError(f"task: columns {columns} for a {self.title}; allowed: {', '.join(COLUMNS)}")
        for name, least in (("stride", 0), ("max_answer_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"task.{name}: {getattr(self, name)}, allowed: a whole number ≥ {least}")
        for split, table in self.content.splits.items():
            for number, row in enumerate(table, 1):
                if wrong := _wrong(row):
                    raise ConfigError(f"task: row {number} of {split}: {wrong}")
        if self.null_threshold and not self.unanswerable:
            raise ConfigError(
                f"task.null_threshold: {self.null_threshold} in a task whose questions all have an answer, allowed: 0"
            )

    @property
    def outputs(self) -> int:
        return 2

    def peft_task_of(self, inputs: Sequence[str]) -> str | None:
        """PEFT's own class for questions passes no types of tokens on: with it, a model would give other answers."""
        return None if "token_type_ids" in inputs else self.peft_task

    @staticmethod
    def head(model: Any) -> tuple[str, ...]:
        return refuse_headless(model, models.head_modules(model))

    def check_model(self, model: Any, tokenizer: Any) -> None:
        placed.refuse_without_places(tokenizer)

    def describe(self, config: Any) -> Any:
        config = models.describe(config, ["start", "end"])
        config.problem_type = None
        return config

    def predicting(self, content: TaskData, referenced: bool) -> ExtractiveQA:
        """Questions have no answer where some of the run's own have none, whatever is known of these."""
        found = replace(self, content=content)
        found.unanswerable = self.unanswerable
        return found

    # -- rows -----------------------------------------------------------------------------------

    @property
    def pairs(self) -> bool:
        return True

    def texts(self, split: str) -> list[Sequence[str]]:
        return [self.content.splits[split]["context"][:]]

    def encode(self, split: str, folder: Path, max_length: int) -> Encoded:
        """The first window of each question; of which of them what is trained and evaluated is made."""
        windows, cut, letters = _windows(self, split, folder, max_length)
        _, first = np.unique(windows.sources, return_index=True)
        columns = {name: placed.ragged([column[row] for row in first]) for name, column in _inputs(windows).items()}
        return Encoded(Rows(columns, np.zeros(len(first)), np.arange(len(first)), split=split), cut, letters)

    def check_training(self, rows: Rows, limit: int | None) -> None:
        answers = self.content.splits[rows.split]["answers"]
        if not any(answers[row]["text"] for row in rows.sources.tolist()):
            raise ConfigError(f"data.limit: {limit} leaves training questions without any answer; allowed: more")

    def for_training(self, rows: Rows, folder: Path, max_length: int) -> Rows:
        """All windows of the questions."""
        windows, _, _ = _windows(self, rows.split, folder, max_length)
        return windows.view(np.flatnonzero(np.isin(windows.sources, rows.indices)))

    def for_evaluation(self, rows: Rows, folder: Path, max_length: int) -> Rows:
        return self.for_training(rows, folder, max_length).longest_first()

    def pad(self, folder: Path) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """Labels: places of the first and the last token of the answer; context: of the first token of the text and
        the one behind its last; null: of the token that stands for no answer."""
        tokenizer = models.tokenizer(folder, self.architecture)

        def padded(rows: list[dict[str, Any]]) -> Mapping[str, torch.Tensor]:
            names = [name for name in tokenizer.model_input_names if name in rows[0]]
            found = dict(tokenizer.pad([{name: row[name] for name in names} for row in rows], return_tensors="pt"))
            width = found["input_ids"].shape[1]
            left = tokenizer.padding_side == "left"
            before = torch.tensor([width - len(row["input_ids"]) if left else 0 for row in rows])
            for name in ("labels", "context", "null"):
                places = torch.tensor(np.stack([row[name] for row in rows]), dtype=torch.long)
                found[name] = places + (before[:, None] if places.ndim == 2 else before)
            return found

        return padded

    # -- steps and evaluation -------------------------------------------------------------------

    def loss(self, model: Network, batch: Batch) -> Loss:
        """Cross-entropy over the tokens of a window, the mean of that for start and end, summed over the windows."""
        return Loss(_nll(self._logits(model, batch), batch.labels).sum(), batch.weight)

    def predict(self, model: Network, batch: Batch) -> list[Any]:
        """Of each window its loss, the score of no answer, and the best span: its score, first and last token counted
        from the first of the text."""
        logits = self._logits(model, batch)
        nll = _nll(logits, batch.labels).double().tolist()
        places = torch.arange(len(logits), device=logits.device)
        null = logits[places, batch.inputs["null"]].double().sum(-1).tolist()
        begins, ends = batch.inputs["context"].unbind(1)
        at = torch.arange(logits.shape[1], device=logits.device)
        inside = (at >= begins[:, None]) & (at < ends[:, None])
        start, end = logits.double().masked_fill(~inside[..., None], -torch.inf).unbind(-1)
        reach = min(self.max_answer_tokens, logits.shape[1])
        sums = start[..., None] + F.pad(end, (0, reach - 1), value=-torch.inf).unfold(1, reach, 1)  # (…, start, length)
        score, best = sums.flatten(1).max(1)
        first = best // reach - begins
        return list(zip(nll, null, score.tolist(), first.tolist(), (first + best % reach).tolist(), strict=True))

    def evaluated(self, rows: Rows, found: Sequence[Any]) -> tuple[Predictions, float]:
        if not np.isfinite([one[:2] for one in found]).all():
            raise NotFinite
        table, columns = self.content.splits[rows.split], rows.columns
        of_questions: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        for row, example, one in zip(rows.indices.tolist(), rows.sources.tolist(), found, strict=True):
            of_questions[example].append((row, *one))
        references, guesses, stats = [], [], []
        for example in rows.examples:
            own, context = sorted(of_questions[example]), table["context"][example]
            row, _, _, score, first, last = max(own, key=lambda one: one[3])
            begin, end = columns["begins"][row][first], columns["ends"][row][last]
            none = self.unanswerable and min(one[2] for one in own) - score > self.null_threshold
            guess = "" if none else context[begin:end].strip()
            answers = table["answers"][example]["text"]
            references.append(answers[0] if answers else "")
            guesses.append(guess)
            stats.append(_statistics(answers, guess) | {"nll": sum(one[1] for one in own), "windows": len(own)})
        numbers = {name: np.array([one[name] for one in stats], np.float64) for name in stats[0]}
        return Predictions(references, guesses, numbers), float(numbers["nll"].sum() / numbers["windows"].sum())

    def outputs_of(self, model: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The scores of the first and the last token of each row as start and end, (rows, 2, 2)."""
        return placed.ends(_stacked(model(**inputs)), inputs)

    def _logits(self, model: Network, batch: Batch) -> torch.Tensor:
        """Scores (rows, length, start and end), in at least float32; of padding the lowest there is."""
        inputs = {name: tensor for name, tensor in batch.inputs.items() if name not in ("context", "null")}
        logits = _stacked(model(**inputs))[:, -inputs["input_ids"].shape[1] :]
        logits = logits if logits.dtype.itemsize >= 4 else logits.float()
        if (mask := inputs.get("attention_mask")) is not None:
            logits = logits.masked_fill(mask[..., None] == 0, torch.finfo(logits.dtype).min)
        return logits


def _wrong(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a row, and what is allowed; None if nothing is."""
    for name in ("context", "question"):
        if not row[name] or not row[name].strip():
            return f"its {name} is empty; allowed: a text"
    answers, context = row["answers"], row["context"]
    if answers is None or len(answers["text"]) != len(answers["start"]):
        return "its answers have not as many texts as starts; allowed: as many, none where the text has no answer"
    for text, start in zip(answers["text"], answers["start"], strict=True):
        if not text or not text.strip():
            return "one of its answers is empty; allowed: a text, or no answers"
        if start < 0 or context[start : start + len(text)] != text:
            there = context[start : start + len(text)] if start >= 0 else ""
            return (
                f"its answer {text[:40]!r} is not in its context at {start}, where {there[:40]!r} is; allowed: a span"
            )
    return None


@functools.lru_cache(maxsize=8)
def _windows(task: ExtractiveQA, split: str, folder: Path, max_length: int) -> tuple[Rows, np.ndarray, np.ndarray]:
    """All windows of a split, of each question whether its answer is in none of them, and letters (see `placed`).

    Raises `ConfigError` for a question that leaves no room for the text.
    """
    tokenizer, table = models.tokenizer(folder, task.architecture), task.content.splits[split]
    rows: list[placed.Window] = []
    labels, examples, contexts, nulls, cut, letters = [], [], [], [], [], []
    for example, (own, marked) in enumerate(_encoded(task, split, tokenizer, max_length)):
        answers = table[example]["answers"]
        if not all((window.parts == 1).any() for window in own):
            name = agreement.row_name(task.content, split, example)
            raise ConfigError(f"task: the context of {name} has no token for the model's tokenizer; allowed: a text")
        spans = [_span(own, place, answers) for place in range(len(own))]
        cut.append(bool(answers["text"]) and all(span is None for span in spans))
        letters.append(marked)
        for window, span in zip(own, spans, strict=True):
            there = np.flatnonzero(window.parts == 1)
            null = _null(tokenizer, window)
            rows.append(window)
            labels.append((null, null) if span is None else span)
            examples.append(example)
            contexts.append((there[0], there[-1] + 1))
            nulls.append(null)
    # Of tokens of the text alone, which stand together.
    texts = [window.places[first:last] for window, (first, last) in zip(rows, contexts, strict=True)]
    columns: dict[str, Any] = placed.columns(rows)
    columns |= {"begins": placed.ragged([t[:, 0] for t in texts]), "ends": placed.ragged([t[:, 1] for t in texts])}
    columns |= {"context": np.array(contexts), "null": np.array(nulls)}
    found = Rows(columns, np.array(labels), np.arange(len(rows)), np.array(examples), split)
    return found, np.array(cut), np.array(letters, np.int8)


def _encoded(
    task: ExtractiveQA, split: str, tokenizer: Any, max_length: int
) -> Iterator[tuple[list[placed.Window], int]]:
    """The windows of each question; those that leave the same room are tokenised together."""
    table = task.content.splits[split]
    questions, contexts = [text.strip() for text in table["question"][:]], table["context"][:]
    added = tokenizer.num_special_tokens_to_add(pair=True)
    sizes = [len(ids) for ids in prompts.encode(tokenizer, questions)]
    by_stride: dict[int, list[int]] = defaultdict(list)
    for row, size in enumerate(sizes):
        if (room := max_length - added - size) < 2:
            name = agreement.row_name(task.content, split, row)
            raise ConfigError(
                f"data.max_length: {max_length}, and the question of {name} has {size} tokens, which leaves {room} for "
                f"its text; allowed: above {added + size + 1}"
            )
        by_stride[min(task.stride, room // 2)].append(row)
    found: dict[int, tuple[list[placed.Window], int]] = {}
    for stride, rows in by_stride.items():
        options = {"truncation": "only_second", "max_length": max_length, "stride": stride}
        texts = ([questions[row] for row in rows], [contexts[row] for row in rows])
        found |= dict(zip(rows, placed.windows(tokenizer, *texts, **options), strict=True))
    return (found.pop(row) for row in range(len(sizes)))


def _span(windows: Sequence[placed.Window], place: int, answers: Mapping[str, Any]) -> tuple[int, int] | None:
    """The tokens of a window, first and last, that the first answer lies in; None where it isn't all in it."""
    if not answers["text"]:
        return None
    window, begin = windows[place], answers["start"][0]
    end = begin + len(answers["text"][0])
    there = np.flatnonzero(window.parts == 1)
    begins, ends = window.places[there].T
    # What the tokenizer drops at an end of the text is in the window that reaches there.
    if (place > 0 and begin < begins[0]) or (place < len(windows) - 1 and end > ends[-1]):
        return None
    inside = np.flatnonzero((ends > begin) & (begins < end))
    return (int(there[inside[0]]), int(there[inside[-1]])) if len(inside) else None


def _null(tokenizer: Any, window: placed.Window) -> int:
    """The place of the token that stands for no answer: that of the whole text where there is one, else the first."""
    ids = window.inputs["input_ids"]
    for token in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if token is not None and len(there := np.flatnonzero((ids == token) & (window.parts == -1))):
            return int(there[0])
    return 0


def _inputs(rows: Rows) -> dict[str, Ragged]:
    """The columns that a model reads."""
    return {
        name: column
        for name, column in rows.columns.items()
        if isinstance(column, Ragged) and name not in ("begins", "ends")
    }


def _statistics(answers: Sequence[str], guess: str) -> dict[str, float]:
    """As SQuAD's script has them: of the answers that have words, and of none where there is none."""
    right = [answer for answer in answers if generated.words(answer)] or [""]
    return {
        "exact_match": max(float(generated.words(answer) == generated.words(guess)) for answer in right),
        "f1": max(generated.token_f1(answer, guess) for answer in right),
    }


def _stacked(found: Any) -> torch.Tensor:
    """What a model gives: scores (rows, length, start and end)."""
    return torch.stack([found.start_logits, found.end_logits], dim=-1)


def _nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of each row the mean cross-entropy of start and end (rows,)."""
    return F.cross_entropy(logits, labels, reduction="none").mean(1)
