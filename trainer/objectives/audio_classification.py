"""A sound and its class, with the feature extractor that a checkpoint comes with.

Sounds stay encoded in memory, and each batch decodes its own; all of them are decoded once before the first run. The
outputs of a row don't depend on its batch, see `sound_inputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from trainer.data.rows import Rows
from trainer.model import backbone as models
from trainer.objectives import sound_inputs
from trainer.objectives.file_classification import FileClassification
from trainer.objectives.objective import Encoded

if TYPE_CHECKING:
    from trainer.loop.batches import Batch
    from trainer.loop.network import Network


@dataclass(eq=False)
class AudioClassification(sound_inputs.OfSounds, FileClassification):
    """Rows have `audio`, a WAV file, and `label`, the number of its class."""

    kind: ClassVar[str] = "audio_classification"
    content_column: ClassVar[str] = "audio"
    auto_class: ClassVar[str] = "AutoModelForAudioClassification"

    # -- before a run ---------------------------------------------------------------------------

    def processor(self, folder: Path) -> Any:
        return models.feature_extractor(folder)

    def longest(self, processor: Any, max_length: int) -> int:
        return sound_inputs.window(processor) or max_length

    def check_model(self, model: Any, processor: Any) -> None:
        sound_inputs.check_extractor(model, processor)

    def check_loaded(self, model: Any, processor: Any, rows: Rows) -> None:
        """Whether it takes inputs as its feature extractor makes them, and whether it reads padding."""
        sound_inputs.settle(model, processor, self.outputs_of)

    def refuse_sharding(self, model: Any, processor: Any) -> None:
        sound_inputs.refuse_sharding(model, processor)

    # -- rows -----------------------------------------------------------------------------------

    def encode(self, split: str, folder: Path, max_length: int) -> Encoded:
        """Sounds are not cut, except by a model that reads a window of fixed length."""
        columns, cut = self.sounds(split, folder)
        labels = np.asarray(self.content.splits[split]["label"][:])
        rows = Rows(columns, labels, np.arange(len(labels)), split=split)
        return Encoded(rows, cut, np.zeros(len(labels), dtype=np.int8))

    def pad(self, folder: Path) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        extractor = self.processor(folder)

        def padded(rows: list[dict[str, Any]]) -> Mapping[str, torch.Tensor]:
            found = sound_inputs.padded(extractor, [row["audio"] for row in rows])
            return found | {"labels": torch.tensor([int(row["labels"]) for row in rows])}

        return padded

    # -- steps ----------------------------------------------------------------------------------

    def outputs_of(self, model: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return sound_inputs.logits(model, inputs)

    def _logits(self, model: Network, batch: Batch) -> torch.Tensor:
        logits = self.outputs_of(model, batch.inputs)
        return logits if logits.dtype.itemsize >= 4 else logits.float()
