"""Instantiates config nodes with a `_target_`, after checks of the class and of its settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from trainer import classes
from trainer.errors import ConfigError, message
from trainer.plain import mapping
from variants.core import field_checks


def make(field: str, node: Any, **arguments: Any) -> Any:
    """Instantiates the config node of `field`. Raises `ConfigError`.

    Before the call it checks that the target is a class of the field's kind (see `trainer.classes`) and that the class
    has these settings, with these types. arguments: further arguments, or `_partial_`.
    """
    cls = classes.chosen(field, node)
    settings = mapping(node) if isinstance(node, DictConfig) else dict(node)
    del settings["_target_"]
    _check_names(field, cls, settings, arguments)
    named(field, field_checks.check_types, cls, settings)
    try:
        return instantiate(
            {**settings, "_target_": f"{cls.__module__}.{cls.__qualname__}"}, _convert_="all", **arguments
        )
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        text = message(cause if cause is not None else error)
        raise ConfigError(f"{field}.{text}" if isinstance(cause, ValueError) else f"{field}: {text}") from error


def _check_names(field: str, cls: type, settings: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for a setting that `cls` does not have and for a required one without a value."""
    known = field_checks.arguments(cls)
    if any(one.kind is one.VAR_KEYWORD for one in known.values()):
        return
    for name in settings:
        if name not in known:
            allowed = ", ".join(known)
            raise ConfigError(
                f"{field}.{name}: {settings[name]!r}, {cls.__name__} has no such field, allowed: {allowed}"
            )
    if "_partial_" in arguments:  # the caller passes the other arguments later
        return
    for name, one in known.items():
        given = name in settings or name in arguments or one.default is not one.empty
        if not given and one.kind is not one.VAR_POSITIONAL:
            raise ConfigError(f"{field}.{name}: not given, {cls.__name__} has no default for it")


def named(field: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a hook of the object that `field` configures. Its `ValueError` becomes a `ConfigError` with the field.

    An error that names a field of another group with its group, as "model.quantize: …", is left as it is.
    """
    try:
        return call(*arguments)
    except ConfigError:
        raise
    except ValueError as error:
        whole = re.match(r"(model|task|data|optim|train|machine)\.[a-z_]+: ", str(error))
        raise ConfigError(str(error) if whole else f"{field}.{error}") from error
