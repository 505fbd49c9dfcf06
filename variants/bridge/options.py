"""Checks of the options and targets of a PEFT method, before a model is loaded.

PEFT accepts many options that it ignores, and others that need support by the loop: a run would be named after them and
be the same as without. Each raises a `ValueError` in one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from variants.bridge.methods import OWN_FIELDS, Method
from variants.core import target_modules as layers

# Matches PEFT's warnings that it ignores an option.
_IGNORED = re.compile(r"\bignored?\b|but no modules were excluded")


def config_class(method: str) -> Any:
    """Return PEFT's config class of a method. Raises `ValueError` if the installed PEFT has none."""
    import peft

    classes = {kind.value.lower(): cls for kind, cls in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if method not in classes:
        raise ValueError(f"method: {method!r}, allowed: one that PEFT {peft.__version__} has")
    return classes[method]


def defaults(cls: Any) -> dict[str, Any]:
    """Return the fields of a config class with their defaults."""
    return {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in dataclasses.fields(cls)
        if f.init
    }


def refuse_targets(
    method: str, kind: Method, targets: Sequence[str] | str | None, options: Mapping[str, Any], has_layers: bool
) -> None:
    """Refuse targets that PEFT would ignore, or that would turn the method into another one."""
    chosen, target_modules = targets not in (layers.ALL_LINEAR, None), options.get("target_modules")
    if chosen and not has_layers:
        raise ValueError(f"targets: {targets!r}, allowed with method: {method}, which has none: null")
    if chosen and target_modules is not None:
        both = f"targets: {targets!r} with options.target_modules: {target_modules!r}"
        raise ValueError(f"{both}, allowed: one of the two")
    if kind.layers == "own" and targets == layers.ALL_LINEAR and target_modules is None:
        raise ValueError(
            f"targets: {targets!r}, allowed with method: {method}, which is not made for all linear layers: names of "
            "modules, or null for PEFT's own choice"
        )
    for option in ("layers_to_transform", "layers_pattern"):
        value = options.get(option)
        # PEFT ignores them if every layer is named in full.
        if value is not None and targets is not None and target_modules is None:
            raise ValueError(f"options.{option}: {value!r}, allowed only with targets: null; targets name layers")


def refuse_options(method: str, kind: Method, options: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Refuse options that PEFT does not have, that have no effect, or that can't work here. usual: their defaults."""
    for option in options:
        if option not in usual:
            raise ValueError(f"options: {method} has no {option!r}, allowed: {', '.join(sorted(usual))}")
    given = {option: value for option, value in options.items() if value != usual[option]}
    for option, value in given.items():
        if option in OWN_FIELDS:
            raise ValueError(f"options.{option}: {value!r}, allowed: none; the bridge sets it")
        if option in kind.unread:
            why = kind.unread[option] or f"{method} ignores it"
            raise ValueError(f"options.{option}: {value!r}, allowed: none; {why}")
        if option in kind.needs and not _is_met(*kind.needs[option], given):
            other, needed = kind.needs[option]
            setting = other if needed is None else f"{other}: {_plain(needed)}"
            raise ValueError(f"options.{option}: {value!r}, allowed only with options.{setting}; else PEFT ignores it")
    _refuse_start(method, kind, options.get("init_lora_weights", True))
    if kind.layers == "none" and not _is_whole(options.get("num_virtual_tokens"), 1):
        count = options.get("num_virtual_tokens")
        raise ValueError(f"options.num_virtual_tokens: {count!r}, allowed: a whole number ≥ 1")
    if "token_indices" in usual and not options.get("token_indices"):
        raise ValueError(
            f"options.token_indices: {options.get('token_indices')}, allowed: numbers of one or more tokens"
        )


def refuse_tokens(options: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse token numbers that the embedding does not have, and repeated ones."""
    embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)
    try:
        rows = getattr(embeddings(), "num_embeddings", None)
    except NotImplementedError:  # a model of sounds has none
        rows = None
    for option in ("token_indices", "trainable_token_indices"):
        chosen = options.get(option)
        if isinstance(chosen, list):
            good = [n for n in chosen if _is_whole(n, 0) and (rows is None or n < rows)]
            if good != chosen or len(set(chosen)) < len(chosen):
                most = "" if rows is None else f" to {rows - 1}"
                raise ValueError(f"options.{option}: {chosen}, allowed: numbers of tokens from 0{most}, each once")


def feedforward(endings: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return those of `names` that IA3 treats as feed-forward layers; refuse an ending without a match."""
    for ending in endings:
        if not any(name.endswith(ending) for name in names):
            raise ValueError(f"options.feedforward_modules: no target ends in {ending!r}")
    return [name for name in names if name.endswith(tuple(endings))]


@contextlib.contextmanager
def refuse_ignored(method: str) -> Iterator[None]:
    """Context that turns PEFT's warnings of an ignored option into errors."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said = set()  # PEFT says some things of every layer
    for warning in caught:
        text = " ".join(str(warning.message).split())
        if _IGNORED.search(text):
            raise ValueError(f"options: PEFT's {method} says: {text}")
        if text in said:
            continue
        said.add(text)
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def line(error: Exception) -> str:
    """Return an error of PEFT's in one line, with its class unless that is `ValueError` or `TypeError`."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {text}"


def _refuse_start(method: str, kind: Method, start: Any) -> None:
    if kind.starts is None or isinstance(start, bool) or re.sub(r"\d+$", "<n>", str(start)) in kind.starts:
        return
    allowed = ", ".join(("true", "false", *kind.starts))
    why = "others need the data or a quantized backbone" if kind.starts else f"{method} has one initialisation"
    raise ValueError(f"options.init_lora_weights: {start!r}, allowed: {allowed}; {why}")


def _is_met(other: str, needed: Any, given: Mapping[str, Any]) -> bool:
    return other in given and (needed is None or given[other] == needed)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _plain(value: Any) -> str:
    """Return the value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
