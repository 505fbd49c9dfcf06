"""Loratory: adaptive-rank and sparse LoRA variants, and the suite that trains and compares them.

    from loratory import AdaLoRA, LoRA

The names are the classes of the methods in `conf/variant/`, and `VariantCallback`, which trains them in transformers'
own Trainer; each is imported when it is asked for. The command `loratory` trains and reads results: `loratory.command`.

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


_OTHERS = {"VariantCallback": "trainer.loop.trainer_callback"}


def __getattr__(name: str) -> Any:
    modules = placement.methods() | _OTHERS
    if name.startswith("_") or name not in modules:
        raise AttributeError(f"module 'loratory' has no {name!r}; allowed: {', '.join(sorted(modules))}")
    return getattr(importlib.import_module(placement.imported(modules[name])), name)


def __dir__() -> list[str]:
    return sorted({"__version__", *placement.methods(), *_OTHERS})
