"""What a class's source says, read without importing it: planning a sweep must not import torch.

`_target_` names a class by its dotted path. Its file is found as Python's import system would find it and parsed.
From that come

- `kind`: the stable name that stands for the class in a run's identity,
- `defaults`: what its fields are where a config leaves them out, and
- `code_hash`: one hash over the code of the class and of the modules of its own that it imports.

Whatever can't be read this way (a class in a compiled module, a default that is computed) is left out of the answer;
nothing is ever executed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Modules that have moved: a config may name a class where it was.
MOVED: dict[str, str] = json.loads((Path(__file__).parent / "class_moves.json").read_text(encoding="utf-8"))

SUITE = ("variants", "trainer")  # the packages whose classes are known by their name alone
SHARED = ("variants.core", "variants.testing", "trainer")  # what all methods stand on: the commit names its code

_HOPS = 8  # modules that a name may be handed on through


@dataclass(frozen=True)
class Module:
    """A parsed module. package: the dotted name that its relative imports start from."""

    name: str
    package: str
    path: Path
    tree: ast.Module


@dataclass(frozen=True)
class Found:
    """A class definition and the module that it is in."""

    module: Module
    node: ast.ClassDef


def kind(target: str) -> str:
    """The name that stands for a class in a run's identity.

    A class may declare it (`kind = "my-method"` in its body, no field) and is then free to be renamed and moved. Else a
    class of the suite is known by its name, wherever its module lies, and any other by its dotted path.
    """
    found = find(target)
    declared = None if found is None else _assigned(found.node, fields=False).get("kind")
    if isinstance(declared, ast.Constant) and isinstance(declared.value, str):
        return declared.value
    package, _, name = target.rpartition(".")
    return name if package.partition(".")[0] in SUITE else target


def defaults(target: str) -> dict[str, Any]:
    """The literal defaults of a dataclass's fields by name, those of its base classes included."""
    found = find(target)
    return {} if found is None else dict(_defaults(found.module.name, found.node.name, _HOPS))


def code_hash(target: str) -> str | None:
    """Sixteen hexadecimal digits over the code of a class; None where its source can't be found.

    Covered are its module and all modules that this one imports, directly or not, but for installed packages (their
    versions are recorded) and for what the suite's methods share (the commit names it). Comments, docstrings and layout
    are no part of it.
    """
    found = find(target)
    if found is None:
        return None
    own: dict[str, Module] = {}
    waiting = [found.module]
    while waiting:
        module = waiting.pop()
        if module.name not in own:
            own[module.name] = module
            waiting.extend(_own_imports(module))
    content = hashlib.sha256()
    for name in sorted(own):
        content.update(f"{name.rpartition('.')[2]}\n{_code(own[name].tree)}\n".encode())
    return content.hexdigest()[:16]


def current(target: str) -> str:
    """The dotted path that a class of the suite has today."""
    for before, now in MOVED.items():
        if target.startswith(before):
            return now + target.removeprefix(before)
    return target


def find(target: str) -> Found | None:
    """The definition of the class with this dotted path, also where a package only hands it on."""
    module, _, name = current(target).rpartition(".")
    return _find(module, name, _HOPS) if module else None


def _find(module_name: str, name: str, hops: int) -> Found | None:
    module = _module(module_name)
    if module is None or hops == 0:
        return None
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Found(module, node)
    origin = _imports(module).get(name)
    return None if origin is None else _find(*origin, hops - 1)


@functools.cache
def _module(name: str) -> Module | None:
    path = _path(name)
    if path is None or path.suffix != ".py":
        return None
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return Module(name, package, path, tree)


def _path(name: str) -> Path | None:
    """The file of a module. Only top-level names are looked up by Python, which imports nothing for them."""
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.has_location else None
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    for part in rest[:-1]:
        places = [place / part for place in places if (place / part).is_dir()]
    for place in places:
        for file in (place / rest[-1] / "__init__.py", place / f"{rest[-1]}.py"):
            if file.is_file():
                return file
    return None


def _imports(module: Module) -> dict[str, tuple[str, str]]:
    """By the name it has here, the module and name that something is imported from."""
    return {
        alias.asname or alias.name: (base, alias.name)
        for node in module.tree.body
        if isinstance(node, ast.ImportFrom) and (base := _base(module, node)) is not None
        for alias in node.names
    }


def _base(module: Module, node: ast.ImportFrom) -> str | None:
    """The absolute name of the module that an import statement names."""
    if node.level == 0:
        return node.module
    parts = module.package.split(".")
    if node.level > len(parts):
        return None
    return ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))


def _own_imports(module: Module) -> Iterator[Module]:
    """The modules that `module` imports and that are neither installed nor shared by all methods."""
    for node in ast.walk(module.tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (base := _base(module, node)) is not None:
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            shared = name in SHARED or name.startswith(tuple(f"{package}." for package in SHARED))
            path = None if shared else _path(name)
            if path is not None and not _is_installed(path) and (found := _module(name)) is not None:
                yield found


def _is_installed(path: Path) -> bool:
    return any(path.resolve().is_relative_to(place) for place in _installation())


@functools.cache
def _installation() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple({Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def _code(tree: ast.Module) -> str:
    """The code of a module in one spelling, without comments and docstrings."""
    tree = ast.parse(ast.unparse(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@functools.cache
def _defaults(module_name: str, name: str, hops: int) -> dict[str, Any]:
    found = _find(module_name, name, hops)
    if found is None or hops == 0:
        return {}
    values: dict[str, Any] = {}
    for base in reversed(found.node.bases):
        if isinstance(base, ast.Name):
            values |= _defaults(found.module.name, base.id, hops - 1)
        elif isinstance(base, ast.Attribute):
            dotted = _dotted(found.module, base)
            values |= _defaults(*dotted, hops - 1) if dotted else {}
    if _is_dataclass(found.node):
        for field, value in _assigned(found.node, fields=True).items():
            values.pop(field, None)  # a default that can't be read hides that of a base class
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
    """Assignments in a class's body by name: those of a dataclass's fields, or all others."""
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
    """The value of a default, `field(…)` included. Raises `ValueError` where it is no literal."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "field":
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        if "init" in options:  # never read from a config
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
