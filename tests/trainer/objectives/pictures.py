"""Images of two classes, dark on the left, or darker and on the right, and tiny models with random weights for them."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from trainer.model import efficientnet_lite

efficientnet_lite.register("AutoModelForImageClassification")
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}

FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "ViT": (
        transformers.ViTConfig,
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        | {"image_size": 16, "patch_size": 4, "initializer_range": 0.2},
    ),
    "ResNet": (
        transformers.ResNetConfig,
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "ConvNext": (transformers.ConvNextConfig, {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
    "EfficientNetLite": (
        efficientnet_lite.EfficientNetLiteConfig,
        {"stem": 8, "top": 16, "initializer_range": 0.4, "stages": [[1, 3, 1, 1, 8], [2, 5, 2, 2, 8]]},
    ),
}


def model(folder: Path, family: str = "ViT", **settings: Any) -> Path:
    """The family's model in `folder`, as `save_pretrained` writes it, and the processor of its images."""
    config, own = FAMILIES[family]
    torch.manual_seed(0)
    made = transformers.AutoModelForImageClassification.from_config(config(**(own | settings)))
    for module in made.modules():  # as after training: statistics that no batch has
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    made.save_pretrained(folder)
    transformers.ViTImageProcessorPil(size=PROCESSOR["size"]).save_pretrained(folder)
    return folder


def png(draw: random.Random, left: bool, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> bytes:
    image = Image.new(mode, size)
    for x in range(size[0]):
        dark = (x < size[0] / 2) == left
        for y in range(size[1]):
            shade = draw.randint(0, 60) if dark else draw.randint(200, 250) - (0 if left else 100)
            image.putpixel((x, y), (shade,) * 3 if mode == "RGB" else shade)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write(folder: Path, count: int = 24) -> Path:
    """A folder for each class, with images of different sizes."""
    draw = random.Random(0)
    for number in range(count):
        left = number % 2 == 0
        path = folder / ("left" if left else "right") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(draw, left, (8 + number % 5, 10), "L" if number % 3 == 0 else "RGB"))
    return folder
