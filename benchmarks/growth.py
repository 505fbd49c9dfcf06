"""Growth of LoRA's cost over the floor with the rank, the number of adapted layers and their width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import transformers

from benchmarks.stepper import Stepper, in_turn
from trainer.model import backbone as models
from variants.core.variant import Variant
from variants.head import Head
from variants.lora import LoRA

RANKS = (1, 4, 16, 64, 256)
BLOCKS = (1, 2, 4, 6)  # of the default model; each has six adapted layers
WIDTHS = (128, 256, 512, 1024)
WIDTHS_RANK = 64  # in a wide model the cost of rank 8 would be below the noise of a step


@dataclass(frozen=True)
class Growth:
    """over_floor: milliseconds by size. slope: of a linear fit; power: exponent of a power law."""

    over_floor: dict[int, float]
    slope: float
    unit: str


def measure(
    source: models.LoadedBackbone, batch: int, length: int, rounds: int, device: torch.device
) -> dict[str, Growth]:
    """The growth with "rank", "layers" and "width at rank 64"."""

    def over(source: models.LoadedBackbone, variants: Mapping[int, Variant]) -> dict[int, float]:
        steppers = {"floor": Stepper(source, Head(), batch, length, device)}
        steppers |= {str(size): Stepper(source, variant, batch, length, device) for size, variant in variants.items()}
        times = in_turn(steppers, rounds)
        return {size: times[str(size)].over_floor for size in variants}

    ranks = over(source, {rank: LoRA(rank=rank) for rank in RANKS})
    layers = over(source, {6 * blocks: LoRA(rank=8, layers=[0, blocks - 1]) for blocks in BLOCKS})
    widths = {width: over(_of_width(width), {width: LoRA(rank=WIDTHS_RANK)})[width] for width in WIDTHS}
    return {
        "rank": Growth(ranks, slope(ranks), "ms a rank"),
        "layers": Growth(layers, slope(layers), "ms a layer"),
        f"width at rank {WIDTHS_RANK}": Growth(widths, power(widths), "as the power of the width"),
    }


def _of_width(width: int) -> models.LoadedBackbone:
    """A random BERT with two blocks."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2, num_attention_heads=width // 32
    )
    model = transformers.BertForSequenceClassification(config)
    return models.LoadedBackbone(model, (), models.head_modules(model))


def slope(values: Mapping[int, float]) -> float:
    """Slope of the least-squares line."""
    return float(np.polyfit(list(values), list(values.values()), 1)[0])


def power(values: Mapping[int, float]) -> float:
    """p of c · sizeᵖ; NaN if noise made a cost negative or zero."""
    if min(values.values()) <= 0:
        return float("nan")
    return float(np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0])
