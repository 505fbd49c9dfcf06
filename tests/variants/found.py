"""Every variant that the folder holds, found by looking."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import variants
from variants.core.variant import Variant


def all_variants() -> list[type[Variant]]:
    """The variant classes defined in `variants/*.py`."""
    found = []
    for module_info in pkgutil.iter_modules(variants.__path__):
        if module_info.ispkg or module_info.name.startswith("__"):
            continue
        module = importlib.import_module(f"variants.{module_info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, Variant) and cls.__module__ == module.__name__:
                found.append(cls)
    return found


def cases() -> list[tuple[type[Variant], dict[str, Any]]]:
    """(class, settings) for every entry of every variant's test_params."""
    return [(cls, params) for cls in all_variants() for params in cls.test_params()]
