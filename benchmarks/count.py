"""What a training step costs beside LoRA's, counted and not timed, for the catalogue of methods.

    python -m benchmarks.count [--only METHOD …]

writes `variants/catalogue/costs.json`: {method: {"trained": …, "products": …}}, both divided by LoRA's of rank 8.
trained: parameters that get gradients, without the head. products: arithmetic of all matrix products and convolutions
in the forward pass, the backward pass, the method's hooks and the optimizer of one step, after masks and ranks have
been chosen where a method chooses. What is no product (gathering entries, sorting, decompositions) is not in it; times
are measured by `benchmarks.step_cost`. The model is one block of MiniLM's size with random weights, 32 texts of 64
tokens, and counts as one inside a model: the backward pass reaches its input, unless only the head trains. Methods have
the settings of `benchmarks.step_cost`, PEFT's those of their files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step_cost import METHODS, preset
from benchmarks.stepper import Stepper
from trainer.model import backbone as models
from variants.catalogue import cards
from variants.core.target_modules import inside
from variants.head import Head

BATCH, LENGTH = 32, 64
SIZES: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12}
NOT_COUNTED = ("base", "peft")  # takes no step; is whatever `method` says


def block() -> models.LoadedBackbone:
    """A classifier with one block of MiniLM's size and random weights."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(num_hidden_layers=1, vocab_size=1000, **SIZES)
    model = transformers.BertForSequenceClassification(config)
    return models.LoadedBackbone(model, (), models.head_modules(model))


def counted(source: models.LoadedBackbone, name: str) -> dict[str, int]:
    """Trained parameters and floating-point operations of products in one step of the method `name`."""
    torch.manual_seed(0)
    variant = METHODS[name]() if name in METHODS else preset(name)
    stepper = Stepper(source, variant, BATCH, LENGTH, torch.device("cpu"))
    model: Any = stepper.model
    if isinstance(variant, Head):
        model.disable_input_require_grads()  # a run of it ends the backward pass at the head
    else:
        model.get_input_embeddings().register_forward_hook(_reach)
    stepper.step()
    stepper.step()
    with FlopCounterMode(display=False) as counter:
        stepper.step()
    trained = [(n, p) for n, p in stepper.model.named_parameters() if p.requires_grad]
    return {
        "trained": sum(p.numel() for n, p in trained if not inside(n, source.head)),
        "products": counter.get_total_flops(),
    }


def _reach(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """A hook that makes the backward pass go down to `output`."""
    return output.requires_grad_(True)


def ratios(found: Mapping[str, int], lora: Mapping[str, int]) -> dict[str, float]:
    """Both numbers divided by LoRA's, to three digits."""
    return {key: float(f"{found[key] / lora[key]:.3g}") for key in lora}


def main() -> None:
    names = [method.name for method in cards.methods() if method.name not in NOT_COUNTED]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="METHOD", help="keeps other rows")
    only = parser.parse_args().only
    source = block()
    lora = counted(source, "lora")
    written: dict[str, Any] = json.loads(cards.COSTS.read_text()) if cards.COSTS.exists() else {}
    rows = {name: row for name, row in written.items() if name in names}
    for name in only:
        rows[name] = ratios(counted(source, name), lora)
        print(name, rows[name], flush=True)  # it takes minutes
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items())]
    cards.COSTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
