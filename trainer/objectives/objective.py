"""The base class of kinds of task: everything that differs between text classification, language models and others.

The loop, evaluations, the dry run, the record, exports and the analysis call an objective and know no kind. A kind is a
file with one class. `kinds.KINDS` lists the built-in kinds; your own kind is named by its dotted path
(`task.kind=my_module.MyKind`). Its fields with a default are its settings in the task's YAML.

An evaluation never holds a model's outputs for a whole split: `predict` reduces each batch to what is needed of each
row, and `evaluated` combines these to one prediction and a few numbers per example. All reported metrics are functions
of sums of these numbers (see `metrics`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from trainer.data.sources import TaskData
from trainer.errors import ConfigError
from trainer.model import backbone as models
from trainer.model.architecture import Architecture
from trainer.objectives import metrics
from trainer.objectives.metrics import Metric
from variants.core.step import Loss

if TYPE_CHECKING:
    from trainer.data.rows import Rows
    from trainer.loop.batches import Batch
    from trainer.loop.network import Network


class NotFinite(Exception):
    """A model's outputs are not finite."""


IGNORED = -100  # the label of a token that does not count


@dataclass(frozen=True)
class Encoded:
    """One split as the model's inputs, one row per example.

    cut: whether each row was truncated. letters: see `trainer.data.tokens.Tokens`.
    """

    rows: Rows
    cut: np.ndarray
    letters: np.ndarray


@dataclass(frozen=True)
class Predictions:
    """A model's predictions, one entry per example.

    stats: numbers by name, whose sums determine the metrics. outputs: the model's raw outputs (examples, …), if the
    kind keeps them.
    """

    reference: Sequence[Any] | np.ndarray
    prediction: Sequence[Any] | np.ndarray
    stats: Mapping[str, np.ndarray]
    outputs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.reference)


@dataclass(frozen=True)
class Prompt:
    """A text of one's own as the inputs of a model that writes, in a batch of one.

    letters: see `trainer.data.tokens.Tokens`. cut: how much of it is read, in words; empty for all.
    """

    inputs: Mapping[str, torch.Tensor]
    letters: int
    cut: str = ""


