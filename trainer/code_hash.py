"""One hash over the code of a class and of the modules of its own that it imports, read without importing them.

The hash is over content alone: a module that is moved or renamed within the suite or a user's package keeps it, if only
the imports that name it change. It excludes installed packages (their versions are recorded), modules that the suite's
methods share (the commit covers them), comments, docstrings and layout.

Earlier records hold another hash, which depends on the names of files and modules. `today` says which of these are of
the present code.
"""

from __future__ import annotations

import ast
import functools
import hashlib

from trainer.class_source import Module, find, is_installed, locate, read_module

SHARED = ("variants.core", "variants.testing", "trainer")  # shared by all methods, so the recorded commit covers it


def of(target: str) -> str | None:
    """Sixteen hexadecimal digits over the code of a class; None if its source can't be found."""
    definition = find(target)
    return None if definition is None else _of_module(definition.module)


def today(target: str, recorded: str) -> str:
    """The present hash if a recorded one of either version is that of the present code; else the recorded one."""
    definition = find(target)
    if definition is None or recorded != _of_version_1(definition.module):
        return recorded
    return _of_module(definition.module)


@functools.cache  # a sweep asks for it once per run
def _of_module(module: Module) -> str:
    return _content(module, {})


def _content(module: Module, known: dict[str, str]) -> str:
    """The hash of a module's code, in which the hashes of the modules of its own stand for their names.

    known: by module the hashes found so far; of a module that imports itself by way of others, its bare name meanwhile.
    """
    known[module.name] = _bare(module.name)
    tree = ast.parse(module.code)
    imports = _OwnImports(module, known)
    code = ast.unparse(imports.visit(tree))
    known[module.name] = _digest("\n".join([code, *sorted(imports.found)]))
    return known[module.name]


class _OwnImports(ast.NodeTransformer):
    """Removes imports of own and shared modules from a module's code.

    found: for each name that they bind, what it stands for: the hash of an own module or the bare name of a shared one,
    and a name in it.
    """

    def __init__(self, module: Module, known: dict[str, str]) -> None:
        self._module = module
        self._known = known
        self.found: list[str] = []

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        node.names = [alias for alias in node.names if not self._bound(alias.asname or alias.name, alias.name)]
        return node if node.names else None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        base = self._module.base_of(node)
        if base is not None:
            node.names = [
                alias
                for alias in node.names
                if not self._bound(alias.asname or alias.name, f"{base}.{alias.name}")
                and not self._bound(alias.asname or alias.name, base, alias.name)
            ]
        return node if node.names else None

    def _bound(self, name: str, module_name: str, member: str = "") -> bool:
        """Adds a name to `found`; False if it stands for nothing in an own or shared module."""
        path = locate(module_name)
        if path is None or is_installed(path):
            return False
        if _is_shared(module_name):
            source = _bare(module_name)
        elif (module := read_module(module_name)) is not None:
            source = self._known.get(module_name) or _content(module, self._known)
        else:
            return False
        self.found.append(f"{name}: {source} {member}")
        return True


@functools.cache
def _of_version_1(module: Module) -> str:
    """The hash of earlier records: modules in the order of their files' names, with their imports as written."""
    own: dict[str, Module] = {}
    pending = [module]
    while pending:
        module = pending.pop()
        if module.name not in own:
            own[module.name] = module
            for name in module.imports:
                path = None if _is_shared(name) else locate(name)
                if path is not None and not is_installed(path) and (imported := read_module(name)) is not None:
                    pending.append(imported)
    return _digest("".join(f"{_bare(name)}\n{own[name].code}\n" for name in sorted(own)))


def _is_shared(name: str) -> bool:
    return name in SHARED or name.startswith(tuple(f"{package}." for package in SHARED))


def _bare(name: str) -> str:
    return name.rpartition(".")[2]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
