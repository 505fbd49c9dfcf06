"""Where the suite's modules are, and how the names that configs and records have for them are imported.

In a checkout, `variants.lora` is a module at the top; a wheel installs it as `loratory.variants.lora`. Configs and
records of both say `variants.lora`, so that runs have the same names. `loratory.variants.lora` is accepted in both.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

NAME = "loratory."
PREFIX = __name__.removesuffix("variants.core.placement")  # "" in a checkout, "loratory." installed
ROOT = Path(__file__).parents[2]  # holds the packages and conf/
PACKAGES = ("variants", "trainer")  # whose classes configs name
OTHERS = ("analysis", "weights")
_COMMANDS = {
    "python train.py": "loratory train",
    "python -m variants": "loratory variants",
    "python -m analysis": "loratory",
    "python -m weights": "loratory",
}


def written(name: str) -> str:
    """The name of a module or class as configs and records write it."""
    short = name.removeprefix(NAME)
    return short if short.partition(".")[0] in PACKAGES else name


def imported(name: str) -> str:
    """The name of a module, or of a class in it, by which it can be imported here."""
    short = written(name)
    return f"{PREFIX}{short}" if _file(short) or _file(short.rpartition(".")[0]) else short


def source(module: str) -> Path | None:
    """The file of a module of the suite; None for any other module."""
    return _file(written(module))


def _file(module: str) -> Path | None:
    if module.partition(".")[0] not in (*PACKAGES, *OTHERS):
        return None
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def typed(command: str) -> str:
    """A command of a checkout as it is typed here: `python -m analysis table …` is `loratory table …` if installed."""
    if not PREFIX:
        return command
    for ours, theirs in _COMMANDS.items():
        command = re.sub(rf"^{re.escape(ours)}\b", theirs, command)
    return command


@functools.cache
def methods() -> dict[str, str]:
    """By the name of a method's class its module: what `from loratory import …` offers."""
    texts = (path.read_text(encoding="utf-8") for path in sorted((ROOT / "conf" / "variant").glob("[!_]*.yaml")))
    found = (re.search(r"^_target_: (variants[\w.]*)\.(\w+)", text, re.MULTILINE) for text in texts)
    return {match[2]: match[1] for match in found if match}


class Alias:
    """A finder and loader of modules: those whose names begin with `asked` are those with `given` in its place."""

    def __init__(self, asked: str, given: str) -> None:
        self.asked, self.given = asked, given

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        short = name.removeprefix(self.asked)
        file = _file(short) if name.startswith(self.asked) else None
        if file is None:
            return None
        parent = sys.modules.get(name.rpartition(".")[0])
        is_theirs = parent is None or parent is not sys.modules.get(self.given + short.rpartition(".")[0])
        if is_theirs and PathFinder.find_spec(name, path) is not None:
            return None  # a module of other code with this name
        return ModuleSpec(name, self, is_package=file.name == "__init__.py")  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.given + spec.name.removeprefix(self.asked))
        self._own: dict[str, Any] = {name: vars(module)[name] for name in _BY_IMPORT if name in vars(module)}
        return module

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self._own)  # importing sets them to those of the alias


_BY_IMPORT = ("__spec__", "__loader__", "__package__", "__path__", "__file__", "__cached__", "__name__")


def accept(asked: str, given: str) -> None:
    """Lets `import` find modules of the suite by another name, unless other code has a module of that name."""
    if not any(isinstance(finder, Alias) and finder.asked == asked for finder in sys.meta_path):
        sys.meta_path.insert(0, Alias(asked, given))
