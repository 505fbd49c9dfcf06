"""Checks of the model that PEFT has wrapped, before the first step. Each raises a `ValueError` in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from variants.bridge.options import line
from variants.core.out_of_memory import is_out_of_memory
from variants.core.target_modules import inside


def refuse_changed(options: Mapping[str, Any], config: Any) -> None:
    """Refuse options whose values PEFT has replaced."""
    for option, value in options.items():
        actual = getattr(config, option)
        if isinstance(value, bool | int | float) and actual != value:
            raise ValueError(f"options.{option}: {value!r}, allowed: none; PEFT sets it to {actual!r}")


def refuse_layers(tuner: Any, names: Sequence[str], options: Mapping[str, Any], head: Sequence[str]) -> None:
    """Refuse adapted layers of the head, other layers than `names`, and patterns without a match.

    names: the layers that should be adapted; empty if PEFT chooses.
    """
    adapted = [name for name, module in tuner.model.named_modules() if isinstance(module, tuner.tuner_layer_cls)]
    for name in adapted:
        if inside(name, head):
            raise ValueError(f"targets: PEFT would adapt {name}, which belongs to the head, allowed: other names")
    if names and not options.get("target_parameters") and (other := set(names) ^ set(adapted)):
        raise ValueError(f"targets: PEFT can't tell {min(other)} from others by its name, allowed: other names")
    for option, value in options.items():
        if not (option.endswith("_pattern") and isinstance(value, Mapping)):
            continue
        for key in value:
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in adapted):  # as PEFT matches it
                raise ValueError(f"options.{option}: no adapted layer ends in {key!r}")


@torch.no_grad()
def refuse_model(method: str, model: Any, disabled: AbstractContextManager[None]) -> None:
    """Refuse models that can't use a prompt: those that fail, and those that ignore it.

    Whether padding changes a row's output is checked for every model on the rows of its run (`trainer.model.padding`).
    """
    base = model.get_base_model()
    what = f"method: {method}, which {type(base).__name__} can't have"
    pad = base.config.pad_token_id or 0
    token = next(number for number in range(base.get_input_embeddings().num_embeddings) if number != pad)
    row = torch.full((1, 3), token, device=base.device)
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    if base.config.is_encoder_decoder and base.get_output_embeddings() is not None:
        inputs["decoder_input_ids"] = torch.full_like(row[:, :1], base.config.decoder_start_token_id)
    training = model.training
    model.eval()
    try:
        prompted = model(**inputs)[0]
        with disabled:
            without = model(**inputs)[0]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{what}: {line(error)}") from error
    finally:
        model.train(training)
    if torch.equal(prompted, without):
        raise ValueError(f"{what}: the prompt changes nothing")
