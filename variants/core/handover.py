"""Exporting a trained model: as plain low-rank adapters, as a PEFT model, or truncated to a lower rank.

    products(adapter, [None, 4, 1])                         # ΔW = B A at its full rank, and truncated to 4 and to 1
    replace_adapters(model, adapters, {name: update, …})    # plain low-rank adapters in place of the method's own
    to_peft(model, adapters, head).save_pretrained(folder)

Every method exports ΔW of each layer. An adapter with factors exports these (`Adapter.as_product`); others export the
SVD of ΔW at its numerical rank. Both are exact up to rounding. A lower rank must be asked for, and its error is part of
the result.

Only `to_peft` needs PEFT.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import statistics
import warnings
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from variants.core import attention, quantization, target_modules
from variants.core.adapters import svd
from variants.core.adapters.adapter import Adapter, LowRank


class CannotHandOver(ValueError):
    """The trained model can't be exported in this form: one line that says why, and what is allowed."""


@dataclass(frozen=True)
class Update:
    """ΔW ≈ B A of one layer. A: (r, in). B: (out, r).

    full_rank: numerical rank of ΔW. relative_error: ‖ΔW − B A‖ / ‖ΔW‖. norm: ‖ΔW‖, Frobenius.
    """

    A: torch.Tensor
    B: torch.Tensor
    full_rank: int
    relative_error: float
    norm: float

    @property
    def rank(self) -> int:
        return len(self.A)

    @property
    def is_exact(self) -> bool:
        """Whether B A is ΔW up to rounding."""
        return self.rank == self.full_rank

    @property
    def parameters(self) -> int:
        return self.A.numel() + self.B.numel()


@torch.no_grad()
def products(adapter: Adapter, ranks: Sequence[int | None] = (None,)) -> list[Update]:
    """Return ΔW of `adapter` in evaluation mode at each of `ranks`, at most its full rank; None means the full rank.

    Raises `CannotHandOver` for an adapter that trains more than ΔW.
    """
    if (beside := adapter.beside_delta()) is not None:
        raise CannotHandOver(f"{beside} is part of no low-rank product; allowed: merged")
    training = adapter.training
    adapter.eval()
    try:
        delta, (a, b) = adapter.delta().double(), adapter.as_product()
    finally:
        adapter.train(training)
    spectrum = svd.of_product(a, b)
    # If ΔW is a difference of products, it has fewer digits than its parts, so the error is relative to their size.
    if svd.size(delta - b.double() @ a.double()) > 1e-4 * spectrum.size:
        raise RuntimeError(f"{type(adapter).__name__}.as_product() is not ΔW as delta() gives it")
    full, norm = spectrum.rank, svd.size(delta)
    updates = []
    for rank in ranks:
        truncated = full if rank is None else min(rank, full)
        # The adapter's own factors are exported bit for bit if they have exactly this rank.
        a_r, b_r = (a, b) if truncated == len(a) else spectrum.product(truncated)
        error = svd.size(delta - b_r.double() @ a_r.double())
        updates.append(Update(a_r, b_r, full, error / norm if norm else 0.0, norm))
    return updates


def replace_adapters(model: nn.Module, adapters: MutableMapping[str, Adapter], updates: Mapping[str, Update]) -> None:
    """Replace `adapters`, in the model and in the mapping, by plain low-rank adapters that compute `updates`."""
    for name, update in updates.items():
        plain = LowRank(adapters[name].base, 1, 1.0)
        plain.A, plain.B = (nn.Parameter(m.to(plain.A.device, copy=True)) for m in (update.A, update.B))
        plain.kernel = adapters[name].kernel
        target_modules.replace(model, name, plain.train(model.training))
        adapters[name] = plain


