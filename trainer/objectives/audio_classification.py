"""A sound and its class, with the feature extractor that a checkpoint comes with.

Sounds stay encoded in memory, and each batch decodes its own; all of them are decoded once before the first run. The
outputs of a row don't depend on its batch, see `sound_inputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
class AudioClassification(FileClassification):
    """Rows have `audio`, a WAV file, and `label`, the number of its class."""

    kind: ClassVar[str] = "audio_classification"
    unit: ClassVar[str] = "sample"
    example: ClassVar[str] = "sound"
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
        table, extractor = self.content.splits[split], self.processor(folder)
        lengths, window = sound_inputs.lengths(self.content, split, extractor), sound_inputs.window(extractor)
        if window is None:
            model = models.skeleton(folder, self.architecture)
            sound_inputs.refuse_short(self.content, split, lengths, model, extractor)
        contents = np.empty(len(lengths), dtype=object)
        contents[:] = table["audio"][:]
        columns = {"audio": contents, "units": lengths if window is None else np.full_like(lengths, window)}
        cut = np.zeros(len(lengths), dtype=bool) if window is None else lengths > window
        rows = Rows(columns, np.asarray(table["label"][:]), np.arange(len(lengths)), split=split)
        return Encoded(rows, cut, np.zeros(len(lengths), dtype=np.int8))

    def pad(self, folder: Path) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        extractor = self.processor(folder)

        def padded(rows: list[dict[str, Any]]) -> Mapping[str, torch.Tensor]:
            found = sound_inputs.padded(extractor, [row["audio"] for row in rows])
            return found | {"labels": torch.tensor([int(row["labels"]) for row in rows])}

        return padded

    # -- steps ----------------------------------------------------------------------------------

    def size(self, batch: Batch) -> int:
        return sound_inputs.size(batch.inputs)

    def size_of(self, lengths: Sequence[int], folder: Path) -> int:
        return sound_inputs.size_of(lengths, self.processor(folder))

    def units(self, batch: Batch) -> torch.Tensor:
        """Samples at the model's rate, without padding."""
        return batch.inputs[sound_inputs.COUNTS].sum() * (batch.weight > 0)

    def places(self, batch: Batch, folder: Path) -> torch.Tensor | None:
        """Frames, which are what the model makes of samples."""
        if not batch.weight:
            return super().places(batch, folder)
        return sound_inputs.places(batch.inputs, models.skeleton(folder, self.architecture))

    def outputs_of(self, model: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return sound_inputs.logits(model, inputs)

    def _logits(self, model: Network, batch: Batch) -> torch.Tensor:
        logits = self.outputs_of(model, batch.inputs)
        return logits if logits.dtype.itemsize >= 4 else logits.float()
