"""Reads a class's source without importing it, because planning a sweep must not import torch.

`_target_` names a class by its dotted path. This module locates its file as Python's import system would, parses it,
and provides

- `kind`: the stable name that stands for the class in a run's identity,
- `defaults`: the defaults of its fields, and
- `is_own`: whether the class is the user's.

`trainer.code_hash` hashes the code that is found here.

Nothing is executed. What can't be read this way (a class in a compiled module, a computed default) is left out.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from variants.core import placement

# Modules that have moved, old path to new: a config may name a class by its old path.
MOVED: dict[str, str] = json.loads((Path(__file__).parent / "class_moves.json").read_text(encoding="utf-8"))

SUITE = ("variants", "trainer")  # packages whose classes have their bare name as kind

_HOPS = 8  # most modules that a name may be re-exported through


@dataclass(frozen=True)
class Module:
    """A parsed module. package: the dotted name that its relative imports start from."""

    name: str
    package: str
    path: Path
    tree: ast.Module

    @functools.cached_property
    def code(self) -> str:
        """The code in a normalised layout, without comments and docstrings; a sweep asks for it once per run."""
        tree = ast.parse(ast.unparse(self.tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0] if node.body else None
                value = first.value if isinstance(first, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    node.body = node.body[1:] or [ast.Pass()]
        return ast.unparse(tree)

    @functools.cached_property
    def imports(self) -> tuple[str, ...]:
        """Dotted names of the modules, and of the names in them, that it imports anywhere."""
        names: list[str] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (base := self.base_of(node)) is not None:
                names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        return tuple(names)

    def base_of(self, node: ast.ImportFrom) -> str | None:
        """The absolute name of the module in an import statement; None if it leaves the package."""
        if node.level == 0:
            return node.module
        parts = self.package.split(".")
        if node.level > len(parts):
            return None
        return ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))


@dataclass(frozen=True)
class Definition:
    """A class definition and its module."""

    module: Module
    node: ast.ClassDef


def kind(target: str) -> str:
    """The name that stands for a class in a run's identity.

    A class may declare it as `kind = "my-method"` in its body, not as a field, and may then be renamed and moved.
    Otherwise it is the bare name for a class of the suite, and the dotted path for any other class.
    """
    definition = find(target)
    declared = None if definition is None else _assigned(definition.node, fields=False).get("kind")
    if isinstance(declared, ast.Constant) and isinstance(declared.value, str):
        return declared.value
    target = placement.written(target)
    package, _, name = target.rpartition(".")
    return name if package.partition(".")[0] in SUITE else target


def defaults(target: str) -> dict[str, Any]:
    """The literal defaults of a dataclass's fields by name, inherited ones included."""
    definition = find(target)
    return {} if definition is None else dict(_defaults(definition.module.name, definition.node.name, _HOPS))


def is_own(target: str) -> bool:
    """Whether the user wrote a class: its source is found, and it is neither the suite's nor installed."""
    definition = find(target)
    if definition is None or definition.module.name.partition(".")[0] in SUITE:
        return False
    return not is_installed(definition.module.path)


def current(target: str) -> str:
    """The present dotted path of a class of the suite that may have moved."""
    target = placement.written(target)
    for before, now in MOVED.items():
        if target.startswith(before):
            return now + target.removeprefix(before)
    return target


def find(target: str) -> Definition | None:
    """The definition of the class with this dotted path; re-exports are followed."""
    module, _, name = current(target).rpartition(".")
    return _find(module, name, _HOPS) if module else None


def _find(module_name: str, name: str, hops: int) -> Definition | None:
    module = read_module(module_name)
    if module is None or hops == 0:
        return None
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Definition(module, node)
    origin = _imports(module).get(name)
    return None if origin is None else _find(*origin, hops - 1)


@functools.cache
def read_module(name: str) -> Module | None:
    """The module with this dotted name, parsed; None if its source can't be found or read."""
    path = locate(name)
    if path is None or path.suffix != ".py":
        return None
    try:
        tree = _AsWritten().visit(ast.parse(path.read_bytes()))
    except (OSError, SyntaxError, ValueError):
        return None
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return Module(name, package, path, tree)


def locate(name: str) -> Path | None:
    """The file of a module, or None. Python locates the top-level package, which imports nothing."""
    if placement.PREFIX and (suite := placement.source(name)) is not None:
        if (other := _on_path(name)) not in (None, suite):
            raise ConfigError(f"{other}: the installed suite has its own {name}, allowed: a module of another name")
        return suite
    return _on_path(name)


