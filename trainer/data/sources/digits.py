"""Handwritten digits, 8 × 8 pixels in 17 shades of grey: 1,797 images from scikit-learn.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository 1998
(CC BY 4.0): the test set, by 13 writers.

A hash of the pixels assigns a fifth of the images to the validation split; no image occurs twice. The data does not
name the writers, so both splits have images by the same writers.

Train 1,452, validation 345.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

from trainer.data.sources.columns import row_id, rows_data, split_by_text
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError

_VALIDATION = 0.2
_CONTENT = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"  # sha256 over the shades, then the labels


class Digits:
    def load(self) -> TaskData:
        """Returns train and validation with `image`, a PNG of shades 0 to 255, and `label`. Raises `ConfigError`."""
        import numpy as np
        from sklearn.datasets import load_digits

        unique: dict[str, tuple[str, dict[str, Any]]] = {}
        images, labels = (values.astype(np.uint8) for values in load_digits(return_X_y=True))
        if (content := hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()) != _CONTENT:
            raise ConfigError(f"task.source: scikit-learn's digits have the sha256 {content}; allowed: {_CONTENT}")
        for image, label in zip(images.reshape(-1, 8, 8), labels, strict=True):
            pixels = np.round(image * (255 / 16)).astype(np.uint8)
            key = pixels.tobytes().hex()
            unique.setdefault(key, (key, {"id": row_id(key), "image": _png(pixels), "label": int(label)}))
        return rows_data(
            split_by_text(unique.values(), _VALIDATION), "task.source", [str(digit) for digit in range(10)]
        )

    def identity(self) -> dict[str, str]:
        """Returns nothing: this file pins the content."""
        return {}


def _png(pixels: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
