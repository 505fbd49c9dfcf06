"""What names a run: golden names of both versions, and what may change without renaming anything."""

from __future__ import annotations

import shutil
import sys

import pytest
from omegaconf import OmegaConf, open_dict

from tests.conftest import ROOT
from trainer import class_source, identity, identity_v1, record
from trainer import config as run_config
from trainer.sweeps.plan import plan

REFERENCE = sorted((ROOT / "runs" / "reference").glob("*/*"))

# Names of runs that people have: never to be changed. Version 2, then version 1.
GOLDEN = {
    (): ("bdcdab909996", "3cb60f185330"),
    ("variant=adalora", "seed=3"): ("96067fc8107b", "20093aa7702c"),
    ("variant=lora_fa", "task=opinion"): ("b8b609a0ac63", "9aee563e002d"),
    ("variant=peft", "variant.method=lora", "train.recompute=true"): ("81037954565d", "f4a08985af13"),
    ("experiment=families", "variant=families/shira", "task=opinion", "seed=2"): ("aaadeac423d6", "01fc83bad605"),
}


@pytest.mark.parametrize("overrides", GOLDEN, ids=" ".join)
def test_golden_names(configured, overrides):
    found = plan(configured(list(overrides))).identity
    assert (found.run_id, found.earlier) == GOLDEN[overrides]


@pytest.mark.parametrize("folder", REFERENCE, ids=lambda folder: folder.name)
def test_a_name_of_version_1_is_the_hash_of_all_settings_and_a_later_one_of_those_that_differ(folder):
    found = record.read(folder)
    assert found is not None
    assert identity.run_id(found.config if found.version == 1 else found.identity) == folder.name


@pytest.mark.parametrize("name", ["shira", "increlora", "pissa", "head", "svft", "sparse"])
def test_a_record_of_version_1_has_the_identity_that_its_config_has_today(configured, name):
    config = configured(["experiment=families", f"variant=families/{name}", "task=movie", "seed=0"])
    found = plan(config).identity
    old = record.read(ROOT / "runs" / "reference" / "families" / str(found.earlier))
    assert old is not None and old.identity == found.leaves


def test_a_run_of_version_1_is_done_already(configured, tmp_path):
    overrides = ["experiment=families", "variant=families/shira", "task=opinion", "seed=2", f"runs_dir={tmp_path}"]
    shutil.copytree(ROOT / "runs" / "reference" / "families" / "01fc83bad605", tmp_path / "families" / "01fc83bad605")
    found = plan(configured(overrides))
    assert found.done and found.run_id == "01fc83bad605" and found.folder == tmp_path / "families" / "01fc83bad605"
    again = plan(configured([*overrides, "redo=true"]))
    assert not again.done and again.replaces == found.folder and again.run_id == again.identity.run_id


def test_a_new_option_at_its_default_renames_nothing_in_either_version(configured):
    parts, defaults = run_config.deciding(configured([])), run_config.defaults()
    before = identity.identify(parts, {}, defaults)
    parts["train"] |= {"new_switch": False, "new_number": 3}
    parts["variant"]["new_option"] = None
    defaults |= {"train.new_switch": False, "train.new_number": 3}
    after = identity.identify(parts, {}, defaults)
    assert (after.run_id, after.earlier) == (before.run_id, before.earlier)
    parts["train"]["new_number"] = 4
    other = identity.identify(parts, {}, defaults)
    assert other.run_id != before.run_id and other.earlier is None


def test_false_is_a_value_like_any_other(configured):
    assert plan(configured(["variant.frozen_a=false"])).run_id == plan(configured([])).run_id
    assert plan(configured(["variant.frozen_a=true"])).run_id != plan(configured([])).run_id
    assert plan(configured(["train.group_by_length=false"])).run_id != plan(configured([])).run_id


def test_the_order_of_patterns_is_a_part_of_the_name(configured):
    one, other = ["{query: 4, layer.0.*: 2}", "{layer.0.*: 2, query: 4}"]
    ids = [plan(configured([f"+variant.rank_pattern={pattern}"])).run_id for pattern in (one, other, "{query: 4}")]
    assert len(set(ids)) == 3


COMMIT, OTHER = "a" * 40, "b" * 40


def hub(repo: str, commit: str) -> list[str]:
    """Overrides of a model of the Hub."""
    return ["model=hub", f"model.id={repo}", f"model.revision={commit}", "model.name=mine"]


def own(repo: str, commit: str) -> list[str]:
    """The same as a user's own file in conf/model/ has it, which may say repository and commit in its source alone."""
    source = f"{{_target_: trainer.data.sources.hub.HubModel, repo: {repo}, revision: {commit}}}"
    return ["model=hub", "model.id=null", "model.revision=null", "model.name=mine", f"model.sources=[{source}]"]


def test_a_commit_of_the_hub_that_the_model_names_has_the_name_that_it_always_had(configured):
    """Constants, as in `GOLDEN`."""
    assert plan(configured(hub("x/a", COMMIT))).run_id == "88ac7dbaf690"
    assert plan(configured(hub("x/b", OTHER))).run_id == "d7b0ad88f84f"


@pytest.mark.parametrize("model", [hub, own])
def test_two_repositories_of_the_hub_never_share_a_name(configured, model):
    cases = [("x/a", COMMIT), ("x/b", COMMIT), ("x/a", OTHER), ("x/b", OTHER)]
    found = [plan(configured(model(*case))).identity for case in cases]
    assert len({one.run_id for one in found}) == len({one.earlier for one in found}) == len(cases)


def test_one_is_not_true(configured):
    parts = run_config.deciding(configured(["variant.frozen_a=0"]))
    assert identity.identify(parts, {}, {}).leaves["variant.frozen_a"] == 0


def test_a_class_that_moves_renames_no_run(configured, tmp_path, monkeypatch):
    """As after `git mv variants/shira.py variants/somewhere_else.py`, the config's `_target_` adapted."""
    config = configured(["variant=shira"])
    before, definition = plan(config).identity, class_source.find(config.variant._target_)
    assert definition is not None
    moved = tmp_path / "variants"
    shutil.copytree(ROOT / "variants", moved)
    (tmp_path / definition.module.path.relative_to(ROOT)).rename(moved / "somewhere_else.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "variants", raising=False)
    class_source.read_module.cache_clear()
    class_source._defaults.cache_clear()
    with open_dict(config):
        config.variant._target_ = "variants.somewhere_else.SHiRA"
    try:
        after = plan(config).identity
    finally:
        class_source.read_module.cache_clear()
        class_source._defaults.cache_clear()
    assert class_source.kind("variants.somewhere_else.SHiRA") == "SHiRA"
    assert (after.run_id, after.earlier) == (before.run_id, before.earlier)


def test_every_class_of_version_1_is_still_known_by_its_name():
    here = {
        node["_target_"].rpartition(".")[2]
        for group in ("variant", "task", "model")
        for path in (ROOT / "conf" / group).glob("*.yaml")
        for node in _nodes(OmegaConf.to_container(OmegaConf.load(path)))
    }
    assert {path.rpartition(".")[2] for path in identity_v1.CLASSES} <= here


def _nodes(tree):
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)