def to_peft(model: nn.Module, adapters: Mapping[str, Adapter], head: Sequence[str]) -> Any:
    """Return a `peft.PeftModel` with LoRA layers that compute ΔW and the trained head in `modules_to_save`.

    Layers with rank 0 are left out. `model` and `adapters` can't be used afterwards. Raises `CannotHandOver`.
    """
    import peft

    updates = {name: products(adapter)[0] for name, adapter in adapters.items()}
    kept = {name: update for name, update in updates.items() if update.rank}
    if not kept:
        raise CannotHandOver(f"all {len(updates)} layers have rank 0, PEFT needs one with more; allowed: merged")
    for name in kept:
        _refuse_kind(name, adapters[name].layer_kind.layer)
        _refuse_attention(name, model)
    unwrap(model, adapters)
    usual = statistics.mode(update.rank for update in kept.values())
    # With ^ a key matches one layer only, and no other whose name ends in it.
    others = {f"^{re.escape(name)}": update.rank for name, update in kept.items() if update.rank != usual}
    config: Any = peft.LoraConfig(
        r=usual,
        lora_alpha=usual,  # α/r = 1: the scale is in B
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=_patterns(model, list(kept)),
        modules_to_save=list(head),
    )
    with quiet_peft():
        wrapped: Any = peft.get_peft_model(model, config)
    _check_wrapped(wrapped, set(kept), set(head))
    order_sets(config)
    for name, update in kept.items():
        _fill(wrapped.base_model.model.get_submodule(name), update)
    return wrapped.eval()


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Context without two of PEFT's warnings: a deprecated name of transformers, a flag set by the kind of layer."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        yield


def unwrap(model: nn.Module, adapters: Mapping[str, Adapter]) -> None:
    """Put the layers back in the place of their adapters, and torch's attention in that of its layers.

    Quantised layers are plain again, with the same numbers.
    """
    for name, adapter in adapters.items():
        target_modules.replace(model, name, adapter.base)
    quantization.dequantize(model)
    attention.close(model)


def _patterns(model: nn.Module, names: list[str]) -> list[str] | str:
    """Return `target_modules` that match exactly `names`: the list, or a pattern if another module ends in one."""
    endings = tuple(f".{name}" for name in names)
    if any(name.endswith(endings) and name not in names for name, _ in model.named_modules()):
        return "|".join(map(re.escape, names))
    return names


@torch.no_grad()
def _fill(layer: Any, update: Update) -> None:
    """Copy the factors into a LoRA layer of PEFT's."""
    is_embedding = "default" in layer.lora_embedding_A
    parts = (layer.lora_embedding_A, layer.lora_embedding_B) if is_embedding else (layer.lora_A, layer.lora_B)
    for part, value in zip(parts, (update.A, update.B), strict=True):
        weight = part["default"] if is_embedding else part["default"].weight
        weight.copy_(value.reshape(weight.shape))


def _refuse_kind(name: str, layer: Any) -> None:
    """Refuse convolutions that PEFT's LoRA layer would compute without two of the layer's settings.

    PEFT's A reads the channels of all groups at once, so that an update of grouped filters is none of PEFT's.
    """
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return
    if layer.padding_mode != "zeros" or set(layer.dilation) != {1} or layer.groups != 1:
        setting = f"padding_mode={layer.padding_mode}, dilation={layer.dilation}, groups={layer.groups}"
        raise CannotHandOver(
            f"{name} is a {type(layer).__name__} with {setting}, PEFT supports zeros, 1 and 1; allowed: merged"
        )


def _refuse_attention(name: str, model: nn.Module) -> None:
    """Refuse a layer of torch's attention, whose maps PEFT adapts at one common rank, those of its input as one."""
    owner = name.rpartition(".")[0]
    if isinstance(model.get_submodule(owner), attention.OpenAttention):
        raise CannotHandOver(f"{name} is a part of a MultiheadAttention, which PEFT adapts as a whole; allowed: merged")


def order_sets(config: Any) -> None:
    """Sort the config's sets of names; sets are unordered, so files of two processes would differ."""
    for field in dataclasses.fields(config):
        if isinstance(value := getattr(config, field.name), set):
            setattr(config, field.name, sorted(value))


def _check_wrapped(model: Any, adapted: set[str], head: set[str]) -> None:
    """Refuse a model in which PEFT, which matches the ends of names, has wrapped other modules than intended."""
    wrapped: dict[str, set[str]] = {"lora_A": set(), "modules_to_save": set()}
    for name, module in model.base_model.model.named_modules():
        for attribute, names in wrapped.items():
            if hasattr(module, attribute):
                names.add(name)
    for names, intended in zip(wrapped.values(), (adapted, head), strict=True):
        if names != intended:
            wrong = ", ".join(sorted(names ^ intended))
            raise CannotHandOver(f"PEFT can't tell {wrong} from others by its name; allowed: merged")


__all__ = ["CannotHandOver", "Update", "order_sets", "products", "quiet_peft", "replace_adapters", "to_peft", "unwrap"]
