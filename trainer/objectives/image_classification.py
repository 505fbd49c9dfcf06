"""An image and its class, with the processor of images that a checkpoint comes with.

Images stay encoded in memory, and each batch decodes its own. All of them are decoded once before the first run, so
that one that can't be read ends nothing later. Batch norms keep the statistics that they were trained with, see
`trainer.model.backbone.fresh`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from trainer.data import images
from trainer.data.rows import Rows
from trainer.errors import ConfigError, one_line
from trainer.model import agreement, efficientnet_lite
from trainer.model import backbone as models
from trainer.objectives.file_classification import FileClassification
from trainer.objectives.objective import Encoded
from variants.core.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from trainer.loop.batches import Batch


@dataclass(eq=False)
class ImageClassification(FileClassification):
    """Rows have `image`, an encoded file, and `label`, the number of its class."""

    kind: ClassVar[str] = "image_classification"
    unit: ClassVar[str] = "image"
    example: ClassVar[str] = "image"
    content_column: ClassVar[str] = "image"
    auto_class: ClassVar[str] = "AutoModelForImageClassification"

    # -- before a run ---------------------------------------------------------------------------

    def processor(self, folder: Path) -> Any:
        return models.image_processor(folder)

    def check_model(self, model: Any, processor: Any) -> None:
        if (channels := _channels(model.config)) not in (1, 3):
            raise ConfigError(f"model: it takes images of {channels} channels, allowed: 1, 3")

    def check_loaded(self, model: Any, processor: Any, rows: Rows) -> None:
        """Whether it takes images of the size that its processor makes."""
        image = images.decoded(rows[0]["image"], _channels(model.config))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                model.eval()(pixel_values=_pixels(processor, [image]))
        except (RuntimeError, ValueError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            raise ConfigError(
                f"model: it can't take images as its preprocessor_config.json makes them: {one_line(error)}"
            ) from error

    # -- rows -----------------------------------------------------------------------------------

    def encode(self, split: str, folder: Path, max_length: int) -> Encoded:
        table = self.content.splits[split]
        channels = _channels(models.model_config(folder, self.architecture))
        shapes = []  # width over height of each
        for row, content in enumerate(table["image"][:]):
            try:
                width, height = images.decoded(content, channels).size
            except ValueError as error:
                raise ConfigError(f"task: {agreement.row_name(self.content, split, row)} {error}") from None
            shapes.append(width / height)
        self._refuse_sizes(table, folder, channels, {int(np.argmin(shapes)), int(np.argmax(shapes))})
        contents = np.empty(len(shapes), dtype=object)
        contents[:] = table["image"][:]
        rows = Rows({"image": contents}, np.asarray(table["label"][:]), np.arange(len(shapes)), split=split)
        return Encoded(rows, np.zeros(len(shapes), dtype=bool), np.zeros(len(shapes), dtype=np.int8))

    def _refuse_sizes(self, table: Any, folder: Path, channels: int, extreme: set[int]) -> None:
        """Raises `ConfigError` where the narrowest and the widest image don't become tensors of one shape."""
        found = set()
        for row in extreme:
            with models.reading("its preprocessor_config.json"):
                image = images.decoded(table["image"][row], channels)
                found.add(tuple(_pixels(self.processor(folder), [image]).shape[1:]))
        if len(found) > 1:
            sizes = " and ".join(" × ".join(map(str, shape)) for shape in sorted(found))
            raise ConfigError(
                f"model: its preprocessor_config.json makes images of {sizes}; allowed: one size, as of a crop"
            )

    def pad(self, folder: Path) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        processor, channels = self.processor(folder), _channels(models.model_config(folder, self.architecture))

        def padded(rows: list[dict[str, Any]]) -> Mapping[str, torch.Tensor]:
            pixels = _pixels(processor, [images.decoded(row["image"], channels) for row in rows])
            return {"pixel_values": pixels, "labels": torch.tensor([int(row["labels"]) for row in rows])}

        return padded

    # -- steps ----------------------------------------------------------------------------------

    def size(self, batch: Batch) -> int:
        return len(batch.labels)

    def units(self, batch: Batch) -> torch.Tensor:
        return torch.tensor(batch.weight, device=batch.labels.device)


def _channels(config: Any) -> int:
    return int(getattr(config, "num_channels", 3))


def _pixels(processor: Any, pictures: list[Any]) -> torch.Tensor:
    """Tensors (images, channels, height, width)."""
    found: torch.Tensor = processor(pictures, return_tensors="pt")["pixel_values"]
    return found


efficientnet_lite.register(ImageClassification.auto_class)  # transformers has none of its own
