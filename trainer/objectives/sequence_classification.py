"""Classification and regression of texts or pairs of texts: GLUE, sentiment, inference, similarity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from trainer.data.rows import Rows
from trainer.data.tokens import tokens
from trainer.errors import ConfigError
from trainer.model import agreement
from trainer.model import backbone as models
from trainer.objectives import metrics
from trainer.objectives.metrics import METRICS, Classes, Metric
from trainer.objectives.objective import Encoded, NotFinite, Objective, Predictions, refuse_headless
from variants.core.step import Loss

if TYPE_CHECKING:
    from trainer.loop.batches import Batch
    from trainer.loop.network import Network

OF_CLASSES = ("accuracy", "f1", "f1_macro", "matthews")
OF_NUMBERS = ("pearson", "spearman", "rmse")


@dataclass(eq=False)
class SequenceClassification(Objective):
    """Rows have `text`, optionally `text_pair`, and `label`: a class id, or a number if the task has no classes.

    positive: the name of the class of f1, for a task with two classes; null means the second class.
    """

    positive: Any = None

    kind: ClassVar[str] = "sequence_classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task: ClassVar[str | None] = "SEQ_CLS"
    metrics: ClassVar[Mapping[str, Metric]] = {name: METRICS[name] for name in (*OF_CLASSES, *OF_NUMBERS)}

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.content.labels

    @property
    def title(self) -> str:
        if "label" not in self.content.column_names:
            return "classification or regression (task.kind is null)"
        return "regression" if self.labels is None else "classification"

    def check(self) -> None:
        there = self.content.column_names
        if not {"text", "label"} <= set(there):
            columns = ", ".join(name for name in there if name != "id")
            allowed = "allowed for a class or a number of each text: text, label; or another task.kind"
            raise ConfigError(f"task: columns {columns}, {allowed}")
        metrics.check(self.asked, OF_NUMBERS if self.labels is None else OF_CLASSES, self.title)
        metrics.classes(self.labels, self.positive, self.asked)

    @property
    def outputs(self) -> int:
        return 1 if self.labels is None else len(self.labels)

    @staticmethod
    def head(model: Any) -> tuple[str, ...]:
        return refuse_headless(model, models.head_modules(model))

    def check_model(self, model: Any, tokenizer: Any) -> None:
        agreement.refuse_another_end(model.config, tokenizer)

    def describe(self, config: Any) -> Any:
        return models.describe(config, self.labels)

    # -- rows -----------------------------------------------------------------------------------

    def _columns(self, split: str) -> list[str]:
        there = self.content.splits[split].column_names
        return ["text", "text_pair"] if "text_pair" in there else ["text"]

    def texts(self, split: str) -> list[Sequence[str]]:
        rows = self.content.splits[split]
        return [rows[name][:] for name in self._columns(split)]

    @property
    def pairs(self) -> bool:
        return len(self._columns("train")) == 2

    @property
    def of_texts(self) -> bool:
        return True

    def encode(self, split: str, folder: Path, max_length: int) -> Encoded:
        found = tokens(self.texts(split), folder, self.architecture, max_length)
        labels = np.asarray(self.content.splits[split]["label"][:])
        return Encoded(Rows(found.columns, labels, np.arange(len(labels)), split=split), found.cut, found.letters)

    def check_training(self, rows: Rows, limit: int | None) -> None:
        if self.labels is not None and len(set(rows.labels.tolist())) < 2:
            raise ConfigError(
                f"data.limit: {limit} leaves training rows of one class only, {len(self.labels)} are in the task"
            )

    def pad(self, folder: Path) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        from transformers import DataCollatorWithPadding

        collate: Any = DataCollatorWithPadding(models.tokenizer(folder, self.architecture))
        return collate

    # -- steps and evaluation -------------------------------------------------------------------

    def loss(self, model: Network, batch: Batch) -> Loss:
        """Computes the cross-entropy, or the squared error of a regression, summed over the rows."""
        return self.loss_of(self._logits(model, batch), batch)

    @property
    def distils(self) -> bool:
        return self.of_texts and self.labels is not None

    def unit_logits(self, model: Network, batch: Batch) -> torch.Tensor:
        return self._logits(model, batch)

    def class_logits(self, model: Network, batch: Batch) -> torch.Tensor:
        return self._logits(model, batch)

    def predict(self, model: Network, batch: Batch) -> list[Any]:
        """Returns for each row its outputs and the mean loss of its batch."""
        logits = self._logits(model, batch)
        mean = self.loss_of(logits, batch).mean.cpu().numpy()
        return [(row, mean) for row in logits.cpu().numpy()]

    def evaluated(self, rows: Rows, found: Sequence[Any]) -> tuple[Predictions, float]:
        outputs, losses = (np.stack(column) for column in zip(*found, strict=True))
        if not np.isfinite(outputs).all():
            raise NotFinite
        predicted = outputs.reshape(-1) if self.labels is None else outputs.argmax(-1)
        names = ["squared_error" if self.labels is None else "correct"]
        stats = metrics.statistics(names, predicted, rows.labels)
        return Predictions(rows.labels, predicted, stats, outputs), float(losses.mean())

    def score(self, predictions: Predictions) -> dict[str, float]:
        return metrics.compute(self.asked, predictions.prediction, predictions.reference, self._classes)

    def _logits(self, model: Network, batch: Batch) -> torch.Tensor:
        """Computes outputs (rows, classes) or (rows, 1), in at least float32."""
        logits: torch.Tensor = model(**batch.inputs).logits
        return logits if logits.dtype.itemsize >= 4 else logits.float()

    def loss_of(self, logits: torch.Tensor, batch: Batch) -> Loss:
        if self.labels is None:
            labels = batch.labels.to(logits.dtype)
            return Loss(F.mse_loss(logits.squeeze(-1), labels, reduction="sum"), batch.weight)
        return Loss(F.cross_entropy(logits, batch.labels, reduction="sum"), batch.weight)

    # -- reports --------------------------------------------------------------------------------

    @property
    def _classes(self) -> Classes:
        return metrics.classes(self.labels, self.positive, self.asked)

    @property
    def positive_class(self) -> str | None:
        return metrics.positive(self.asked, self.labels, self._classes)

    def notes(self, splits: Mapping[str, Rows]) -> list[tuple[bool, str]]:
        """Returns a line on the class of f1, and warnings of classes without rows."""
        found: list[tuple[bool, str]] = []
        if self.labels is None:
            return found
        if self.positive_class is not None:
            found.append((False, f"f1 is that of class {self.positive_class!r}; task.positive=… names another"))
        means = metrics.means_over_classes(self.asked, len(self.labels))
        for split, part in splits.items():
            there = set(part.labels.tolist())
            absent = [repr(name) for number, name in enumerate(self.labels) if number not in there]
            if absent:
                verb = "count" if len(means) > 1 else "counts"
                counts = f"; {' and '.join(means)} {verb} 0 for a class without rows" if means else ""
                found.append((True, f"no row of {split} has the label {', '.join(absent)}{counts}"))
        return found
