"""Models of texts' classes by hand, as runs on such tasks load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.model import backbone as models
from trainer.model.architecture import Architecture
from trainer.objectives.sequence_classification import SequenceClassification


def classifier(labels: int = 2) -> Architecture:
    return Architecture(SequenceClassification.auto_class, labels)


def pristine(folder: Path, labels: int, *arguments: Any, **options: Any) -> models.LoadedBackbone:
    return models.load_backbone(folder, classifier(labels), SequenceClassification.head, *arguments, **options)