@dataclass(eq=False)
class Objective:
    """A kind of task, for one task. content: its examples. asked: the names of its metrics, the run's metric first."""

    content: TaskData
    asked: tuple[str, ...]

    kind: ClassVar[str]
    unit: ClassVar[str] = "token"  # of throughput and of the largest batch
    example: ClassVar[str] = "text"  # the name of an example
    tokens: ClassVar[bool] = True  # whether the model reads a text's tokens, and nothing else
    auto_class: ClassVar[str]  # transformers' class of the model: AutoModelFor…
    peft_task: ClassVar[str | None]  # one of peft.TaskType; None where PEFT has none for it
    metrics: ClassVar[Mapping[str, Metric]]
    smooth: ClassVar[tuple[str, ...]] = ()  # stats that rounding changes only a little
    predicts_tokens: ClassVar[bool] = False  # whether the model predicts each token of any text from those before it

    # -- before a run ---------------------------------------------------------------------------

    def check(self) -> None:
        """Raises `ConfigError` or `ValueError` if settings, metrics and rows don't fit together."""

    @property
    def title(self) -> str:
        """The kind's name in a sentence."""
        return self.kind.replace("_", " ")

    @property
    def outputs(self) -> int | None:
        """The number of outputs of the model's head; None for a kind without a head of its own."""
        return None

    @property
    def architecture(self) -> Architecture:
        """The architecture that loads a checkpoint."""
        return Architecture(self.auto_class, self.outputs, self.tokens)

    def processor(self, folder: Path) -> Any:
        """Returns what makes the inputs of the model in `folder`: a tokenizer or a processor of transformers."""
        return models.tokenizer(folder, self.architecture)

    def longest(self, processor: Any, max_length: int) -> int:
        """Returns the units of the longest row of a kind without tokens, after which rows are cut if they are at all.

        max_length: `data.max_length`, which only `encode` reads.
        """
        return max_length

    def peft_task_of(self, inputs: Sequence[str]) -> str | None:
        """`peft_task` for a model that takes `inputs`; None where PEFT's class for the task leaves one of them out."""
        return self.peft_task

    @staticmethod
    def head(model: Any) -> tuple[str, ...]:
        """Returns the names of the task's modules in `model`, which every method trains.

        Raises `ConfigError` for a model without the head that the kind needs.
        """
        raise NotImplementedError

    def check_model(self, model: Any, tokenizer: Any) -> None:
        """Raises `ConfigError` if this model (without weights) can't perform the task. tokenizer: its `processor`."""

    def check_loaded(self, model: Any, tokenizer: Any, rows: Rows) -> None:
        """Raises `ConfigError` if the model with its weights doesn't behave as the kind needs.

        model: in float32, as in its checkpoint. rows: of the evaluation.
        """

    def refuse_sharding(self, model: Any, tokenizer: Any) -> None:
        """Raises `ConfigError` if processes may run different layers, for they gather a sharded one at once."""

    def describe(self, config: Any) -> Any:
        """Replaces the checkpoint's task in a model's config by this task, and returns the config."""
        return config

    def predicting(self, content: TaskData, referenced: bool) -> Objective:
        """The same kind, for predictions on the one split of `content`, rows of a user's own.

        referenced: whether what is right is known, and no stand-in.
        """
        return replace(self, content=content)

    @property
    def general(self) -> Objective | None:
        """The task of general texts on which the model is measured before and after training, too; None for none."""
        return None

    # -- rows -----------------------------------------------------------------------------------

    def texts(self, split: str) -> list[Sequence[str]]:
        """Returns the columns that keep rows together: rows with a common entry are on one side of a split."""
        raise NotImplementedError

    @property
    def pairs(self) -> bool:
        """Whether an example is two texts, which the tokenizer separates by special tokens."""
        return False

    @property
    def of_texts(self) -> bool:
        """Whether an example is one or two texts with a class or a number."""
        return False

    def encode(self, split: str, folder: Path, max_length: int) -> Encoded:
        """Encodes a split for the model in `folder`, in at most `max_length` units per row."""
        raise NotImplementedError

    def for_training(self, rows: Rows, folder: Path, max_length: int) -> Rows:
        """Makes the training rows from the encoded rows of examples."""
        return rows

    def for_evaluation(self, rows: Rows, folder: Path, max_length: int) -> Rows:
        """Makes the evaluation rows from the encoded rows of examples, in an order that needs little padding."""
        return rows.longest_first()

    def check_training(self, rows: Rows, limit: int | None) -> None:
        """Raises `ConfigError` for training rows that teach nothing. limit: `data.limit`."""

    def pad(self, folder: Path) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """Returns the function that makes a batch's tensors from its rows, `labels` included."""
        raise NotImplementedError

    def weigh(self, labels: torch.Tensor, rows: Sequence[int]) -> int:
        """Returns the weight of a batch with these labels. rows: for each row 1, or 0 if it must not count."""
        return sum(rows)

    # -- steps ----------------------------------------------------------------------------------

    def size(self, batch: Batch) -> int:
        """Returns the units of a batch, padding included."""
        return batch.inputs["input_ids"].numel()

    def units(self, batch: Batch) -> torch.Tensor:
        """Returns the units of the rows that count, without padding, as a number on the batch's device."""
        mask = batch.inputs.get("attention_mask")  # a model without a mask reads the padding, too
        return (torch.tensor(self.size(batch)) if mask is None else mask.sum()) * (batch.weight > 0)

    def padded_apart(self, rows: Rows) -> list[Sequence[int]]:
        """Returns the units of each row, once for every part of a row that is padded by itself."""
        return [rows.lengths]

    def size_of(self, lengths: Sequence[int], folder: Path) -> int:
        """Returns `size` of rows of these lengths, of one of `padded_apart`, for the model in `folder`."""
        return len(lengths) * max(lengths)

    def places(self, batch: Batch, folder: Path) -> torch.Tensor | None:
        """Returns which places of a batch's hidden states hold something of a row that counts, (rows, places).

        None means all places. Places whose token is not learned have nothing for a language model.
        """
        mask = batch.inputs.get("attention_mask")
        if mask is None or mask.ndim != 2:
            return None if batch.weight else torch.zeros(len(batch.labels), 1, dtype=torch.bool)
        real = mask.bool() & (batch.weight > 0)
        if batch.labels.shape == mask.shape:
            real &= batch.labels != IGNORED
        return real

    def loss(self, model: Network, batch: Batch) -> Loss:
        """Computes the task loss of a batch as a sum; its divisor is the batch's weight."""
        raise NotImplementedError

    @property
    def distils(self) -> bool:
        """Whether the loss is a function of the logits of classes or words, so that a teacher's can be learned."""
        return False

    def unit_logits(self, model: Network, batch: Batch) -> torch.Tensor:
        """Computes the logits (units, classes) of the rows or tokens that count, in at least float32."""
        raise NotImplementedError

    def loss_of(self, logits: torch.Tensor, batch: Batch) -> Loss:
        """Computes `loss` from `unit_logits`."""
        raise NotImplementedError

    def class_logits(self, model: Network, batch: Batch) -> torch.Tensor | None:
        """The outputs (rows, classes) of a batch; None for a kind without classes."""
        return None

    # -- evaluation -----------------------------------------------------------------------------

    def predict(self, model: Network, batch: Batch) -> list[Any]:
        """Returns what `evaluated` needs of each row of a batch, without tensors on a device."""
        raise NotImplementedError

    def evaluated(self, rows: Rows, found: Sequence[Any]) -> tuple[Predictions, float]:
        """Returns the predictions in the order of `rows.examples`, and the mean task loss.

        found: the results of `predict` for each of `rows`. Raises `NotFinite`.
        """
        raise NotImplementedError

    def score(self, predictions: Predictions) -> dict[str, float]:
        """Computes the requested metrics, in their order."""
        return {
            name: metrics.of_statistics(self.metrics[name], predictions.stats, len(predictions)) for name in self.asked
        }

    def outputs_of(self, model: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What a model makes of padded rows, as far as it must not depend on padding: (rows, …) in one shape.

        inputs: what the tokenizer makes of the rows.
        """
        return self.row_outputs(model(**inputs).logits, inputs)

    def row_outputs(self, logits: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """`outputs_of`, from a model's logits, for a kind whose models return them for the tokenizer's inputs alone."""
        return logits

    # -- texts that the model writes ------------------------------------------------------------

    @property
    def most_written(self) -> int | None:
        """At most so many tokens are written of a row; None for a kind whose models write nothing."""
        return None

    def writing_at_most(self, tokens: int) -> Objective:
        """The same kind, which writes at most `tokens` of a row."""
        raise NotImplementedError

    def prompted(self, text: str, folder: Path, max_length: int) -> Prompt:
        """Makes the inputs of `written` from a text, read and cut as the task's rows are. Raises `ConfigError`."""
        raise NotImplementedError

    def begun(self, rows: Sequence[Mapping[str, Any]], folder: Path, max_length: int) -> Mapping[str, torch.Tensor]:
        """Makes the inputs of `written` from rows; those without a prompt are continued from their first half."""
        raise NotImplementedError

    def written(self, model: Network, inputs: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns what the model writes of each row of a batch: the likeliest token each time."""
        raise NotImplementedError

    # -- reports --------------------------------------------------------------------------------

    @property
    def higher_is_better(self) -> bool:
        return self.metrics[self.asked[0]].higher_is_better

    @property
    def percent(self) -> bool:
        return self.metrics[self.asked[0]].percent

    @property
    def positive_class(self) -> str | None:
        """The class of a requested metric that concerns one class, such as f1; None without such a metric."""
        return None

    @property
    def formulas(self) -> dict[str, str]:
        """The formulas of the requested metrics by name, which are stored with the predictions."""
        return {name: text for name in self.asked if (text := self.metrics[name].formula) is not None}

    def notes(self, splits: Mapping[str, Rows]) -> list[tuple[bool, str]]:
        """Returns lines that a reader of the metrics must know about the rows, each with whether it is a warning."""
        return []


def refuse_headless(model: Any, head: tuple[str, ...]) -> tuple[str, ...]:
    """Returns `head`. Raises `ConfigError` if it is empty."""
    if not head:
        kind = type(model).__name__
        raise ConfigError(f"model: {kind}, allowed: a model whose head is outside its backbone")
    return head
