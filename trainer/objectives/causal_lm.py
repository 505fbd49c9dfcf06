"""Language models that predict each token from those before it, in three forms told by the columns of a task's rows.

- `text`: all tokens are learned, in blocks of `data.max_length` tokens that texts fill one behind the other. A text
  begins with the tokenizer's token for it, from which its first token is predicted; it does not see those before it,
  where the model can keep them apart (see `language_models.say_of_blocks`). Evaluated is each text by itself,
  in windows whose first token is predicted from the last one before: loss, perplexity, bits per byte.
- `prompt` and `response`, or `messages` (through the tokenizer's chat template; the last one is the response): learned
  is the response alone, or with loss_on=all the prompt, too. What the model writes behind a prompt is scored.
- `prompt`, `choices` and `label`: learned is the right answer. Chosen is the answer with the highest log-likelihood
  (accuracy), or with the highest one over its number of letters
  (accuracy_norm), as acc and acc_norm of lm-evaluation-harness are.

The first token of a row is never counted, nor is padding. A prompt that is too long is cut from its left, an answer
never.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from trainer.data.ragged import Ragged
from trainer.data.rows import Rows
from trainer.data.sources import general
from trainer.errors import ConfigError
from trainer.model import agreement
from trainer.model import backbone as models
from trainer.objectives import blocks, generated, language_models, likelihood, metrics, placed, prompts
from trainer.objectives.metrics import METRICS, Metric
from trainer.objectives.objective import IGNORED, Encoded, NotFinite, Objective, Predictions, Prompt
from trainer.objectives.prompts import Pair
from variants.core.step import Loss

if TYPE_CHECKING:
    from trainer.data.sources import TaskData
    from trainer.loop.batches import Batch
    from trainer.loop.network import Network

LIKELIHOOD = ("loss", "perplexity")
FORMS = {
    "text": (*LIKELIHOOD, "bits_per_byte"),
    "response": (*LIKELIHOOD, *generated.METRICS),
    "choices": ("accuracy", "accuracy_norm", *LIKELIHOOD),
}
ENTRIES = 2**26  # of the logits that an evaluation holds at a time


@dataclass(eq=False)
class CausalLM(Objective):
    """loss_on: of rows with a response, what is learned: response, or all. max_new_tokens: at most so many are written
    behind a prompt, always the likeliest. retention, retention_path: a task or a table of general texts, whose
    perplexity is measured before and after training."""

    loss_on: str = "response"
    max_new_tokens: int = 64
    retention: str | None = None
    retention_path: str | None = None

    kind: ClassVar[str] = "causal_lm"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_task: ClassVar[str] = "CAUSAL_LM"
    metrics: ClassVar[Mapping[str, Metric]] = {name: METRICS[name] for names in FORMS.values() for name in names}
    smooth: ClassVar[tuple[str, ...]] = ("nll",)
    predicts_tokens: ClassVar[bool] = True

    # -- before a run ---------------------------------------------------------------------------

    @property
    def form(self) -> str:
        """text, response or choices. Raises `ConfigError` for columns that are none of these."""
        there = set(self.content.column_names)
        for form, columns in (("choices", {"prompt", "choices", "label"}), ("response", {"prompt", "response"})):
            if columns <= there:
                return form
        if "messages" in there:
            return "response"
        if "text" in there:
            return "text"
        raise ConfigError(
            f"task: columns {', '.join(sorted(there - {'id'}))} for a language model; "
            "allowed: text; prompt, response; messages; prompt, choices, label"
        )

    @property
    def title(self) -> str:
        what = {"text": "texts", "response": "responses", "choices": "choices"}
        return f"language model of {what[self.form]}"

    @property
    def generates(self) -> bool:
        """Whether a metric is of texts that the model writes."""
        return not set(self.asked).isdisjoint(generated.METRICS)

    def check(self) -> None:
        metrics.check(self.asked, FORMS[self.form], self.title)
        if self.loss_on not in ("response", "all"):
            raise ConfigError(f"task.loss_on: {self.loss_on!r}, allowed: response, all")
        if self.loss_on == "all" and self.form != "response":
            raise ConfigError(f"task.loss_on: 'all' in a {self.title}, allowed: response, which is null there")
        if self.max_new_tokens < 1:
            raise ConfigError(f"task.max_new_tokens: {self.max_new_tokens}, allowed: a whole number ≥ 1")
        language_models.check_rows(self.content, self.form, "numeric_match" in self.asked)

    @staticmethod
    def head(model: Any) -> tuple[str, ...]:
        """None: what makes words of hidden states is the model's own, often its embeddings."""
        return ()

    def check_model(self, model: Any, tokenizer: Any) -> None:
        if "messages" in self.content.column_names and not tokenizer.chat_template:
            raise ConfigError("task: rows of messages, and the model's tokenizer has no chat template; allowed: one")
        if tokenizer.eos_token_id is None:
            raise ConfigError("model: its tokenizer has no token for the end of a text; allowed: one with an eos_token")
        positions = agreement.longest_text(model)
        if self.generates and positions is not None and self.max_new_tokens >= positions:
            raise ConfigError(f"task.max_new_tokens: {self.max_new_tokens}, allowed: below {positions}, the model's")

    def check_loaded(self, model: Any, tokenizer: Any, rows: Rows) -> None:
        language_models.refuse_not_causal(model, rows[0]["input_ids"])
        if self.form == "text":
            language_models.say_of_blocks(model, [rows[place]["input_ids"] for place in (0, len(rows) - 1)])
        if self.generates:
            language_models.refuse_padding(model, tokenizer, [rows[place]["prompt"] for place in (0, len(rows) - 1)])

    @functools.cached_property
    def general(self) -> CausalLM | None:
        if self.retention is None and self.retention_path is None:
            return None
        found = CausalLM(general.texts(self.retention, self.retention_path), ("perplexity",))
        found.check()
        return found

    def predicting(self, content: TaskData, referenced: bool) -> CausalLM:
        """Responses are written, whether the run's metrics are of them or not."""
        metrics = self.asked if self.form != "response" else generated.to_write(self.asked, referenced)
        return replace(self, content=content, asked=metrics)

    # -- rows -----------------------------------------------------------------------------------

    def texts(self, split: str) -> list[Sequence[str]]:
        rows = self.content.splits[split]
        if "messages" in rows.column_names:
            return [["\n".join(m["content"] for m in messages[:-1]) for messages in rows["messages"][:]]]
        return [rows["text" if self.form == "text" else "prompt"][:]]

    def encode(self, split: str, folder: Path, max_length: int) -> Encoded:
        tokenizer = models.tokenizer(folder, self.architecture)
        if self.form == "text":
            return self._texts(split, tokenizer)
        templated = "messages" in self.content.splits[split].column_names
        first = [] if templated else prompts.lead(tokenizer)
        end, rows, cut, letters = tokenizer.eos_token_id, [], [], []
        most = self._room(folder, max_length)
        for place, pair in enumerate(self._pairs(split, tokenizer)):
            if self.form == "response" and pair.answer[-1:] != [end]:
                pair = Pair(pair.prompt, [*pair.answer, end], pair.letters)
            prompt, answer = self._fitted(pair, first, max_length, split, place)
            cut.append(len(prompt) < len(pair.prompt))
            letters.append(pair.letters)
            rows.append((prompt, answer, pair.prompt if len(pair.prompt) <= most else pair.prompt[-most:]))
        hidden = (min(1, len(p)) if self.loss_on == "all" else len(p) for p, *_ in rows)
        labels = [[IGNORED] * n + [*p, *a][n:] for n, (p, a, _) in zip(hidden, rows, strict=True)]
        columns = {
            "input_ids": placed.ragged([[*p, *a] for p, a, _ in rows]),
            "prompt": placed.ragged([p for *_, p in rows]),
        }
        return Encoded(
            Rows(columns, placed.ragged(labels), np.arange(len(rows)), split=split),
            np.array(cut),
            np.array(letters, np.int8),
        )

    def for_training(self, rows: Rows, folder: Path, max_length: int) -> Rows:
        """Of texts blocks of `max_length` tokens; else the rows as they are."""
        if self.form == "text":
            return blocks.packed(rows, max_length)
        return Rows({"input_ids": rows.columns["input_ids"]}, rows.all_labels, rows.indices)

    def for_evaluation(self, rows: Rows, folder: Path, max_length: int) -> Rows:
        """Of texts their windows, of choices a row for each; else the rows as they are."""
        if self.form == "response":
            return rows.longest_first()
        tokenizer = models.tokenizer(folder, self.architecture)
        found = self._windows if self.form == "text" else self._choices
        inputs, labels, examples, extra = zip(*found(rows, tokenizer, max_length), strict=True)
        columns: dict[str, Any] = {"input_ids": placed.ragged(inputs), "extra": np.array(extra)}
        return Rows(
            columns, placed.ragged(labels), np.arange(len(inputs)), np.array(examples), rows.split
        ).longest_first()

    def pad(self, folder: Path) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """On the right; prompts that the model goes on from, where it does, on the left and apart from the rows."""
        filling = models.tokenizer(folder, self.architecture).pad_token_id

        def padded(rows: list[dict[str, Any]]) -> Mapping[str, torch.Tensor]:
            found = language_models.padded([row["input_ids"] for row in rows], filling)
            found["labels"] = language_models.padded([row["labels"] for row in rows], IGNORED)["input_ids"]
            if "prompt" in rows[0] and self.generates:
                found |= self._inputs([row["prompt"] for row in rows], folder)
            if "position_ids" in rows[0]:
                found["position_ids"] = language_models.padded([row["position_ids"] for row in rows], 0)["input_ids"]
            if "extra" in rows[0]:
                found["extra"] = torch.tensor([row["extra"] for row in rows])
            return found

        return padded

    def weigh(self, labels: torch.Tensor, rows: Sequence[int]) -> int:
        """Tokens that count; those of a row of weight 0 are taken out."""
        labels[torch.tensor(rows) == 0] = IGNORED
        return int((labels[:, 1:] != IGNORED).sum())

    def _texts(self, split: str, tokenizer: Any) -> Encoded:
        ids, labels, letters = zip(*prompts.documents(tokenizer, self.content.splits[split]["text"][:]), strict=True)
        rows = Rows({"input_ids": placed.ragged(ids)}, placed.ragged(labels), np.arange(len(ids)), split=split)
        return Encoded(rows, np.zeros(len(ids), dtype=bool), np.array(letters, np.int8))

    def _pairs(self, split: str, tokenizer: Any) -> list[Pair]:
        rows = self.content.splits[split]
        if "messages" in rows.column_names:
            named = ((messages, f"row {row} of {split}") for row, messages in enumerate(rows["messages"][:], 1))
            return [prompts.conversation(tokenizer, messages, where) for messages, where in named]
        if self.form == "response":
            return prompts.pairs(tokenizer, rows["prompt"][:], rows["response"][:])
        right = [choices[label] for choices, label in zip(rows["choices"][:], rows["label"][:], strict=True)]
        return prompts.pairs(tokenizer, rows["prompt"][:], right)

    def _fitted(
        self, pair: Pair, first: Sequence[int], most: int, split: str, place: int
    ) -> tuple[list[int], list[int]]:
        found = prompts.fitted(pair, first, most)
        if found is None:
            raise ConfigError(
                f"data.max_length: {most}, and the answer of {agreement.row_name(self.content, split, place)} has "
                f"{len(pair.answer)} tokens, of which none is cut; allowed: above {len(pair.answer) + len(first)}"
            )
        return found

    def _windows(self, rows: Rows, tokenizer: Any, most: int) -> Iterator[tuple[Any, ...]]:
        """Of each text its windows: tokens, labels, the text, and the bytes that the window stands for."""
        ids, texts = rows.columns["input_ids"], self.content.splits[rows.split]["text"][:]
        assert isinstance(ids, Ragged)
        for example in rows.indices.tolist():
            tokens = ids[example][:-1]  # its end is learned, and is no part of the text
            size = len(texts[example].encode())
            for place in range(0, max(1, len(tokens) - 1), most - 1):
                window = tokens[place : place + most]
                yield window, [IGNORED, *window[1:]], example, size if place == 0 else 0

    def _choices(self, rows: Rows, tokenizer: Any, most: int) -> Iterator[tuple[Any, ...]]:
        """Of each example its choices in their order: tokens, labels, the example, and the choice."""
        table, first = self.content.splits[rows.split], prompts.lead(tokenizer)
        asked, choices = table["prompt"][:], table["choices"][:]
        places = [(example, number) for example in rows.indices.tolist() for number in range(len(choices[example]))]
        found = prompts.pairs(tokenizer, [asked[e] for e, _ in places], [choices[e][number] for e, number in places])
        for (example, number), pair in zip(places, found, strict=True):
            prompt, answer = self._fitted(pair, first, most, rows.split, example)
            yield [*prompt, *answer], [IGNORED] * len(prompt) + answer, example, number

    # -- steps and evaluation -------------------------------------------------------------------

    def loss(self, model: Network, batch: Batch) -> Loss:
        """Cross-entropy, summed over the tokens that count."""
        return Loss(self._nll(model, batch.inputs, batch.labels, batch.weight).sum(), batch.weight)

    @property
    def distils(self) -> bool:
        return True

    def unit_logits(self, model: Network, batch: Batch) -> torch.Tensor:
        """The logits from which each token that counts is predicted."""
        logits = language_models.logits(model, batch.inputs, batch.labels)
        return logits[language_models.targets(batch.labels) != IGNORED]

    def loss_of(self, logits: torch.Tensor, batch: Batch) -> Loss:
        targets = language_models.targets(batch.labels)
        return Loss(F.cross_entropy(logits, targets[targets != IGNORED], reduction="sum"), batch.weight)

    def predict(self, model: Network, batch: Batch) -> list[Any]:
        """Of each row the sum of its tokens' negative log-likelihoods, how many these are, what `extra` says, and what
        the model writes behind its prompt."""
        written = self.written(model, batch.inputs) if self.generates else None
        step = len(batch.labels)
        if not likelihood.in_parts(model, self.architecture):
            step = max(1, ENTRIES // (batch.labels.shape[1] * model.model.config.get_text_config().vocab_size))
        found: list[Any] = []
        for first in range(0, len(batch.labels), step):
            rows = slice(first, first + step)
            inputs, labels = {name: tensor[rows] for name, tensor in batch.inputs.items()}, batch.labels[rows]
            nll = self._nll(model, inputs, labels).double().sum(1).tolist()
            tokens = (labels[:, 1:] != IGNORED).sum(1).tolist()
            extra = inputs["extra"].tolist() if "extra" in inputs else [0] * len(nll)
            found += zip(nll, tokens, extra, strict=True)
        return [(*row, None if written is None else written[place]) for place, row in enumerate(found)]

    def evaluated(self, rows: Rows, found: Sequence[Any]) -> tuple[Predictions, float]:
        if not np.isfinite([nll for nll, *_ in found]).all():
            raise NotFinite
        by_example: dict[int, list[Any]] = {}
        for example, row in zip(rows.sources.tolist(), found, strict=True):
            by_example.setdefault(example, []).append(row)
        table, examples = self.content.splits[rows.split], {}
        for example, own in by_example.items():
            make = self._chosen if self.form == "choices" else self._read
            examples[example] = make(table[example], own)
        references, guesses, stats = zip(*examples.values(), strict=True)
        columns = {name: np.array([one[name] for one in stats], np.float64) for name in stats[0]}
        loss = float(columns["nll"].sum() / columns["tokens"].sum())
        return Predictions(list(references), list(guesses), columns), loss

    def _read(self, row: Mapping[str, Any], found: Sequence[Any]) -> tuple[str, str, dict[str, float]]:
        """Of a text or a response: what is right, what was written, and numbers. found: of each of its rows."""
        stats = {"nll": sum(nll for nll, *_ in found), "tokens": sum(tokens for _, tokens, *_ in found)}
        if self.form == "text":
            return "", "", stats | {"bytes": sum(size for *_, size, _ in found)}
        right, written = language_models.answer(row), found[0][-1] or ""
        return right, written, stats | generated.statistics(self.asked, right, written)

    def _chosen(self, row: Mapping[str, Any], found: Sequence[Any]) -> tuple[int, int, dict[str, float]]:
        """The right choice, the one with the highest log-likelihood, and numbers. found: of each choice."""
        scores = np.empty(len(row["choices"]))
        for nll, _, choice, _ in found:
            scores[choice] = -nll
        sizes = np.array([len(choice) for choice in row["choices"]])
        right, guess = int(row["label"]), int(scores.argmax())
        ((nll, tokens, *_),) = [one for one in found if one[2] == right]
        stats = {"correct": float(guess == right), "correct_norm": float(int((scores / sizes).argmax()) == right)}
        return right, guess, stats | {"nll": nll, "tokens": tokens}

    def row_outputs(self, logits: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The logits behind the last token of each row."""
        mask = inputs["attention_mask"]
        last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
        return logits[torch.arange(len(last)), last - mask.shape[1] + logits.shape[1]]

    # -- texts that the model writes ------------------------------------------------------------

    @property
    def most_written(self) -> int:
        return self.max_new_tokens

    def writing_at_most(self, tokens: int) -> CausalLM:
        return replace(self, max_new_tokens=tokens)

    def prompted(self, text: str, folder: Path, max_length: int) -> Prompt:
        """Through the chat template where the task's rows are messages; cut from its left."""
        templated = "messages" in self.content.column_names
        pair = prompts.alone(models.tokenizer(folder, self.architecture), text, templated, self.form == "text")
        most, size = self._room(folder, max_length), len(pair.prompt)
        cut = f"{size:,} tokens, of which the last {most:,} are read" if size > most else ""
        return Prompt(self._inputs([pair.prompt[-most:]], folder), pair.letters, cut)

    def begun(self, rows: Sequence[Mapping[str, Any]], folder: Path, max_length: int) -> Mapping[str, torch.Tensor]:
        most = self._room(folder, max_length)
        whole = [row.get("prompt", row["input_ids"][: len(row["input_ids"]) // 2 + 1]) for row in rows]
        return self._inputs([tokens[-most:] for tokens in whole], folder)

    def written(self, model: Network, inputs: Mapping[str, torch.Tensor]) -> list[str]:
        tokenizer = models.tokenizer(model.source, self.architecture)
        return language_models.written(model, inputs, tokenizer, self.max_new_tokens)

    def _room(self, folder: Path, max_length: int) -> int:
        return language_models.room(models.skeleton(folder, self.architecture), self.max_new_tokens, max_length)

    def _inputs(self, rows: Sequence[Sequence[int]], folder: Path) -> dict[str, torch.Tensor]:
        """Prompts as `pad` makes them."""
        filling = models.tokenizer(folder, self.architecture).pad_token_id
        found = language_models.padded(rows, filling, left=True)
        return {f"prompt_{name}": tensor for name, tensor in found.items()}

    def _nll(
        self, model: Network, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor, count: int | None = None
    ) -> torch.Tensor:
        """Of each place the negative log-likelihood of the next token (rows, length), 0 where that does not count.

        count: how many count, if that is known.
        """
        targets = language_models.targets(labels)
        call = functools.partial(language_models.called, model, inputs)
        return likelihood.of_tokens(model, self.architecture, targets, call, count)
