"""Classes read without importing them: their kind, the defaults of their fields, the hash of their code."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from tests.conftest import ROOT
from trainer import class_source

TARGETS = sorted(
    {
        node["_target_"]
        for path in (ROOT / "conf" / "variant").glob("*.yaml")
        if "_target_" in (node := OmegaConf.load(path))
    }
)

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
    class_source._module.cache_clear()
    class_source._defaults.cache_clear()


@pytest.mark.parametrize("target", TARGETS)
def test_the_defaults_are_those_of_the_class(target):
    module, _, name = target.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    wanted = {}
    for field in dataclasses.fields(cls):
        if field.init and field.default is not dataclasses.MISSING:
            wanted[field.name] = field.default
        elif field.init and field.default_factory is not dataclasses.MISSING:
            wanted[field.name] = field.default_factory()
    assert class_source.defaults(target) == wanted


def test_a_default_that_is_no_literal_is_not_known_and_hides_that_of_the_base_class(package):
    found = class_source.defaults("lab_methods.method.Mine")
    assert found["beta"] == 0.5 and found["names"] == [] and found["alpha"] == 16.0
    assert "rank" not in found and "known" not in found


def test_a_class_is_found_where_a_package_hands_it_on(package):
    assert class_source.defaults("lab_methods.Mine") == class_source.defaults("lab_methods.method.Mine")
    assert class_source.code_hash("lab_methods.Mine") == class_source.code_hash("lab_methods.method.Mine")


def test_a_class_of_the_suite_is_known_by_its_name_and_any_other_by_its_path():
    assert class_source.kind("variants.lora.LoRA") == class_source.kind("variants.anywhere.LoRA") == "LoRA"
    assert class_source.kind("torch.optim.AdamW") == "torch.optim.AdamW"
    # `kind` is a field there, not a name for the class.
    assert class_source.kind("trainer.data.sources.files.Files") == "Files"


def test_a_class_may_declare_its_kind_and_is_then_free_to_move(package):
    path = package / "method.py"
    path.write_text(path.read_text().replace("    known:", '    kind = "lab-mine"\n    known:'))
    assert class_source.kind("lab_methods.method.Mine") == "lab-mine"


def hashed(package, file: str, text: str) -> str | None:
    (package / file).write_text(text)
    class_source._module.cache_clear()
    return class_source.code_hash("lab_methods.method.Mine")


def test_the_hash_follows_the_code_of_the_class_and_of_the_modules_of_its_own(package):
    method, scores = (package / "method.py").read_text(), (package / "scores.py").read_text()
    before = class_source.code_hash("lab_methods.method.Mine")
    assert hashed(package, "scores.py", scores.replace("return x", "return -x")) != before
    assert hashed(package, "scores.py", scores) == before
    assert hashed(package, "method.py", method.replace("2 *", "3 *")) != before
    (package / "unrelated.py").write_text("x = 1\n")
    assert hashed(package, "method.py", method) == before


def test_a_sweep_normalises_the_code_of_a_method_once_for_all_its_runs(package, monkeypatch):
    first = class_source.code_hash("lab_methods.method.Mine")
    monkeypatch.setattr(ast, "unparse", lambda node: pytest.fail("normalised again"))
    assert class_source.code_hash("lab_methods.method.Mine") == first


def test_comments_docstrings_and_layout_are_no_code(package):
    method = (package / "method.py").read_text()
    before = class_source.code_hash("lab_methods.method.Mine")
    edited = (
        method.replace("Its card.", "Another card.").replace("# no literal", "# four").replace("2 * score", "2*score")
    )
    assert edited != method and hashed(package, "method.py", edited) == before


def test_a_class_that_has_no_source_here_has_no_hash_and_no_defaults():
    for target in ("nowhere.at.All", "builtins.dict", "variants.lora.Missing", "plain"):
        assert class_source.code_hash(target) is None and class_source.defaults(target) == {}


def test_nothing_is_imported():
    code = (
        "import sys; from trainer import class_source as c; c.defaults('variants.dora.DoRA');"
        "c.code_hash('variants.dora.DoRA'); c.code_hash('torch.optim.AdamW'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
