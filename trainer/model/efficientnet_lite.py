"""EfficientNet-Lite as transformers has none: without squeeze-and-excitation, with activations that end at 6.

Source: M. Tan, Q. V. Le, "EfficientNet", ICML 2019; the Lite0 of tensorflow/tpu, whose padding (more on the right and
below where it is odd) and batch norm (ε 0.001) its weights need. Names of layers are those of timm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

# Of each stage: blocks, kernel, stride of the first one, how much wider a block is inside, channels.
LITE0 = (
    *((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)),
    *((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
)
TYPE = "efficientnet_lite"


class EfficientNetLiteConfig(PretrainedConfig):
    """stages: see `LITE0`. stem, top: channels of the first and the last convolution."""

    model_type = TYPE
    num_channels: int = 3
    stem: int = 32
    top: int = 1280
    stages: Any = LITE0
    initializer_range: float = 0.02


class Padding(nn.Module):
    """The zeros around what a convolution of this size and stride reads; see the module's word on padding."""

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        around = []
        for length in (x.shape[-1], x.shape[-2]):
            lack = max((-(-length // self.stride) - 1) * self.stride + self.size - length, 0)
            around += [lack // 2, lack - lack // 2]
        return F.pad(x, around)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=0.001, momentum=0.01)


class Block(GradientCheckpointingLayer):
    """Widens its input where `wider` > 1, filters each channel by itself, narrows it, and adds it to the input."""

    def __init__(self, inner: int, outer: int, size: int, stride: int, wider: int) -> None:
        super().__init__()
        wide = inner * wider
        self.widens, self.adds = wider > 1, stride == 1 and inner == outer
        self.pad = Padding(size, stride)
        self.conv_dw = nn.Conv2d(wide, wide, size, stride, groups=wide, bias=False)
        if self.widens:
            self.conv_pw, self.bn1 = nn.Conv2d(inner, wide, 1, bias=False), _norm(wide)
            self.bn2 = _norm(wide)
            self.conv_pwl, self.bn3 = nn.Conv2d(wide, outer, 1, bias=False), _norm(outer)
        else:
            self.bn1 = _norm(wide)
            self.conv_pw, self.bn2 = nn.Conv2d(wide, outer, 1, bias=False), _norm(outer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.widens:
            h = F.relu6(self.bn1(self.conv_pw(x)))
            h = F.relu6(self.bn2(self.conv_dw(self.pad(h))))
            h = self.bn3(self.conv_pwl(h))
        else:
            h = F.relu6(self.bn1(self.conv_dw(self.pad(x))))
            h = self.bn2(self.conv_pw(h))
        return x + h if self.adds else h


class Pretrained(PreTrainedModel):
    config_class = EfficientNetLiteConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True


class EfficientNetLite(Pretrained):
    """Features (images, top) of pixels (images, channels, height, width) from −1 to 1."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.pad = Padding(3, 2)
        self.conv_stem = nn.Conv2d(config.num_channels, config.stem, 3, 2, bias=False)
        self.bn1 = _norm(config.stem)
        self.blocks, inner = nn.ModuleList(), config.stem
        for count, size, stride, wider, outer in config.stages:
            stage = nn.ModuleList()
            for number in range(count):
                stage.append(Block(inner, outer, size, 1 if number else stride, wider))
                inner = outer
            self.blocks.append(stage)
        self.conv_head, self.bn2 = nn.Conv2d(inner, config.top, 1, bias=False), _norm(config.top)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.bn1(self.conv_stem(self.pad(pixel_values))))
        for stage in self.blocks:
            for block in stage:  # type: ignore[attr-defined]
                x = block(x)
        return F.relu6(self.bn2(self.conv_head(x))).mean((2, 3))


class EfficientNetLiteForImageClassification(Pretrained):
    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.backbone = EfficientNetLite(config)
        self.classifier = nn.Linear(config.top, int(config.num_labels or 2))
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> ImageClassifierOutputWithNoAttention:
        features = self.backbone(pixel_values)
        return ImageClassifierOutputWithNoAttention(logits=self.classifier(features))


def register(auto: str) -> None:
    """Makes transformers' `AutoConfig` and its class of this name, of models with a head, know it."""
    AutoConfig.register(TYPE, EfficientNetLiteConfig, exist_ok=True)
    getattr(transformers, auto).register(EfficientNetLiteConfig, EfficientNetLiteForImageClassification, exist_ok=True)
