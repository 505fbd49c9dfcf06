"""Loratory: adaptive-rank and sparse LoRA variants, and the suite that trains and compares them.

    from loratory import AdaLoRA, LoRA

The names are the classes that the files of `conf/variant/` name, imported when they are asked for. The command `loratory`
trains and reads results: `loratory.command`.

A checkout has the suite's packages (`variants`, `trainer`, …) at its top. Installed, they lie in `loratory/_suite`, so
that only the name `loratory` is added to an environment; the package puts that folder on the module path when it is
imported.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import re
import sys
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_INSTALLED = Path(__file__).parent / "_suite"
SUITE = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1]
LIBRARY = ("variants", "trainer")  # packages that methods import


def reach(packages: tuple[str, ...] = LIBRARY) -> None:
    """Puts the suite on the module path. Raises `ImportError` if other code has the name of one of these packages."""
    if str(SUITE) not in sys.path:
        sys.path.append(str(SUITE))
    for name in packages:
        loaded = getattr(sys.modules.get(name), "__file__", None)
        spec = None if loaded else importlib.machinery.PathFinder.find_spec(name, sys.path)
        found = loaded or (spec.origin or next(iter(spec.submodule_search_locations or ()), "") if spec else "")
        if not Path(found).is_relative_to(SUITE):
            raise ImportError(f"loratory: a module {name!r} of other code, {found}, hides the suite's: rename it")


@functools.cache
def _classes() -> dict[str, str]:
    """By the name of a method's class its module: what `variant=` can name."""
    texts = (path.read_text(encoding="utf-8") for path in sorted((SUITE / "conf" / "variant").glob("[!_]*.yaml")))
    found = (re.search(r"^_target_: (variants\.\w+)\.(\w+)", text, re.MULTILINE) for text in texts)
    return {match[2]: match[1] for match in found if match}


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in _classes():
        raise AttributeError(f"module 'loratory' has no {name!r}; methods: {', '.join(sorted(_classes()))}")
    reach()
    return getattr(importlib.import_module(_classes()[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_classes()})
