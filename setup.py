"""Builds a wheel whose only name at the top is `loratory`.

In a checkout the suite's packages (`variants`, `trainer`, …) stand at the top. Other projects have packages of these
names, too, so the wheel holds them within `loratory`, and every import of them is rewritten: `from variants.lora import
LoRA` becomes `from loratory.variants.lora import LoRA`. Names in configs and records stay as they are;
`variants.core.placement` says how they are found. Hydra only loads plugins from a package `hydra_plugins`: it lies in
`loratory/_plugins`, which only the command puts on the module path.
"""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

NAME = "loratory"
PACKAGES = ("variants", "trainer", "analysis", "weights")
MOVED = (*PACKAGES, "train")
PLUGINS = "hydra_plugins"


def rewritten(source: str, name: str = "source") -> str:
    """The source of a module with imports of the suite's packages below `loratory`.

    Raises `ValueError` for an import that binds the bare name of a package, which can't be rewritten in its place.
    """
    lines = source.encode().splitlines(keepends=True)
    places: list[tuple[int, int]] = []  # line and column, in bytes
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and _is_moved(node.module):
            assert node.module
            line = node.lineno - 1
            places.append((line, lines[line].index(node.module.encode(), node.col_offset + len("from"))))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _is_moved(alias.name) and alias.asname is None:
                    raise ValueError(
                        f"{name}:{node.lineno}: import {alias.name}, allowed: from … import, or import … as"
                    )
                if _is_moved(alias.name):
                    places.append((alias.lineno - 1, alias.col_offset))
    for line, column in sorted(places, reverse=True):
        lines[line] = lines[line][:column] + f"{NAME}.".encode() + lines[line][column:]
    return b"".join(lines).decode()


def _is_moved(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in MOVED


class BuildSuite(build_py):
    """`build_py`, then the move. An editable installation leaves everything in its place."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        built = Path(self.build_lib)
        target = built / NAME
        # Folders are copied whole, with templates, tables and configs.
        for name in (*PACKAGES, PLUGINS, "conf"):
            folder = target / "_plugins" / name if name == PLUGINS else target / name
            shutil.rmtree(built / name, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
            shutil.copytree(name, folder, ignore=shutil.ignore_patterns("__pycache__", "rates"))
        shutil.move(built / "train.py", target / "train.py")
        for path in target.rglob("*.py"):
            path.write_bytes(rewritten(path.read_text(encoding="utf-8"), str(path)).encode())


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildSuite})
