"""scikit-learn's digits as image files."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest

from trainer.data.sources import digits
from trainer.errors import ConfigError


def test_every_image_is_there_once_with_its_shades():
    from PIL import Image
    from sklearn.datasets import load_digits

    data = digits.Digits().load()
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 1452, "validation": 345}
    assert data.labels == tuple("0123456789")
    original, labels = load_digits(return_X_y=True)
    found = Counter()
    for rows in data.splits.values():
        for image, label in zip(rows["image"][:], rows["label"][:], strict=True):
            shades = np.asarray(Image.open(io.BytesIO(image)))
            assert shades.shape == (8, 8) and shades.dtype == np.uint8
            found[tuple(np.round(shades.reshape(-1) / 255 * 16)), label] += 1
    assert found == Counter((tuple(image), label) for image, label in zip(original, labels, strict=True))


def test_other_images_than_these_are_refused(monkeypatch):
    monkeypatch.setattr(digits, "_CONTENT", "0" * 64)
    with pytest.raises(ConfigError, match=r"scikit-learn's digits have the sha256 87ff0c9e.*; allowed: 0000"):
        digits.Digits().load()
