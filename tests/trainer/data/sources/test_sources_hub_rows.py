"""Data sets of the Hub by templates: what becomes of their fields, where they are looked for, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.conftest import ROOT
from trainer.data.sources import hub_rows
from trainer.data.sources.hub_rows import HubRows
from trainer.data.sources.split import normalised
from trainer.errors import ConfigError

CONF = ROOT / "conf" / "task"
OF_THE_HUB = [
    path.stem for path in sorted(CONF.glob("*.yaml")) if "hub_rows.HubRows" in path.read_text(encoding="utf-8")
]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch) -> Callable[..., None]:
    """Puts rows into the Hub's cache, as it were: the files of a split."""
    monkeypatch.setattr(hub_rows, "_folder", lambda part: tmp_path / part["repo"].replace("/", "--"))

    def put(repo: str, *files: Sequence[Mapping[str, Any]], split: str = "default/train") -> None:
        folder = tmp_path / repo.replace("/", "--") / split
        folder.mkdir(parents=True)
        for number, rows in enumerate(files):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), folder / f"{number:04}.parquet")

    return put


def refused(**settings: Any) -> str:
    with pytest.raises(ConfigError) as error:
        HubRows(**settings).load()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_templates_make_texts_and_a_field_alone_stays_what_it_is(stored):
    row = {"q": {"en": "two {braces}?"}, "a": [4, 5], "picture": {"bytes": b"\0", "path": None}, "n": 1}
    stored("a/b", [row], [row])
    stored("a/c", [row], split="main/test")
    columns = {
        "prompt": "Q: {q.en} {n}\nA:",
        "choices": ["{q.en}", "none"],
        "answers": {"text": ["{q.en}"], "start": "{a}"},
        "tags": "{a}",
        "image": "{picture.bytes}",
        "label": "{n}",
    }
    data = HubRows({"repo": "a/b"}, columns, {"repo": "a/c", "config": "main", "split": "test"}).load()
    assert {name: rows["id"][:] for name, rows in data.splits.items()} == {
        "train": ["train-1", "train-2"],
        "validation": ["validation-1"],
    }
    assert data.labels is None
    for rows in data.splits.values():
        assert rows[0] == {
            "id": rows["id"][0],
            "prompt": "Q: two {braces}? 1\nA:",
            "choices": ["two {braces}?", "none"],
            "answers": {"text": ["two {braces}?"], "start": [4, 5]},
            "tags": [4, 5],
            "image": b"\0",
            "label": 1,
        }


def test_a_split_has_columns_of_its_own_and_an_empty_field_another_template(stored):
    stored("a/b", [{"q": "one?", "extra": "", "a": "1"}, {"q": "two?", "extra": "hm", "a": "2"}])
    stored("a/c", [{"other": "three?"}])
    data = HubRows(
        {"repo": "a/b"},
        {"prompt": "{q} ({extra})", "response": "{a}"},
        {"repo": "a/c", "columns": {"prompt": "{other}", "response": "3"}},
        {"extra": {"prompt": "{q}"}},
    )
    with pytest.raises(ConfigError, match=r"has no column extra"):
        data.load()
    stored("a/d", [{"other": "three?", "extra": "", "q": "q"}])
    data = HubRows(data.train, data.columns, {**(data.validation or {}), "repo": "a/d"}, {"extra": {"prompt": "{q}"}})
    assert data.load().splits["train"]["prompt"][:] == ["one?", "two? (hm)"]


def test_without_a_validation_split_a_share_of_the_texts_is_held_out(stored):
    stored("a/b", [{"t": f"text {number // 2}"} for number in range(400)])
    data = HubRows({"repo": "a/b"}, {"text": "{t}"}, holdout=0.25).load()
    train, validation = ({normalised(text) for text in rows["text"][:]} for rows in data.splits.values())
    assert not train & validation and len(train) + len(validation) == 200 and 30 < len(validation) < 70


def test_classes_of_images_have_the_names_given_or_their_numbers(stored):
    stored("a/b", [{"i": b"x", "l": number} for number in (0, 2)])
    source = HubRows({"repo": "a/b"}, {"image": "{i}", "label": "{l}"}, {"repo": "a/b"})
    assert source.load().labels == ("0", "1", "2")
    named = {"train": source.train, "columns": source.columns, "validation": source.validation}
    assert HubRows(**named, labels=["a", "b", "c"]).load().labels == ("a", "b", "c")
    assert refused(**named, labels=["a", "b"]).startswith("task.source.columns.label: row 2 is 2; allowed: a class id")


