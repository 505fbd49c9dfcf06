"""`from loratory import …` in a checkout."""

from __future__ import annotations

import re

import pytest
import yaml

import loratory
from tests.conftest import ROOT


def test_every_method_is_a_name_of_it():
    files = sorted((ROOT / "conf" / "variant").glob("[!_]*.yaml"))
    targets = {yaml.safe_load(path.read_text()).get("_target_") for path in files} - {None}
    for target in targets:
        module, _, name = target.rpartition(".")
        found = getattr(loratory, name)
        assert (found.__module__, found.__name__) == (module, name)
        assert name in dir(loratory)


def test_what_it_does_not_have_is_an_error_that_lists_what_it_has():
    with pytest.raises(AttributeError, match="module 'loratory' has no 'Lora'; methods: AFLoRA, .*LoRA"):
        _ = loratory.Lora


def test_its_version_is_that_of_the_citation_and_the_changelog():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == loratory.__version__
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest and latest[1] in (loratory.__version__, "Unreleased")
