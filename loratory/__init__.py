"""Loratory: adaptive-rank and sparse LoRA variants, and the suite that trains and compares them.

    from loratory import AdaLoRA, LoRA

The names are the classes of the methods in `conf/variant/`, and `VariantCallback`, which trains them in transformers'
own Trainer; each is imported when it is asked for. The command `loratory` trains and reads results; see
`loratory.command`.

A wheel holds the suite's packages within this one (`loratory.variants`, …). In a checkout they stand beside it, and
`loratory.variants` is another name for `variants`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from variants.core import placement

__version__ = "0.1.0"

if not placement.PREFIX:
    if not placement.ROOT.samefile(Path(__file__).parents[1]):
        raise ImportError(f"loratory: the modules of {placement.ROOT} hide those of this checkout")
    placement.accept("loratory.", "")


def _names() -> dict[str, str]:
    """By name the module that it is from."""
    return {**placement.methods(), "VariantCallback": "trainer.loop.trainer_callback"}


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in _names():
        raise AttributeError(f"module 'loratory' has no {name!r}; allowed: {', '.join(sorted(_names()))}")
    return getattr(importlib.import_module(placement.imported(_names()[name])), name)


def __dir__() -> list[str]:
    return sorted({"__version__", *_names()})
