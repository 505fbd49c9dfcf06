"""Chooses the padding side so that a model's output for a text does not depend on the other texts in the batch.

Padding on the wrong side changes outputs if positions are counted from the first token, if a head reads the last token,
if a layer ignores the mask, or if a method prepends tokens. So before training one row is evaluated alone and together
with a longer row; if its outputs differ, the other side is tried.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from trainer.errors import ConfigError, one_line
from variants.core.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from trainer.data.rows import TaskSplits

log = logging.getLogger(__name__)

MORE = 8  # tokens of padding: enough to shift positions and the last token at little cost
# Largest change of an output relative to the largest output, in float32. Another length changes the order of sums, and
# outputs by up to 2e-6 in small models; padding that the model reads changes them by 1e-2 and more.
TOLERANCE = 1e-4
# For a wrapper that starts small (a prepended prompt); but at least ten times the rounding of the model itself.
TOLERANCE_WRAPPED = 1e-5
_OTHER = {"left": "right", "right": "left"}

RowOutputs = Callable[[Callable[..., Any], Mapping[str, torch.Tensor]], torch.Tensor]


def settle(
    model: nn.Module, tokenizer: Any, rows: TaskSplits, outputs: RowOutputs, field: str, tolerance: float = TOLERANCE
) -> float:
    """Sets the tokenizer's padding side to one that changes no output of `model`: its default side, or else the other.

    outputs: see `Objective.outputs_of`. field: of the config, for errors. Returns the remaining change, see
    `TOLERANCE`. Raises `ConfigError` if both sides change outputs, and if the model can't take two rows at once. The
    model and all random generators are left unchanged.
    """
    tokenizer.padding_side = default = tokenizer.init_kwargs.get("padding_side") or type(tokenizer).padding_side
    pair = _two_rows(rows, tokenizer.model_input_names)
    if "attention_mask" not in tokenizer.model_input_names:
        log.info("the model takes no attention mask, so all texts are padded to %d tokens", rows.train.lengths[0])
    if pair is None:
        return 0.0
    try:
        changes = {default: _change(model, tokenizer, outputs, pair, default)}
        if changes[default] <= tolerance:
            return changes[default]
        _refuse_another_padding(model, tokenizer, field)
        other = _OTHER[default]
        changes[other] = _change(model, tokenizer, outputs, pair, other)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError) or is_out_of_memory(error):
            raise
        raise ConfigError(f"{field}: it can't take two texts of the task in one batch: {one_line(error)}") from error
    if changes[other] <= tolerance:
        tokenizer.padding_side = other
        log.info(
            "padding is on the %s, because on the tokenizer's side, the %s, it changes a text's outputs", other, default
        )
        return changes[other]
    listing = ", ".join(f"on the {side} by {change:.2g}" for side, change in changes.items())
    raise ConfigError(
        f"{field}: padding changes a text's outputs ({listing} of the largest), so they depend on the other texts in "
        "the batch; allowed: a model whose outputs don't"
    )


def settle_wrapped(model: nn.Module, tokenizer: Any, rows: TaskSplits, outputs: RowOutputs, rounding: float) -> None:
    """Does the same for the model with its variant. rounding: the change of the model's outputs without the variant."""
    settle(model, tokenizer, rows, outputs, "variant", max(TOLERANCE_WRAPPED, 10 * rounding))


def _refuse_another_padding(model: Any, tokenizer: Any, field: str) -> None:
    """Raises `ConfigError` if model and tokenizer pad with different tokens; called if outputs depend on padding."""
    reads, pads = model.config.get_text_config().pad_token_id, tokenizer.pad_token_id
    if reads != pads:
        raise ConfigError(
            f"{field}: its config has token {reads} for padding (pad_token_id) and its tokenizer pads with {pads} "
            f"({tokenizer.pad_token!r}), so a text's outputs depend on the other texts in the batch; allowed: the same"
            " number"
        )


def _two_rows(rows: TaskSplits, inputs: Sequence[str]) -> list[dict[str, Any]] | None:
    """Returns the inputs of the run's shortest row and of a longer row; None if all have the same length."""
    everything: torch.utils.data.ConcatDataset = torch.utils.data.ConcatDataset([split for _, split in rows.splits()])
    lengths = np.concatenate([split.lengths for _, split in rows.splits()])
    shortest = int(lengths.argmin())
    longer = np.flatnonzero(lengths > lengths[shortest])
    if not len(longer):
        return None
    companion = longer[np.abs(lengths[longer] - lengths[shortest] - MORE).argmin()]
    return [{k: v for k, v in everything[int(row)].items() if k in inputs} for row in (shortest, companion)]


def _change(model: nn.Module, tokenizer: Any, outputs: RowOutputs, pair: list[dict[str, Any]], side: str) -> float:
    """Returns the largest change of the first row's outputs by padding on `side`, relative to the largest output."""
    alone, padded = (
        _outputs(model, outputs, tokenizer.pad(rows, padding_side=side, return_tensors="pt"))[0]
        for rows in (pair[:1], pair)
    )
    return float((alone - padded).abs().max() / alone.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


@torch.no_grad()
def _outputs(model: nn.Module, outputs: RowOutputs, batch: dict[str, Any]) -> torch.Tensor:
    """Computes outputs (rows, …) without dropout; weights in half precision are cast to float32."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    exact = {name: t.float() for name, t in tensors if t.is_floating_point() and t.dtype.itemsize < 4}
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            return outputs(lambda **inputs: torch.func.functional_call(model, exact, kwargs=inputs), batch)
    finally:
        for module in training:
            module.training = True
