"""Classes read without importing them: their kind and the defaults of their fields."""

from __future__ import annotations

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


def test_a_class_of_the_suite_is_known_by_its_name_and_any_other_by_its_path():
    assert class_source.kind("variants.lora.LoRA") == class_source.kind("variants.anywhere.LoRA") == "LoRA"
    assert class_source.kind("torch.optim.AdamW") == "torch.optim.AdamW"
    # `kind` is a field there, not a name for the class.
    assert class_source.kind("trainer.data.sources.files.Files") == "Files"


def test_a_class_may_declare_its_kind_and_is_then_free_to_move(package):
    path = package / "method.py"
    path.write_text(path.read_text().replace("    known:", '    kind = "lab-mine"\n    known:'))
    assert class_source.kind("lab_methods.method.Mine") == "lab-mine"


def test_a_class_that_has_no_source_here_has_no_defaults():
    for target in ("nowhere.at.All", "builtins.dict", "variants.lora.Missing", "plain"):
        assert class_source.defaults(target) == {}


def test_nothing_is_imported():
    code = (
        "import sys; from trainer import class_source, code_hash; class_source.defaults('variants.dora.DoRA');"
        "code_hash.of('variants.dora.DoRA'); code_hash.of('torch.optim.AdamW'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