def test_what_does_not_fit_is_one_line(stored):
    stored("a/b", [{"t": "x", "n": None, "words": ["a"], "blank": " ", "word": "yes"}])
    part, here = {"repo": "a/b"}, "Hub a/b@refs/convert/parquet: default/train"
    both = {"train": part, "validation": part}
    assert refused(**both, columns={"text": "{no}"}).startswith(f"{here}: 0000.parquet has no column no (found: t,")
    assert refused(**both, columns={"text": "{n}"}) == f"{here}: row 1 has no n; allowed: a value in every row"
    assert refused(**both, columns={"text": "{t.en}"}).startswith(f"{here}: row 1 has no t.en")
    assert refused(**both, columns={"text": "{blank}"}).startswith(f"{here}: row 1, column text: row 1 is empty")
    assert "is ['a']; allowed: a text" in refused(**both, columns={"text": "{words}"})
    assert "tags: a value's type is not that of its column" in refused(**both, columns={"tags": "{words}"})
    assert "task.source.columns.label: row 1 is 'yes'" in refused(**both, columns={"image": "{t}", "label": "{word}"})
    assert refused(**both, columns={"texts": "{t}"}).startswith("task.source.columns.texts: no such column, allowed: ")
    assert refused(train={"repo": "???"}, columns={"text": "{t}"}).startswith("task.source.train.repo: not given")
    assert refused(train={"name": "a/b"}, columns={"text": "{t}"}).startswith("task.source.train.name: no such field")
    assert "task.source.holdout: 1" in refused(train=part, columns={"text": "{t}"}, holdout=1)
    empty = refused(**both, columns={"text": "{t}"}, where_empty={"n": {"prompt": "{t}"}})
    assert empty == "task.source.where_empty.n.prompt: no such column, allowed: text"


FETCH = """
from trainer.errors import ConfigError
from trainer.data.sources.hub_rows import HubRows
try:
    source = HubRows({{"repo": "owner/name"}}, {{"text": "{{t}}"}}, {{"repo": "owner/name", "split": {split!r}}})
    print({{name: rows["text"][:] for name, rows in source.load().splits.items()}}, source.identity())
except ConfigError as error:
    print("ConfigError:", error)
"""


def test_only_the_files_of_its_splits_are_fetched_from_the_branch_with_parquet(hub):
    def parquet(text: str) -> bytes:
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"t": [text]}), buffer)
        return buffer.getvalue()

    hub.repositories["datasets/owner/name"] = {
        "default/train/0000.parquet": parquet("one"),
        "default/train/0001.parquet": parquet("two"),
        "default/test/0000.parquet": parquet("three"),
        "other/train/0000.parquet": b"x",
        "default/partial-train/0000.parquet": b"x",
    }
    expected = (
        "{'train': ['one', 'two'], 'validation': ['three']} "
        f"{{'train commit': '{hub.commit}', 'validation commit': '{hub.commit}'}}"
    )
    assert hub.run(FETCH.format(split="test")) == expected
    assert not [path for path in hub.asked if "other/" in path.split("/resolve/")[-1] or "partial" in path]
    assert hub.run(FETCH.format(split="test"), HF_HUB_OFFLINE="1") == expected
    text = hub.run(FETCH.format(split="dev"))
    assert "has none of the files needed (found: default/partial-train/" in text and len(text.splitlines()) == 1


@pytest.mark.parametrize("name", OF_THE_HUB)
def test_the_configs_of_the_hub_say_what_they_are(name):
    config = OmegaConf.create({"task": OmegaConf.load(CONF / f"{name}.yaml")})
    if name == "vtab":
        config.task.set = "dtd"
    source = instantiate(config.task.source, _convert_="all")
    kinds = {
        "causal_lm": {"prompt", "response"},
        "seq2seq": {"source", "target"},
        "extractive_qa": {"context", "question", "answers"},
        "token_classification": {"tokens", "tags"},
        "image_classification": {"image", "label"},
    }
    for part in filter(None, (source.train, source.validation)):
        assert set(part.get("columns", source.columns)) == kinds[config.task.kind]
    assert "Not run here" in (CONF / f"{name}.yaml").read_text(encoding="utf-8")
