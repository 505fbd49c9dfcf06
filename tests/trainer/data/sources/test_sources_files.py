"""The user's own tables, good and bad."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from trainer.data.sources.files import Files
from trainer.errors import ConfigError

ROWS = [
    ("good, really", "pos"),
    ('she said "no"', "neg"),
    ("two\nlines", "pos"),
    ("tab\there", "neg"),
    ("café", "pos"),
    ("NA", "neg"),
]


def table(path: Path, rows: list[tuple[object, ...]], columns: tuple[str, ...] = ("text", "label")) -> str:
    frame = pd.DataFrame(rows, columns=list(columns))
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        frame.to_parquet(path)
    return str(path)


def error_of(**settings: object) -> str:
    with pytest.raises(ConfigError) as error:
        Files(**settings).load()  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same(tmp_path, ending):
    path = table(tmp_path / f"train.{ending}", ROWS)
    data = Files(path, path).load()
    assert list(data.splits) == ["train", "validation"]
    assert data.labels == ("neg", "pos")
    train = data.splits["train"]
    assert train["text"][:] == [text for text, _ in ROWS]
    assert train["label"][:] == [int(label == "pos") for _, label in ROWS]
    assert set(map(type, train["label"])) == {int}
    assert len(set(train["id"][:])) == len(ROWS)


def test_ids_outlive_a_new_order_and_tell_duplicates_apart(tmp_path):
    rows = [("a", "x"), ("b", "y"), ("a", "x")]
    one = Files(table(tmp_path / "1.csv", rows), table(tmp_path / "v.csv", rows)).load().splits["train"]
    other = Files(table(tmp_path / "2.csv", rows[::-1]), str(tmp_path / "v.csv")).load().splits["train"]
    assert len(set(one["id"][:])) == 3
    assert set(one["id"][:]) == set(other["id"][:])


def test_whole_numbers_are_classes_in_their_order(tmp_path):
    for ending, values in (("csv", (2, 10, 9)), ("parquet", (2.0, 10.0, 9.0)), ("jsonl", (2, 10, "9"))):
        path = table(tmp_path / f"t.{ending}", [(f"text {n}", value) for n, value in enumerate(values)])
        data = Files(path, path).load()
        assert data.labels == ("2", "9", "10"), ending
        assert data.splits["train"]["label"][:] == [0, 2, 1]


def test_pairs_and_other_column_names(tmp_path):
    columns = ("premise", "hypothesis", "gold", "more")
    path = table(tmp_path / "t.jsonl", [("a", "b", "yes", 1), ("c", "d", "no", 2)], columns)
    train = Files(path, path, text="premise", text_pair="hypothesis", label="gold").load().splits["train"]
    assert train.column_names == ["id", "text", "text_pair", "label"]
    assert train["text_pair"][:] == ["b", "d"]


def test_a_regression(tmp_path):
    path = table(tmp_path / "t.csv", [("a", "1.5"), ("b", "-2"), ("c", "3e-1")])
    data = Files(path, path, kind="regression").load()
    assert data.labels is None
    assert data.splits["train"]["label"][:] == [1.5, -2.0, 0.3]
    assert set(map(type, data.splits["train"]["label"])) == {float}


def test_a_share_is_held_out_by_the_text(tmp_path):
    rows = [(f"text {n % 150}", "ab"[n % 2]) for n in range(300)]
    path = table(tmp_path / "t.csv", rows)
    splits = Files(path, holdout=0.2).load().splits
    train, validation = (set(splits[name]["text"][:]) for name in ("train", "validation"))
    assert not train & validation
    assert 15 <= len(validation) <= 45
    grown = table(tmp_path / "more.csv", [*rows[::-1], ("something new", "a")])
    assert validation <= set(Files(grown, holdout=0.2).load().splits["validation"]["text"][:])


def test_texts_in_both_files_are_reported(tmp_path, caplog):
    train = table(tmp_path / "t.csv", [("a", "x"), ("b", "y")])
    Files(train, table(tmp_path / "v.csv", [("A ", "x"), ("c", "y")])).load()
    assert "1 texts of validation are also in train" in caplog.text


def test_the_identity_is_the_content_and_never_the_path(tmp_path):
    one, other = (table(tmp_path / name, ROWS) for name in ("one.csv", "other.csv"))
    assert Files(one).identity() == Files(other).identity()
    assert list(Files(one, other).identity()) == ["train", "validation"]
    assert str(tmp_path) not in str(Files(one).identity())
    with pytest.raises(ConfigError, match=r"task.source.train_path: .*nowhere.csv' can't be read: No such file"):
        Files(str(tmp_path / "nowhere.csv")).identity()


def test_bad_settings():
    assert "task.source.kind: 'ranking'; allowed: classification, regression" in error_of(
        train_path="t.csv", kind="ranking"
    )
    assert "task.source.holdout: 1.0; allowed: above 0 and below 1" in error_of(train_path="t.csv", holdout=1.0)
    assert "allowed: different columns" in error_of(train_path="t.csv", text="a", label="a")
    assert "train_path: not given" in error_of(train_path="???")
    assert "unknown suffix; allowed: .csv, .tsv, .jsonl, .parquet" in error_of(train_path="t.xlsx")
    assert "task.source.train_path: 'nowhere.csv' does not exist" in error_of(train_path="nowhere.csv")


def test_bad_tables(tmp_path):
    good = table(tmp_path / "good.csv", ROWS)

    def bad(name: str, content: str | bytes, **settings: object) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return error_of(**{"train_path": str(path), "validation_path": good, **settings})

    assert "has no column 'text'; found: 'review', 'label'" in bad("a.csv", "review,label\na,b\n")
    assert "has no column 'text'; found: none" in bad("empty.csv", "")
    assert "has the column 'text' more than once" in bad("b.csv", "text,text,label\na,b,c\n")
    assert "has no rows; allowed: one or more" in bad("c.csv", "text,label\n")
    assert "line 3 has 1 fields, the header has 2" in bad("d.csv", "text,label\na,b\nc")
    assert "line 3: unexpected end of data" in bad("e.csv", 'text,label\na,b\n"c d')
    assert "isn't quoted" in bad("f.csv", 'text,label\n"a" b,c\n')
    assert "is not UTF-8 text (byte 11)" in bad("g.csv", b"text,label\n\xff,b\n")
    assert "line 2 is truncated or not JSON" in bad("h.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "la')
    assert "line 1 is not an object" in bad("i.jsonl", "[1]\n")
    assert "line 2 has no column 'label'; found: 'text'" in bad("j.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n')
    whole = Path(table(tmp_path / "whole.parquet", ROWS)).read_bytes()
    assert "truncated or not parquet" in bad("k.parquet", whole[: len(whole) // 2])
    assert "has no column 'review'" in bad("l.parquet", whole, text="review")
    assert "column 'text': row 2 is empty" in bad("m.csv", "text,label\na,b\n ,c\n")
    assert "column 'text': row 1 is empty" in bad("n.jsonl", '{"text": null, "label": 1}\n')
    assert "column 'text': row 1 is 5; allowed: a text" in bad("o.jsonl", '{"text": 5, "label": 1}\n')


def test_bad_labels(tmp_path):
    def bad(labels: list[object], validation: list[object] | None = None, **settings: object) -> str:
        paths = {"train_path": table(tmp_path / "t.jsonl", [(f"t{n}", label) for n, label in enumerate(labels)])}
        rows = validation or labels
        paths["validation_path"] = table(tmp_path / "v.jsonl", [(f"v{n}", label) for n, label in enumerate(rows)])
        return error_of(**paths, **settings)

    assert "all of train has the label 'a'; allowed: two or more classes" in bad(["a", "a"])
    assert "validation has labels that train lacks: 'c'; allowed: 'a', 'b'" in bad(["a", "b"], ["a", "c"])
    assert "column 'label': row 2 is None" in bad(["a", None])
    assert "row 1 is 0.5; allowed: whole numbers or names, or task.source.kind=regression" in bad([0.5, 1.0])
    assert "row 2 is 'b'; allowed for a regression: a finite number" in bad([1, "b"], kind="regression")
    assert "row 2 is nan" in bad([1, float("nan")], kind="regression")
    assert "row 1 is inf" in bad([float("inf"), 1], kind="regression")
    assert "row 1 is None" in bad([None, 1], kind="regression")
    assert "all of train has the label 2.0; allowed: two or more values" in bad([2, 2], kind="regression")


def test_a_holdout_that_leaves_nothing(tmp_path):
    path = table(tmp_path / "t.csv", [("a", "x"), ("b", "y")])
    assert "task.source.holdout: 0.001 of 2 different texts leaves none for validation" in error_of(
        train_path=path, holdout=0.001
    )

    same = table(tmp_path / "s.csv", [("a", "x"), ("A ", "y")])
    assert "task.source.holdout: 0.1 of 1 different texts leaves none for validation; allowed: a fraction" in error_of(
        train_path=same, prompt="text", response="label"
    )


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_has_no_end_is_no_file_of_data(tmp_path, kind):
    path = tmp_path / "train.csv"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"task\.source\.train_path: .* can't be read: it is not a regular file"):
        Files(str(path)).identity()
