"""Negative log-likelihoods of tokens, without the logits of all of them at once, which would be the largest tensor.

A language model ends in a linear layer that makes logits of hidden states. Within `of_tokens` that layer makes the
log-likelihoods instead: of the places that count alone, and of a part of them at a time, whose logits are freed before
the next part. The gradient of the hidden states is formed beside them and is all that is kept for the
backward pass, so no logit is computed twice.

The logits of a whole batch are formed where this would not be right: where the model changes them behind the layer
(Gemma 2's cap, a factor as Granite's), where the layer is adapted, trained, sharded or hooked, or where it is no linear
one. `torch.nn.functional.linear_cross_entropy` is not used: it returns bfloat16's losses in bfloat16, is slower, and
hides what it keeps from autograd's hooks, by which memory is counted.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import once_differentiable

from trainer.loop.network import Network
from trainer.model import backbone as models
from trainer.model.architecture import Architecture
from trainer.objectives.objective import IGNORED

ENTRIES = 2**22  # of the logits that are held at a time
FEWEST = 16  # rows of a part, even for a huge vocabulary: fewer would be slow


def of_tokens(
    network: Network,
    architecture: Architecture,
    targets: torch.Tensor,
    call: Callable[[], Any],
    count: int | None = None,
) -> torch.Tensor:
    """Returns −log p of `targets` (rows, length) where they count, else 0: float32, or float64 of such a model.

    call: runs the model, whose last places are those of the targets; returns its outputs, `logits` among them.
    count: how many of the targets count, where that is known without asking the device.
    """
    if not in_parts(network, architecture):
        logits = call().logits[:, -targets.shape[1] :]  # a method may have put words of its own in front
        logits = logits if logits.dtype.itemsize >= 4 else logits.float()
        losses = F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORED, reduction="none"
        )
        return losses.view(targets.shape)
    layer = network.model.get_output_embeddings()
    made: list[torch.Tensor] = []

    def likelihoods(hidden: torch.Tensor) -> torch.Tensor:
        made.append(_of_hidden(hidden[:, -targets.shape[1] :], layer, targets, count))
        return made[-1]

    with _replaced(layer, likelihoods):
        found = call().logits
    if found is not made[-1]:
        raise RuntimeError(f"{type(network.model).__name__} changes what its last layer makes")
    return made[-1]


def in_parts(network: Network, architecture: Architecture) -> bool:
    """Whether `of_tokens` forms no logits of a whole batch."""
    layer = network.model.get_output_embeddings()
    return (
        type(layer) is nn.Linear
        and all(type(p) is nn.Parameter and not p.requires_grad for p in layer.parameters())
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and _is_last(network.source, architecture)
    )


@functools.cache
def _is_last(source: Path, architecture: Architecture) -> bool:
    """Whether a model returns what its output layer makes as its logits, unchanged; asked of one without weights."""
    made: list[torch.Tensor] = []

    def note(hidden: torch.Tensor) -> torch.Tensor:
        made.append(F.linear(hidden, layer.weight, layer.bias))
        return made[-1]

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model: Any = models.skeleton(source, architecture).eval()
        ids = torch.ones((1, 2), dtype=torch.long, device="meta")
        inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        layer = model.get_output_embeddings()
        with _replaced(layer, note):
            try:
                found = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs).logits
            except (RuntimeError, NotImplementedError):
                return False  # its forward pass reads numbers, and fake tensors have none
    return len(made) == 1 and found is made[0]


@contextlib.contextmanager
def _replaced(layer: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def _of_hidden(hidden: torch.Tensor, layer: nn.Linear, targets: torch.Tensor, count: int | None) -> torch.Tensor:
    """Returns the negative log-likelihoods (rows, length) of targets, from the hidden states (rows, length, width)."""
    kind, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    counts = (targets != IGNORED).flatten()
    size = int(counts.sum()) if count is None else count
    torch._assert_async(counts.sum() == size)
    counted = torch.nonzero_static(counts, size=size)[:, 0]
    step = max(FEWEST, ENTRIES // len(layer.weight))
    states = hidden.flatten(0, 1).to(dtype)
    found: torch.Tensor = _Likelihoods.apply(states, layer.weight.to(dtype), bias, targets.flatten(), counted, step)
    return found.view(targets.shape)


class _Likelihoods(torch.autograd.Function):
    """−log softmax(W h + b) of targets (n,) at the places `counted`, else 0. h: states (n, width); W, b: frozen."""

    @staticmethod
    def forward(
        ctx: Any, states: Any, weight: Any, bias: Any, targets: Any, counted: torch.Tensor, step: int
    ) -> torch.Tensor:
        wanted = states.dtype if states.dtype.itemsize >= 4 else torch.float32
        losses = states.new_zeros(len(targets), dtype=wanted)
        gradient = torch.zeros_like(states) if ctx.needs_input_grad[0] else None
        with torch.autocast(states.device.type, enabled=False):
            for first in range(0, len(counted), step):
                places = counted[first : first + step]
                right = targets[places]
                log_p = F.log_softmax(F.linear(states[places], weight, bias), 1, dtype=wanted)
                losses[places] = F.nll_loss(log_p, right, reduction="none")
                if gradient is not None:
                    p = log_p.exp_()
                    p[torch.arange(len(p), device=p.device), right] -= 1
                    gradient[places] = p.to(weight.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable  # a second derivative would miss what the softmax adds to it
    def backward(ctx: Any, *of_losses: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return (gradient * of_losses[0][:, None]).to(gradient.dtype), None, None, None, None, None
