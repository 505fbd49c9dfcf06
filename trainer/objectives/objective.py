"""What a kind of task is: the one thing that differs between classes of texts, language models and all others.

The loop, evaluations, the dry run, the record, exports and the analysis ask an objective and know no kind. A kind is a
file with one class: built in ones stand in `kinds.KINDS`, and one of your own is named by its dotted path
(`task.kind=my_module.MyKind`). Its fields with a default are its settings in the task's YAML.

An evaluation never holds a model's outputs for a whole split: `predict` makes of each batch what is needed of each of
its rows, and `evaluated` puts these together to one prediction and a few numbers for every example. Whatever is
reported over examples is a function of sums of these numbers (see `metrics`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    """A model gave outputs that are not finite."""


@dataclass(frozen=True)
class Encoded:
    """One split as the model's inputs, a row for each example.

    cut: for each whether something of it was cut off to fit. letters: see `trainer.data.tokens.Tokens`.
    """

    rows: Rows
    cut: np.ndarray
    letters: np.ndarray


@dataclass(frozen=True)
class Predictions:
    """What a model made of examples, each entry of one example.

    stats: numbers by name whose sums metrics are functions of. outputs: the model's raw outputs (examples, …) where
    the kind keeps them.
    """

    reference: Sequence[Any] | np.ndarray
    prediction: Sequence[Any] | np.ndarray
    stats: Mapping[str, np.ndarray]
    outputs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.reference)


@dataclass(eq=False)
class Objective:
    """A kind of task, for one task. content: its examples. asked: names of its metrics, the task's own first."""

    content: TaskData
    asked: tuple[str, ...]

    kind: ClassVar[str]
    unit: ClassVar[str] = "token"  # what throughput and the largest batch are counted in
    example: ClassVar[str] = "text"  # what one example is called
    tokens: ClassVar[bool] = True  # whether the model reads a text's tokens, and nothing else
    auto_class: ClassVar[str]  # transformers' class for it: AutoModelFor…
    peft_task: ClassVar[str | None]  # one of peft.TaskType, None where PEFT has none for it
    metrics: ClassVar[Mapping[str, Metric]]
    smooth: ClassVar[tuple[str, ...]] = ()  # of an example's numbers those that rounding moves a little, never a lot

    # -- before a run ---------------------------------------------------------------------------

    def check(self) -> None:
        """Raises `ConfigError` or `ValueError` for settings, metrics and rows that don't fit together."""

    @property
    def title(self) -> str:
        """The kind in a sentence."""
        return self.kind.replace("_", " ")

    @property
    def outputs(self) -> int | None:
        """How many outputs the model's head has, None for a kind without a head of its own."""
        return None

    @property
    def architecture(self) -> Architecture:
        """What a checkpoint is loaded as."""
        return Architecture(self.auto_class, self.outputs, self.tokens)

    def processor(self, folder: Path) -> Any:
        """What makes inputs of the model in `folder`: a tokenizer of transformers', or a processor."""
        return models.tokenizer(folder, self.architecture)

    @staticmethod
    def head(model: Any) -> tuple[str, ...]:
        """Names of the modules of `model` that belong to the task and are trained with every method.

        Raises `ConfigError` for a model without the head that the kind needs.
        """
        raise NotImplementedError

    def check_model(self, model: Any, tokenizer: Any) -> None:
        """Raises `ConfigError` where this model (without weights) can't do this task. tokenizer: its `processor`."""

    def check_loaded(self, model: Any, tokenizer: Any, rows: Rows) -> None:
        """Raises `ConfigError` where the model with its weights does something else than the kind needs.

        model: in float32, as its checkpoint has it. rows: that are evaluated.
        """

    def describe(self, config: Any) -> Any:
        """Writes the task into a model's config, in place of what its checkpoint was trained for; the config."""
        return config

    # -- rows -----------------------------------------------------------------------------------

    def texts(self, split: str) -> list[Sequence[str]]:
        """Columns of what must not be on both sides of a split: rows with an entry in common belong together."""
        raise NotImplementedError

    @property
    def pairs(self) -> bool:
        """Whether an example is two texts, between which the tokenizer puts special tokens."""
        return False

    @property
    def of_texts(self) -> bool:
        """Whether an example is a text, or two, for which a class or a number is predicted."""
        return False

    def encode(self, split: str, folder: Path, max_length: int) -> Encoded:
        """A split as inputs of the model in `folder`, in at most `max_length` units."""
        raise NotImplementedError

    def for_training(self, rows: Rows, folder: Path, max_length: int) -> Rows:
        """The rows that are trained on, made of those of some examples."""
        return rows

    def for_evaluation(self, rows: Rows, folder: Path, max_length: int) -> Rows:
        """The rows that are evaluated, made of those of some examples, in an order that pads little."""
        return rows.longest_first()

    def check_training(self, rows: Rows, limit: int | None) -> None:
        """Raises `ConfigError` for training rows from which nothing can be learned. limit: `data.limit`."""

    def pad(self, folder: Path) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """What makes the tensors of a batch of rows, `labels` among them."""
        raise NotImplementedError

    def weigh(self, labels: torch.Tensor, rows: Sequence[int]) -> int:
        """How much counts in a batch with these labels. rows: for each 1, or 0 for one that must not count."""
        return sum(rows)

    # -- steps ----------------------------------------------------------------------------------

    def size(self, batch: Batch) -> int:
        """Units of a batch, padding included."""
        return batch.inputs["input_ids"].numel()

    def units(self, batch: Batch) -> torch.Tensor:
        """Units of the rows that count, without padding; a number on the batch's device."""
        mask = batch.inputs.get("attention_mask")  # a model that takes none reads all places of a batch
        return (torch.tensor(self.size(batch)) if mask is None else mask.sum()) * (batch.weight > 0)

    def loss(self, model: Network, batch: Batch) -> Loss:
        """The task loss of a batch, summed over what its mean is of."""
        raise NotImplementedError

    # -- evaluation -----------------------------------------------------------------------------

    def predict(self, model: Network, batch: Batch) -> list[Any]:
        """What is needed of each row of a batch, without any tensor on a device."""
        raise NotImplementedError

    def evaluated(self, rows: Rows, found: Sequence[Any]) -> tuple[Predictions, float]:
        """What a model made of each example, in the order of `rows.examples`, and the mean task loss.

        found: of each of `rows` what `predict` gave. Raises `NotFinite`.
        """
        raise NotImplementedError

    def score(self, predictions: Predictions) -> dict[str, float]:
        """The metrics that are asked for, in their order."""
        return {
            name: metrics.of_statistics(self.metrics[name], predictions.stats, len(predictions)) for name in self.asked
        }

    def outputs_of(self, model: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What a model makes of padded rows, as far as it must not depend on padding: (rows, …) in one shape.

        inputs: what the tokenizer makes of the rows.
        """
        return self.row_outputs(model(**inputs).logits, inputs)

    def row_outputs(self, logits: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The same of logits, for a kind whose models give these for the tokenizer's inputs alone."""
        return logits

    # -- what is said ---------------------------------------------------------------------------

    @property
    def higher_is_better(self) -> bool:
        return self.metrics[self.asked[0]].higher_is_better

    @property
    def percent(self) -> bool:
        return self.metrics[self.asked[0]].percent

    @property
    def positive_class(self) -> str | None:
        """The class that a metric of one class is of, where one is asked for."""
        return None

    @property
    def formulas(self) -> dict[str, str]:
        """By name the formulas of the metrics that are asked for, which lie beside the predictions."""
        return {name: text for name in self.asked if (text := self.metrics[name].formula) is not None}

    def notes(self, splits: Mapping[str, Rows]) -> list[tuple[bool, str]]:
        """What a reader of the metrics must know of the rows: whether it is a warning, and a line."""
        return []


def refuse_headless(model: Any, head: tuple[str, ...]) -> tuple[str, ...]:
    """`head`. Raises `ConfigError` where there is none."""
    if not head:
        kind = type(model).__name__
        raise ConfigError(f"model: {kind}, allowed: a model whose head lies outside of its backbone")
    return head
