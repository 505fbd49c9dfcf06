"""What classifications of encoded files share, as of images and sounds: columns, classes, and no texts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from trainer.errors import ConfigError
from trainer.objectives import metrics
from trainer.objectives.metrics import METRICS, Metric
from trainer.objectives.sequence_classification import OF_CLASSES, SequenceClassification


@dataclass(eq=False)
class FileClassification(SequenceClassification):
    """Rows have `label`, the number of a class, and the column `content_column`, an encoded file."""

    content_column: ClassVar[str]

    tokens: ClassVar[bool] = False
    peft_task: ClassVar[str | None] = None
    metrics: ClassVar[Mapping[str, Metric]] = {name: METRICS[name] for name in OF_CLASSES}

    @property
    def title(self) -> str:
        return f"classification of {self.example}s"

    def check(self) -> None:
        there = self.content.column_names
        if not {self.content_column, "label"} <= set(there):
            columns = ", ".join(name for name in there if name != "id")
            raise ConfigError(f"task: columns {columns} for a {self.title}; allowed: {self.content_column}, label")
        if self.labels is None or len(self.labels) < 2:
            raise ConfigError(f"task: classes {', '.join(self.labels or ())} for a {self.title}; allowed: two or more")
        metrics.check(self.asked, OF_CLASSES, self.title)
        metrics.classes(self.labels, self.positive, self.asked)

    def texts(self, split: str) -> list[Sequence[str]]:
        return [[hashlib.sha256(file).hexdigest() for file in self.content.splits[split][self.content_column][:]]]

    @property
    def pairs(self) -> bool:
        return False

    @property
    def of_texts(self) -> bool:
        return False
