"""What a model makes of a text must not depend on the texts beside it in a batch, nor on the padding they bring.

Padding on the wrong side changes outputs wherever positions are counted from the first place, a head reads the last
one, a mask does not reach a layer, or a method puts words of its own in front. So before training one row goes through
the model by itself and beside a longer one; where that makes a difference, padding goes to the other side.
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
    from trainer.data.rows import Prepared

log = logging.getLogger(__name__)

MORE = 8  # tokens of padding: enough to move positions and the last place, few enough to cost nothing
# Changes of outputs, of the largest of them, in float32. Another length is summed up in another order, which changes
# outputs by up to 2e-6 in small models; padding that is read changes them by 1e-2 and more.
TOLERANCE = 1e-4
# Of what wraps the model and starts small (a prompt in front): its own change, beyond ten times the model's rounding.
TOLERANCE_WRAPPED = 1e-5
_OTHER = {"left": "right", "right": "left"}

RowOutputs = Callable[[Callable[..., Any], Mapping[str, torch.Tensor]], torch.Tensor]


def settle(
    model: nn.Module, tokenizer: Any, rows: Prepared, outputs: RowOutputs, field: str, tolerance: float = TOLERANCE
) -> float:
    """Makes `tokenizer` pad on a side on which padding changes no output of `model`: its own, or else the other.

    outputs: see `Objective.outputs_of`. field: of the config, which errors name. Returns the change that is left, see
    `TOLERANCE`. Raises `ConfigError` where both sides change outputs, and where the model can't take two rows at once.
    Neither the model nor any generator is another afterwards.
    """
    tokenizer.padding_side = own = tokenizer.init_kwargs.get("padding_side") or type(tokenizer).padding_side
    pair = _two_rows(rows, tokenizer.model_input_names)
    if "attention_mask" not in tokenizer.model_input_names:
        log.info("the model takes no attention mask: all texts are padded to %d tokens", rows.train.lengths[0])
    if pair is None:
        return 0.0
    try:
        changes = {own: _change(model, tokenizer, outputs, pair, own)}
        if changes[own] <= tolerance:
            return changes[own]
        _refuse_another_padding(model, tokenizer, field)
        other = _OTHER[own]
        changes[other] = _change(model, tokenizer, outputs, pair, other)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError) or is_out_of_memory(error):
            raise
        raise ConfigError(f"{field}: it can't take two texts of the task in one batch: {one_line(error)}") from error
    if changes[other] <= tolerance:
        tokenizer.padding_side = other
        log.info("padding goes to the %s: on the %s, the tokenizer's side, it changes a text's outputs", other, own)
        return changes[other]
    found = ", ".join(f"on the {side} by {change:.2g}" for side, change in changes.items())
    raise ConfigError(
        f"{field}: padding changes a text's outputs ({found} of the largest), so that they depend on the texts beside "
        "it; allowed: a model whose outputs don't"
    )


def settle_wrapped(model: nn.Module, tokenizer: Any, rows: Prepared, outputs: RowOutputs, rounding: float) -> None:
    """The same for what a variant made of a model whose own outputs change by `rounding`."""
    settle(model, tokenizer, rows, outputs, "variant", max(TOLERANCE_WRAPPED, 10 * rounding))


def _refuse_another_padding(model: Any, tokenizer: Any, field: str) -> None:
    """Raises `ConfigError` where model and tokenizer take different tokens for padding, when outputs depend on it."""
    reads, pads = model.config.get_text_config().pad_token_id, tokenizer.pad_token_id
    if reads != pads:
        raise ConfigError(
            f"{field}: its config takes token {reads} for padding (pad_token_id) and its tokenizer pads with {pads} "
            f"({tokenizer.pad_token!r}), so that a text's outputs depend on the texts beside it; allowed: one number"
        )


def _two_rows(rows: Prepared, inputs: Sequence[str]) -> list[dict[str, Any]] | None:
    """The inputs of the shortest row of the run and of a longer one; None where all are of one length."""
    parts: torch.utils.data.ConcatDataset = torch.utils.data.ConcatDataset([part for _, part in rows.splits()])
    lengths = np.concatenate([part.lengths for _, part in rows.splits()])
    shortest = int(lengths.argmin())
    longer = np.flatnonzero(lengths > lengths[shortest])
    if not len(longer):
        return None
    beside = longer[np.abs(lengths[longer] - lengths[shortest] - MORE).argmin()]
    return [{k: v for k, v in parts[int(row)].items() if k in inputs} for row in (shortest, beside)]


def _change(model: nn.Module, tokenizer: Any, outputs: RowOutputs, pair: list[dict[str, Any]], side: str) -> float:
    """Largest change of the first row's outputs by padding on `side`, over the largest of these outputs."""
    alone, padded = (
        _outputs(model, outputs, tokenizer.pad(rows, padding_side=side, return_tensors="pt"))[0]
        for rows in (pair[:1], pair)
    )
    return float((alone - padded).abs().max() / alone.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


@torch.no_grad()
def _outputs(model: nn.Module, outputs: RowOutputs, batch: dict[str, Any]) -> torch.Tensor:
    """Outputs (rows, …) without dropout; what `model` holds in half precision is taken as float32."""
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
