"""Imports go one way: which rooms of the house know which, over every import there is, lazy ones included."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

OURS = (
    *("variants", "trainer", "analysis", "weights", "hydra_plugins", "benchmarks", "docs_build", "train", "tests"),
    "loratory",
)
ANYTHING = OURS
parsed = functools.cache(ast.parse)
# What a room may import beside itself. A module is in the room with the longest name that its own begins with.
ALLOWED: dict[str, tuple[str, ...]] = {
    "variants.core": (),
    "variants.testing": ("variants.core",),
    "variants": ("variants.core",),  # the methods
    "variants.catalogue": ("variants.bridge",),
    "variants.__main__": ("weights", "variants.catalogue"),
    "trainer": ("variants.core",),
    "analysis": (
        "trainer.record",
        "trainer.identity",
        "trainer.code_hash",
        "trainer.errors",
        "trainer.machine.garbage",
        "trainer.hashing",
        "trainer.trackers",
        "trainer.objectives.metrics",
        "trainer.objectives.formula",
        "variants.core.placement",
    ),
    "weights": ("analysis", "trainer", "variants.core"),
    "train": ANYTHING,
    "loratory": ANYTHING,
    "hydra_plugins": ANYTHING,
    "benchmarks": ANYTHING,
    "docs_build": ANYTHING,
    "tests": ANYTHING,
}


def modules() -> dict[str, Path]:
    """The files of the project by the names of their modules."""
    found = [path.relative_to(ROOT) for name in OURS for path in (ROOT / name).rglob("*.py")] + [Path("train.py")]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): ROOT / path for path in found}


def imported(source: str, module: str, known: Iterable[str], *, typing: bool = True) -> set[str]:
    """The modules of `known` that `source`, that of `module`, imports anywhere in it.

    typing: whether what type checkers alone import counts too.
    """
    found = set()
    for node in _nodes(parsed(source), typing):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            package = ".".join([*above, *filter(None, [node.module])])
            found.update(f"{package}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _last_name(node.func) in ("import_module", "__import__", "run_module"):
            found.update(a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))
    known = set(known)
    # `from a.b import c` is a module a.b.c, or something in a.b.
    return {name if name in known else name.rpartition(".")[0] for name in found} & known - {module}


def _nodes(tree: ast.AST, typing: bool) -> Iterator[ast.AST]:
    left = [tree]
    while left:
        node = left.pop()
        if typing or not (isinstance(node, ast.If) and _last_name(node.test) == "TYPE_CHECKING"):
            yield node
            left += ast.iter_child_nodes(node)


def _last_name(node: ast.AST) -> str | None:
    """`c` of a.b.c."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def within(name: str, room: str) -> bool:
    return f"{name}.".startswith(f"{room}.")


def room(module: str) -> str:
    """The room that a module is in."""
    return max((name for name in ALLOWED if within(module, name)), key=len)


def astray(arrows: dict[str, set[str]]) -> list[str]:
    """The imports that lead out of a room to where it may not, in words."""
    return [
        f"{module} imports {other}"
        for module, others in sorted(arrows.items())
        for other in sorted(others)
        if room(module) != room(other) and not any(within(other, name) for name in ALLOWED[room(module)])
    ]


def circle(arrows: dict[str, set[str]]) -> list[str] | None:
    """Modules each of which imports the next, and the last the first; None where there are none such."""
    left = {module: others & arrows.keys() for module, others in arrows.items()}
    while leaves := {module for module, others in left.items() if not others}:
        left = {module: others - leaves for module, others in left.items() if module not in leaves}
    if not left:
        return None
    path = [min(left)]
    while path.count(path[-1]) == 1:
        path.append(min(left[path[-1]]))
    return path[path.index(path[-1]) : -1]


# The rooms of analysis, from the ground up: each may import those before it.
FLOORS = ("text", "stats", "records", "tables", "comparison", "plots", "report", "commands")


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    files = modules()
    return {module: imported(path.read_text(), module, files) for module, path in files.items()}


def test_no_room_imports_what_it_may_not(arrows: dict[str, set[str]]) -> None:
    assert astray(arrows) == []


def test_what_a_room_may_import_it_does(arrows: dict[str, set[str]]) -> None:
    of_room: dict[str, set[str]] = {name: set() for name in ALLOWED}
    for module, others in arrows.items():
        of_room[room(module)] |= others
    named = [(name, other) for name, others in ALLOWED.items() if others is not ANYTHING for other in others]
    assert [arrow for arrow in named if not any(within(found, arrow[1]) for found in of_room[arrow[0]])] == []


def upward(arrows: dict[str, set[str]]) -> list[str]:
    """The imports within analysis that lead to a room above their own, in words."""

    def floor(module: str) -> int:
        package, _, rest = module.partition(".")
        name = rest.partition(".")[0]
        return FLOORS.index(name) if package == "analysis" and name in FLOORS else -1

    return [
        f"{module} imports {other}"
        for module, others in sorted(arrows.items())
        for other in sorted(others)
        if -1 < floor(module) < floor(other)
    ]


def test_no_room_of_analysis_imports_one_above_it(arrows: dict[str, set[str]]) -> None:
    assert upward(arrows) == []
    assert {path.name for path in (ROOT / "analysis").iterdir() if path.is_dir()} - {"__pycache__"} == {*FLOORS}
    assert upward({"analysis.report.images": {"analysis.commands.figures", "analysis.plots.kind"}}) == [
        "analysis.report.images imports analysis.commands.figures"
    ]


@pytest.mark.parametrize("package", OURS)
def test_no_modules_of_a_package_import_each_other_in_a_circle(package: str) -> None:
    files = {module: path for module, path in modules().items() if within(module, package)}
    assert circle({m: imported(path.read_text(), m, files, typing=False) for m, path in files.items()}) is None


def test_test_modules_do_not_import_each_other(arrows: dict[str, set[str]]) -> None:
    tests = {module: others for module, others in arrows.items() if within(module, "tests")}
    assert not [(m, other) for m, others in tests.items() for other in others if ".test_" in other]


# -- it would be noticed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "import trainer.record",
        "from trainer import record",
        "from trainer.record import Record",
        "def f():\n    from trainer.record import Record",
        "try:\n    import trainer.record as r\nexcept ImportError: pass",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from trainer import record",
        "import importlib\nimportlib.import_module('trainer.record')",
    ],
)
def test_an_import_is_seen_wherever_it_stands(source: str) -> None:
    assert imported(source, "variants.lora", ["trainer", "trainer.record", "variants.lora"]) == {"trainer.record"}


def test_an_import_from_beside_is_seen() -> None:
    known = ["variants.core", "variants.core.adapter", "variants.core.layers"]
    assert imported("from . import layers", "variants.core.adapter", known) == {"variants.core.layers"}
    assert imported("from .layers import of", "variants.core.adapter", known) == {"variants.core.layers"}


def test_an_arrow_astray_and_a_circle_are_named() -> None:
    assert astray(
        {
            "variants.lora": {"trainer.record", "variants.core.adapter"},
            "trainer.record": {"variants.core.state"},
        }
    ) == ["variants.lora imports trainer.record"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
