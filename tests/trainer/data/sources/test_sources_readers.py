"""Quotes, line ends and column names of tables: a file is read by its own rules, or something is said."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from trainer.data.sources.files import Files
from trainer.data.sources.readers import read_columns
from trainer.errors import ConfigError
from trainer.instantiate import make


def read(folder: Path, name: str, content: str, columns: tuple[str, ...] = ("text", "label")) -> list[tuple[str, ...]]:
    path = folder / name
    path.write_bytes(content.encode())
    return list(zip(*read_columns(path, columns, "task.source.train_path").values(), strict=True))


LETTERS = [
    ('"a clumsy film', "neg"),
    ('a warm one "', "pos"),
    ('she said "no"', "neg"),
    ('"great" film', "pos"),
    ('"', "neg"),
    ('"Titanic"', "pos"),
]


def test_quotes_in_a_tsv_are_letters(tmp_path):
    content = "text\tlabel\n" + "".join("\t".join(row) + "\n" for row in LETTERS)
    assert read(tmp_path, "t.tsv", content) == LETTERS
    assert read(tmp_path, "crlf.tsv", content.replace("\n", "\r\n")) == LETTERS
    assert read(tmp_path, "cr.tsv", content.replace("\n", "\r")) == LETTERS
    assert read(tmp_path, "one.tsv", 'label\ttext\npos\t"Titanic"\nneg\tnone\n') == [
        ('"Titanic"', "pos"),
        ("none", "neg"),
    ]


@pytest.mark.parametrize("quoting", [0, 1])  # where it is needed, and all
def test_a_tsv_that_was_written_with_quotes_is_read_with_them(tmp_path, quoting):
    for rows in (
        [('she said "no"', "a"), ("plain", "b"), ('"whole"', "a")],
        [("two\nlines", "a"), ("tab\there", "b"), ("three\r\n\nlines", "a")],
        [("plain", "a"), ("more", "b")],
    ):
        pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "t.tsv", sep="\t", index=False, quoting=quoting)
        assert list(zip(*read_columns(tmp_path / "t.tsv", ["text", "label"], "f").values(), strict=True)) == rows


def test_a_stray_quote_that_joins_lines_of_a_csv_is_said(tmp_path, caplog):
    content = 'text,label\ngood,pos\n"a clumsy film,neg\na warm one",pos\nbad,neg\n'
    assert len(read(tmp_path, "t.csv", content)) == 3
    assert "quotes join several lines into one row 1 times" in caplog.text and "lines 3 to 4" in caplog.text


def test_a_stray_quote_in_a_tsv_with_a_broken_line_is_said(tmp_path, caplog):
    read(tmp_path, "t.tsv", 'text\tlabel\n"a clumsy film\tneg\nbroken\na warm one"\tpos\n')
    assert "quotes join several lines into one row" in caplog.text


def test_texts_that_span_lines_in_earnest_are_read_without_a_word(tmp_path, caplog):
    assert read(tmp_path, "t.csv", 'text,label\n"two\nlines",pos\n"Dear all,\n\nbye",neg\n') == [
        ("two\nlines", "pos"),
        ("Dear all,\n\nbye", "neg"),
    ]
    assert not caplog.text


@pytest.mark.parametrize(
    "name, line", [("t.csv", "a,{}"), ("t.tsv", "a\t{}"), ("t.jsonl", '{{"text": "a", "label": "{}"}}')]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end(tmp_path, name, line, end):
    head = [] if name == "t.jsonl" else [line.replace("a", "text").format("label")]
    assert read(tmp_path, name, end.join([*head, line.format("x"), line.format("y"), ""])) == [("a", "x"), ("a", "y")]


def test_names_of_columns_are_printed_so_that_a_blank_is_seen(tmp_path):
    with pytest.raises(ConfigError, match="has no column 'label'; found: 'text', 'label '"):
        read(tmp_path, "t.csv", "text,label \na,b\n")
    with pytest.raises(ConfigError, match="has no column 'label'; found: 'text', '\\\\xa0label'"):
        read(tmp_path, "t.tsv", "text\t\xa0label\na\tb\n")


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "jsonl"])
def test_numbers_as_names_of_columns(configured, tmp_path, ending):
    frame, path = pd.DataFrame([("good", "x"), ("bad", "y")]), tmp_path / f"t.{ending}"
    if ending == "parquet":
        frame.rename(columns=str).to_parquet(path)
    elif ending == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, sep="\t" if ending == "tsv" else ",", index=False)
    overrides = ["task=file", f"task.source.train_path={path}", f"task.source.validation_path={path}"]
    config = configured([*overrides, "task.source.text=0", "task.source.label=1"])  # which Hydra reads as numbers
    data = make("task.source", config.task.source).load()
    assert data.splits["train"]["text"][:] == ["good", "bad"]


@pytest.mark.parametrize("value", [1.5, True, ["a"]])
def test_what_is_no_name_of_a_column(value):
    with pytest.raises(ConfigError, match=r"task.source.label: .* allowed: a column's name"):
        Files("t.csv", label=value)


@pytest.mark.parametrize("column", ["text", "label"])
def test_half_a_character_is_refused_with_its_row(tmp_path, column):
    row = {"text": "good", "label": "x"} | {column: r"half \ud83d"}
    path = tmp_path / "t.jsonl"
    lines = ['{"text": "bad", "label": "y"}', *('{{"text": "{text}", "label": "{label}"}}'.format(**row),)]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=rf"column '{column}': row 2 has half a character, '\\ud83d'"):
        Files(str(path), str(path)).load()
