"""A package of the user's own."""

from __future__ import annotations

import importlib

import pytest

from trainer import class_source

METHOD = '''
"""A method."""

from dataclasses import dataclass, field
from typing import ClassVar

from {package}.scores import score
from variants.lora import LoRA

SIZE = 4


@dataclass
class Mine(LoRA):
    """Its card."""

    name: str = "mine"
    rank: int = SIZE  # no literal
    beta: float = 0.5
    names: list[str] = field(default_factory=list)
    known: ClassVar[int] = 3

    def double(self):
        return 2 * score(self.beta)
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's own with a method in it, which nothing has imported."""
    folder = tmp_path / "lab_methods"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .method import Mine\n")
    (folder / "method.py").write_text(METHOD.format(package="lab_methods"))
    (folder / "scores.py").write_text("def score(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield folder
    class_source.read_module.cache_clear()
    class_source._defaults.cache_clear()