def _on_path(name: str) -> Path | None:
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.has_location else None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    for part in rest[:-1]:
        folders = [folder / part for folder in folders if (folder / part).is_dir()]
    for folder in folders:
        for file in (folder / rest[-1] / "__init__.py", folder / f"{rest[-1]}.py"):
            if file.is_file():
                return file
    return None


class _AsWritten(ast.NodeTransformer):
    """Imports of the suite as a checkout writes them, so that the same code has the same hash everywhere."""

    def visit_Import(self, node: ast.Import) -> ast.AST:
        for alias in node.names:
            alias.name = placement.written(alias.name) if alias.asname else alias.name
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | list[ast.ImportFrom]:
        if node.level or not node.module:
            return node
        node.module = placement.written(node.module)
        if node.module != "loratory":
            return node
        modules = [placement.methods().get(alias.name, node.module) for alias in node.names]
        return [
            ast.copy_location(ast.ImportFrom(module, [alias], 0), node)
            for module, alias in zip(modules, node.names, strict=True)
        ]


def _imports(module: Module) -> dict[str, tuple[str, str]]:
    """Module and original name of each imported name, by its name in `module`."""
    return {
        alias.asname or alias.name: (base, alias.name)
        for node in module.tree.body
        if isinstance(node, ast.ImportFrom) and (base := module.base_of(node)) is not None
        for alias in node.names
    }


def is_installed(path: Path) -> bool:
    """Whether a file belongs to Python or to an installed package other than the suite."""
    if placement.PREFIX and path.is_relative_to(placement.ROOT):
        return False
    return any(path.resolve().is_relative_to(folder) for folder in _installation())


@functools.cache
def _installation() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple({Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@functools.cache
def _defaults(module_name: str, name: str, hops: int) -> dict[str, Any]:
    definition = _find(module_name, name, hops)
    if definition is None or hops == 0:
        return {}
    values: dict[str, Any] = {}
    for base in reversed(definition.node.bases):
        if isinstance(base, ast.Name):
            values |= _defaults(definition.module.name, base.id, hops - 1)
        elif isinstance(base, ast.Attribute):
            dotted = _dotted(definition.module, base)
            values |= _defaults(*dotted, hops - 1) if dotted else {}
    if _is_dataclass(definition.node):
        for field, value in _assigned(definition.node, fields=True).items():
            values.pop(field, None)  # an unreadable default still overrides the inherited one
            try:
                values[field] = _literal(value)
            except ValueError:
                continue
    return values


def _dotted(module: Module, node: ast.Attribute) -> tuple[str, str] | None:
    """Module and name of a base class written as `module.Class`."""
    path = ast.unparse(node.value)
    for statement in module.tree.body:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if path == (alias.asname or alias.name):
                    return alias.name, node.attr
    origin = _imports(module).get(path)
    return None if origin is None else (f"{origin[0]}.{origin[1]}", node.attr)


def _is_dataclass(node: ast.ClassDef) -> bool:
    names = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return any(ast.unparse(name).rpartition(".")[2] == "dataclass" for name in names)


def _assigned(node: ast.ClassDef, *, fields: bool) -> dict[str, ast.expr]:
    """Assignments in a class's body by name: either those of a dataclass's fields or all others."""
    values: dict[str, ast.expr] = {}
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            is_field = "ClassVar" not in ast.unparse(statement.annotation)
            if statement.value is not None and is_field == fields:
                values[statement.target.id] = statement.value
        elif isinstance(statement, ast.Assign) and not fields:
            values |= {target.id: statement.value for target in statement.targets if isinstance(target, ast.Name)}
    return values


def _literal(node: ast.expr) -> Any:
    """The value of a default, `field(…)` included. Raises `ValueError` if it is not a literal."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "field":
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        if "init" in options:  # a config can't set it
            raise ValueError(ast.unparse(node))
        if "default" in options:
            return _literal(options["default"])
        factory = ast.unparse(options["default_factory"]) if "default_factory" in options else ""
        empty: dict[str, Any] = {"list": [], "tuple": [], "dict": {}}
        if factory not in empty:
            raise ValueError(factory)
        return empty[factory]
    try:
        return ast.literal_eval(node)
    except (TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from None
