"""Selecting the layers of a model to adapt, and replacing a layer.

Names are the dotted names of `named_modules()`. A pattern matches a module if the module's name ends in it, at a dot:
`query`, `attention.output.dense`, `layer.0.*`. `*` matches anything, dots included. A pattern without a match is an
error.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from variants.core import attention
from variants.core import layers as kinds

ALL_LINEAR = "all-linear"


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` matches the module (or parameter) `name`."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")


def inside(name: str, modules: Iterable[str]) -> bool:
    """Whether `name` is one of `modules` or inside one, also if a wrapper has prefixed their names."""
    return any(f".{module}." in f".{name}." for module in modules)


def block_number(name: str) -> int | None:
    """Return the first number in a dotted name: `encoder.layer.3.output.dense` is in block 3."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def select(
    model: nn.Module,
    targets: Sequence[str] | str,
    *,
    exclude: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    head: Sequence[str] = (),
    in_attention: bool = False,
) -> dict[str, nn.Module]:
    """Return the layers to adapt, by name and in the model's order, always without the head.

    in_attention: whether those that `attention.open_up` would make of torch's attention are among them.
    Raises `ValueError` if a pattern has no match, a layer can't be adapted or shares its weight with another module,
    or no layer is left.
    """
    modules = {name: module for name, module in _modules(model, in_attention) if name and not inside(name, head)}
    linear = [name for name, module in modules.items() if kinds.is_linear(module)]
    if targets == ALL_LINEAR:
        words = output_layer(model)
        chosen = [name for name in linear if modules[name] is not words]
    else:
        patterns = [targets] if isinstance(targets, str) else list(targets)
        chosen = _matched("targets", patterns, modules, linear)
    dropped = set(_matched("exclude", list(exclude), modules, linear)) if exclude else set()
    chosen = [name for name in chosen if name not in dropped]
    if layers is not None:
        chosen = _within(chosen, layers)
    if not chosen:
        others = [name for name, module in modules.items() if kinds.kind_of(module) is not None]
        found = f"linear layers: {_kinds(linear)}" if linear else f"there is no linear one, but: {_kinds(others)}"
        raise ValueError(f"targets: {targets!r} leaves no layer to adapt; {found}")
    selected = {}
    for name in chosen:
        module = modules[name]
        if kinds.kind_of(module) is None:
            kind = type(module).__name__
            raise ValueError(f"targets: {name} is a {kind}, allowed: {kinds.ALLOWED}; linear: {_kinds(linear)}")
        selected[name] = module
    _refuse_shared(model, selected)
    return selected


def _modules(model: nn.Module, in_attention: bool) -> Iterable[tuple[str, nn.Module]]:
    return attention.named_modules(model).items() if in_attention else model.named_modules()


def output_layer(model: nn.Module) -> nn.Module | None:
    """What makes words of a language model's last hidden states, often the embeddings themselves: never adapted unless
    it is named, as in PEFT."""
    ask = getattr(model, "get_output_embeddings", None)
    found = ask() if callable(ask) else None
    return found if isinstance(found, nn.Module) else None


def not_linear(model: nn.Module, head: Sequence[str] = (), in_attention: bool = False) -> dict[str, int]:
    """Return the sizes of the weights that "all-linear" does not include, by parameter name.

    in_attention: as for `select`.

    These are the matrices outside the head that are in neither linear layers nor embeddings: experts stored in one
    tensor, convolutions, routers or attention with classes of their own.
    """
    sizes = {}
    inner = attention.openable(model) if in_attention else {}
    for name, module in _modules(model, in_attention):
        if not inside(name, head) and not kinds.is_linear(module) and not isinstance(module, nn.Embedding):
            for parameter_name, parameter in module.named_parameters(recurse=False):
                of_layer = name in inner and parameter_name not in attention.EXTRA
                if parameter.ndim >= 2 and not of_layer and not inside(parameter_name, () if name else head):
                    sizes[f"{name}.{parameter_name}" if name else parameter_name] = parameter.numel()
    return sizes


def by_block(names: Iterable[str]) -> str:
    """Join names for a line of text; those that differ only in numbers appear once, with * for the numbers."""
    by_pattern: dict[str, list[str]] = {}
    for name in names:
        by_pattern.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return ", ".join(some[0] if len(some) == 1 else pattern for pattern, some in by_pattern.items())


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule `name` by `module`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _matched(field: str, patterns: list[str], modules: dict[str, nn.Module], linear: list[str]) -> list[str]:
    matched: set[str] = set()
    for pattern in patterns:
        names = {name for name in modules if matches(name, pattern)}
        # A wildcard also matches containers of layers; only a plain name can select one.
        if "*" in pattern:
            names = {name for name in names if kinds.kind_of(modules[name]) is not None}
        if not names:
            raise ValueError(f"{field}: no layer ends in {pattern!r}; linear layers: {_kinds(linear)}")
        matched |= names
    return [name for name in modules if name in matched]


def _within(chosen: list[str], layers: Sequence[int]) -> list[str]:
    numbers = sorted({n for n in map(block_number, chosen) if n is not None})
    allowed = f"[first, last] with 0 ≤ first ≤ last ≤ {numbers[-1]}" if numbers else "null: the model has no blocks"
    if len(layers) != 2 or not numbers or not 0 <= layers[0] <= layers[1] <= numbers[-1]:
        raise ValueError(f"layers: {list(layers)}, allowed: {allowed}")
    first, last = layers
    return [name for name in chosen if (n := block_number(name)) is not None and first <= n <= last]


def _refuse_shared(model: nn.Module, chosen: Mapping[str, nn.Module]) -> None:
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for name, layer in chosen.items():
        for parameter in layer.parameters(recurse=False):
            others = [other for other in owners.get(id(parameter), []) if other != name]
            if others:
                raise ValueError(f"targets: {name} shares its weight with {others[0]}; exclude it")


def _kinds(names: list[str]) -> str:
    """Return the last parts of layers' names, each once: short enough for an error."""
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names)) or "none"
