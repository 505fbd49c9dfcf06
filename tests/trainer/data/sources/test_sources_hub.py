"""The Hub's loader against a small server that answers as the Hub does, and against no Hub at all."""

from __future__ import annotations

import time

import pytest

from trainer.data.sources.hub import within

pytestmark = pytest.mark.slow


FETCH = """
from trainer.errors import ConfigError
from trainer.data.sources.hub import HubModel
source = HubModel("owner/name", {revision!r})
try:
    print(source.fetch())
    print(source.identity())
except ConfigError as error:
    print("ConfigError:", error)
"""
MAIN = FETCH.format(revision="main")
NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # the port where nobody listens


def test_any_model_is_fetched_without_what_is_not_needed(hub, helpers):
    extras = {
        "README.md": b"x",
        "onnx/model.onnx": b"x",
        "pytorch_model.bin": b"x",
        "training_args.bin": b"x",
        "vocab.txt": b"x",
    }
    hub.repositories["models/owner/name"] = helpers.model_files() | extras
    folder, identity = hub.run(MAIN).splitlines()
    assert folder.endswith(hub.commit)
    assert identity == f"{{'commit': '{hub.commit}'}}"
    fetched = {path.split("/resolve/")[1].split("/", 1)[1] for path in hub.asked if "/resolve/" in path}
    assert fetched == set(helpers.model_files()) | {"vocab.txt"}


def test_a_pinned_revision_has_no_identity_of_its_own(hub, helpers):
    hub.repositories["models/owner/name"] = helpers.model_files()
    assert hub.run(FETCH.format(revision=hub.commit)).splitlines()[1] == "{}"


def test_what_is_in_the_hubs_cache_works_offline(hub, helpers):
    hub.repositories["models/owner/name"] = helpers.model_files()
    first = hub.run(MAIN)
    assert hub.run(MAIN, HF_HUB_OFFLINE="1") == first
    unreachable = hub.process(MAIN, **NOWHERE)
    assert unreachable.stdout.strip() == first
    assert "the cached one is used" in unreachable.stderr
    hub.asked.clear()
    pinned = hub.run(FETCH.format(revision=hub.commit))
    assert pinned.splitlines()[0] == first.splitlines()[0]
    assert not hub.asked, "a commit never changes: nothing to ask"


def test_offline_without_a_copy_is_one_line(hub):
    text = hub.run(MAIN, HF_HUB_OFFLINE="1")
    assert text.startswith("ConfigError: Hub owner/name@main: HF_HUB_OFFLINE is set")
    assert "model=folder" in text and len(text.splitlines()) == 1


def test_an_unreachable_hub_fails_at_once_and_names_the_alternatives(hub):
    start = time.monotonic()
    text = hub.run(MAIN, **NOWHERE)
    assert time.monotonic() - start < 8  # two starts of an interpreter with huggingface_hub, on a busy machine
    assert text.startswith("ConfigError: Hub owner/name@main: the Hub can't be reached (ConnectError")
    assert "model=minilm" in text and len(text.splitlines()) == 1


def test_a_hub_that_never_answers_is_given_up():
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0.2 s"):
        within(0.2, lambda: time.sleep(5))
    assert time.monotonic() - start < 2


def test_a_repository_that_is_not_there(hub):
    text = hub.run(MAIN)
    assert text.startswith("ConfigError: Hub owner/name@main: the Hub has no such repository")
    assert len(text.splitlines()) == 1


def test_an_id_that_is_none(hub):
    text = hub.run(MAIN.replace("owner/name", "a/b/c"))
    assert text.startswith("ConfigError: Hub a/b/c@main: 'a/b/c' is not a Hub id; allowed: name or owner/name")


def test_a_repository_without_weights(hub, helpers):
    files = helpers.model_files()
    del files["model.safetensors"]
    hub.repositories["models/owner/name"] = files
    assert "the weights are missing" in hub.run(MAIN)


WRONG = """
import sys
from pathlib import Path
from trainer.errors import ConfigError
from trainer.data.sources import fetch_model
from trainer.data.sources.hub import HubModel
try:
    fetch_model([HubModel("owner/name")], {"model.safetensors": "0" * 64})
except ConfigError as error:
    print(error)
"""


def test_wrong_content_is_dropped_from_the_cache_if_this_process_put_it_there(hub, helpers, tmp_path):
    hub.repositories["models/owner/name"] = helpers.model_files()
    environment = {"LORATORY_CACHE": str(tmp_path / "cache")}
    text = hub.run(WRONG, **environment)
    assert "wrong sha256: expected 0000" in text and len(text.splitlines()) == 1
    assert not list(hub.home.rglob("model.safetensors"))
    hub.run(MAIN)  # the user's other work fetches it, by whatever means
    assert "wrong sha256" in hub.run(WRONG, HF_HUB_OFFLINE="1", **environment)
    assert list(hub.home.rglob("model.safetensors"))


GLUE = """
from trainer.errors import ConfigError
from trainer.data.sources.glue import Glue
try:
    source = Glue("rte", "nyu-mll/glue", "{commit}")
    data = source.load()
    print({{name: len(split) for name, split in data.splits.items()}}, source.identity())
except ConfigError as error:
    print("ConfigError:", error)
"""


def test_glue_from_the_hub_and_from_its_cache(hub, glue_folder):
    files = {f"rte/{path.name}": path.read_bytes() for path in sorted((glue_folder / "rte").glob("*.parquet"))}
    hub.repositories["datasets/nyu-mll/glue"] = files | {
        "rte/test-00000-of-00001.parquet": b"x",
        "README.md": b"x",
    }
    code = GLUE.format(commit=hub.commit)
    expected = "{'train': 2490, 'validation': 277} {}"
    assert hub.run(code) == expected
    assert not [path for path in hub.asked if "test-" in path]
    assert hub.run(code, HF_HUB_OFFLINE="1") == expected
    assert hub.run(code, **NOWHERE) == expected


def test_glue_without_a_hub_names_the_alternatives(hub):
    text = hub.run(GLUE.format(commit=hub.commit), **NOWHERE)
    assert "can't be reached" in text and "glue.path=" in text and len(text.splitlines()) == 1
