"""Encoded images as pixels, and what of an image can't be one."""

from __future__ import annotations

import io
from typing import Any

_DEEP = ("I", "F")  # PIL's modes of more than eight bits, which it would clip to them


def decoded(content: bytes, channels: int) -> Any:
    """The first picture of an encoded file (PNG, JPEG, …) as an `Image` of PIL, upright as its EXIF data says.

    channels: 1 for shades of grey, 3 for colours. Raises `ValueError` for what is no image that can be read, and for
    one with more than eight bits a channel.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content)) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except Exception as error:  # PIL's readers have no error in common
        raise ValueError(f"is no image that can be read ({type(error).__name__})") from None
    if image.mode.startswith(_DEEP):
        raise ValueError("has more than 8 bits a channel; allowed: 8")
    return image.convert("L" if channels == 1 else "RGB")
