"""`from loratory import …` in a checkout."""

from __future__ import annotations

import re
import sys

import pytest
import yaml

import loratory
from tests.conftest import ROOT
from trainer import class_source, code_hash


def test_every_method_is_a_name_of_it():
    files = sorted((ROOT / "conf" / "variant").glob("[!_]*.yaml"))
    targets = {yaml.safe_load(path.read_text()).get("_target_") for path in files} - {None}
    for target in targets:
        module, _, name = target.rpartition(".")
        found = getattr(loratory, name)
        assert (found.__module__, found.__name__) == (module, name)
        assert name in dir(loratory)


def test_the_callback_for_transformers_trainer_is_a_name_of_it():
    from trainer.loop.trainer_callback import VariantCallback

    assert loratory.VariantCallback is VariantCallback


def test_what_it_does_not_have_is_an_error_that_lists_what_it_has():
    with pytest.raises(AttributeError, match=r"module 'loratory' has no 'Lora'; allowed: AFLoRA, .*LoRA"):
        _ = loratory.Lora


def test_its_version_is_that_of_the_citation_and_the_changelog():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == loratory.__version__
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest and latest[1] in (loratory.__version__, "Unreleased")


def test_both_names_of_a_module_are_one_module() -> None:
    from loratory.variants.lora import LoRA

    from variants import lora

    assert LoRA is lora.LoRA


@pytest.mark.parametrize("written", ["from loratory import LoRA", "from loratory.variants.lora import LoRA"])
def test_a_class_is_the_same_by_whichever_name_it_imports_the_suite(written: str, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in (("own_a", "from variants.lora import LoRA"), ("own_b", written)):
        (tmp_path / f"{name}.py").write_text(f"{text}\n\n\nclass Mine(LoRA):\n    pass\n")
    class_source.read_module.cache_clear()
    assert class_source.defaults("own_b.Mine") == class_source.defaults("own_a.Mine") != {}
    assert code_hash.of("own_b.Mine") == code_hash.of("own_a.Mine")


def test_a_target_may_begin_with_the_packages_name() -> None:
    assert class_source.kind("loratory.variants.lora.LoRA") == class_source.kind("variants.lora.LoRA") == "LoRA"


def test_a_reader_of_the_help_may_close_the_pipe_early(monkeypatch):
    import train

    def closed() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    turned: list[tuple[int, int]] = []
    monkeypatch.setattr(train, "main", closed)
    monkeypatch.setattr(train.os, "dup2", lambda *files: turned.append(files))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    train.cli()
    assert len(turned) == 1
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit, match="Broken pipe"):
        train.cli()
