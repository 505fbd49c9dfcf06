"""A trained model for others to load: plain low-rank adapters, a PEFT model, or cut to a lower rank.

    products(adapter, [None, 4, 1])                 # ΔW = B A at its own rank, and cut to 4 and to 1
    put(model, adapters, {name: update, …})         # plain low-rank adapters in the place of a method's own
    to_peft(model, adapters, head).save_pretrained(folder)

Whatever a method does in training, what it hands over is ΔW of each layer. A form that knows its factors gives
them as they are (`Adapter.as_product`); any other goes out through the SVD of ΔW, at its numerical rank. Both are
exact to rounding. A lower rank is one that was asked for, and its error is part of the result.

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

from variants.core import target_modules
from variants.core.adapters import svd
from variants.core.adapters.adapter import Adapter, LowRank


class CannotHandOver(ValueError):
    """What was trained has no such form: one line that says why, and what is allowed."""


@dataclass(frozen=True)
class Update:
    """ΔW ≈ B A of one layer. A: (r, in). B: (out, r).

    full_rank: what ΔW needs, to rounding. relative_error: ‖ΔW − B A‖ / ‖ΔW‖. norm: ‖ΔW‖, Frobenius.
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
        """Whether nothing but rounding is missing."""
        return self.rank == self.full_rank

    @property
    def parameters(self) -> int:
        return self.A.numel() + self.B.numel()


@torch.no_grad()
def products(adapter: Adapter, ranks: Sequence[int | None] = (None,)) -> list[Update]:
    """ΔW of `adapter`, as it is in evaluation, at each of `ranks`; None for its own, which no other exceeds."""
    training = adapter.training
    adapter.eval()
    try:
        delta, (a, b) = adapter.delta().double(), adapter.as_product()
    finally:
        adapter.train(training)
    spectrum = svd.of_product(a, b)
    # A difference of two products, as some methods have it, has fewer digits than its parts: these are the measure.
    if svd.size(delta - b.double() @ a.double()) > 1e-4 * spectrum.size:
        raise RuntimeError(f"{type(adapter).__name__}.as_product() is not ΔW as delta() gives it")
    full, norm = spectrum.rank, svd.size(delta)
    found = []
    for rank in ranks:
        cut = full if rank is None else min(rank, full)
        # Factors that the form knows go out bit for bit where none of them is one too many.
        a_cut, b_cut = (a, b) if cut == len(a) else spectrum.product(cut)
        error = svd.size(delta - b_cut.double() @ a_cut.double())
        found.append(Update(a_cut, b_cut, full, error / norm if norm else 0.0, norm))
    return found


def put(model: nn.Module, adapters: MutableMapping[str, Adapter], updates: Mapping[str, Update]) -> None:
    """Plain low-rank adapters that compute `updates`, in the place of `adapters`, in the model and in the mapping."""
    for name, update in updates.items():
        plain = LowRank(adapters[name].base, 1, 1.0)
        plain.A, plain.B = (nn.Parameter(m.to(plain.A.device, copy=True)) for m in (update.A, update.B))
        plain.kernel = adapters[name].kernel
        target_modules.replace(model, name, plain.train(model.training))
        adapters[name] = plain


def to_peft(model: nn.Module, adapters: Mapping[str, Adapter], head: Sequence[str]) -> Any:
    """A `peft.PeftModel` with LoRA layers that compute ΔW and the trained head in `modules_to_save`.

    Layers without a rank are no part of it. `model` and `adapters` are used up. Raises `CannotHandOver`.
    """
    import peft

    found = {name: products(adapter)[0] for name, adapter in adapters.items()}
    kept = {name: update for name, update in found.items() if update.rank}
    if not kept:
        raise CannotHandOver(f"all {len(found)} layers have rank 0, and PEFT needs one that has more; allowed: merged")
    for name in kept:
        _refuse_kind(name, adapters[name].form.layer)
    unwrap(model, adapters)
    usual = statistics.mode(update.rank for update in kept.values())
    # ^ makes a key mean one layer and no other whose name ends in it.
    others = {f"^{re.escape(name)}": update.rank for name, update in kept.items() if update.rank != usual}
    config: Any = peft.LoraConfig(
        r=usual,
        lora_alpha=usual,  # α/r = 1: the scale is in B
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=_meaning(model, list(kept)),
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
    """Without two warnings of PEFT's: it asks transformers for an old name, and sets a flag by the kind of layer."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        yield


def unwrap(model: nn.Module, adapters: Mapping[str, Adapter]) -> None:
    """The layers themselves in the place of their adapters."""
    for name, adapter in adapters.items():
        target_modules.replace(model, name, adapter.base)


def _meaning(model: nn.Module, names: list[str]) -> list[str] | str:
    """`target_modules` that mean `names` alone: the list, or a pattern where others end in one of the names."""
    endings = tuple(f".{name}" for name in names)
    if any(name.endswith(endings) and name not in names for name, _ in model.named_modules()):
        return "|".join(map(re.escape, names))
    return names


@torch.no_grad()
def _fill(layer: Any, update: Update) -> None:
    """Copies the factors into a LoRA layer of PEFT's."""
    is_embedding = "default" in layer.lora_embedding_A
    parts = (layer.lora_embedding_A, layer.lora_embedding_B) if is_embedding else (layer.lora_A, layer.lora_B)
    for part, value in zip(parts, (update.A, update.B), strict=True):
        place = part["default"] if is_embedding else part["default"].weight
        place.copy_(value.reshape(place.shape))


def _refuse_kind(name: str, layer: Any) -> None:
    """PEFT makes the convolution of A anew and leaves two of the layer's settings out."""
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or set(layer.dilation) != {1}):
        setting = f"padding_mode={layer.padding_mode}, dilation={layer.dilation}"
        raise CannotHandOver(f"{name} is a Conv2d with {setting}, PEFT knows zeros and 1; allowed: merged")


def order_sets(config: Any) -> None:
    """Sorts what PEFT keeps as sets of names: they have no order, and the files of two processes would differ."""
    for field in dataclasses.fields(config):
        if isinstance(value := getattr(config, field.name), set):
            setattr(config, field.name, sorted(value))


def _check_wrapped(model: Any, adapted: set[str], head: set[str]) -> None:
    """PEFT finds modules by how their names end: these must be the ones that are meant."""
    found: dict[str, set[str]] = {"lora_A": set(), "modules_to_save": set()}
    for name, module in model.base_model.model.named_modules():
        for mark, names in found.items():
            if hasattr(module, mark):
                names.add(name)
    for names, meant in zip(found.values(), (adapted, head), strict=True):
        if names != meant:
            wrong = ", ".join(sorted(names ^ meant))
            raise CannotHandOver(f"PEFT can't tell {wrong} from others by its name; allowed: merged")


__all__ = ["CannotHandOver", "Update", "order_sets", "products", "put", "quiet_peft", "to_peft", "unwrap"]
