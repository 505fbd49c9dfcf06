"""Tables of unusual studies."""

from __future__ import annotations

import csv

import pytest


def test_an_all_failed_variant_has_a_row_and_a_reason(store, table):
    store.add("lora", 0)
    for seed in (0, 1):
        store.add("sora", seed, error="no memory")
    out = table()
    assert out.cells[2] == ["sora", *[""] * 8]
    assert out.note("Blank on movie, ") == "2 runs failed: sora"


def test_a_study_of_failures(store, table):
    store.add("lora", 0, error="no memory")
    out = table()
    assert out.cells[0][1] == "movie" and out.column("movie") == [""]
    assert out.notes[0] == "No run is done: there are no numbers."
    for form in ("csv", "latex"):
        assert "lora" in table("runs", "--format", form)


def test_200_variants(store, table):
    for number in range(200):
        store.add(f"variant{number}", 0, number / 1000)
    out = table()
    assert out.labels == [f"variant{number}" for number in range(200)]
    assert [place for place, cell in enumerate(out.column("movie")) if "**" in cell] == [199]


def test_a_very_long_name_does_not_widen_the_other_lines(store, table):
    store.add("x" * 500, 0)
    store.add("lora", 0)
    lines = {line.split()[1][0]: line for line in table().splitlines() if line.startswith("| ")}
    assert len(lines["l"]) < 250 < len(lines["x"])


def test_wide_letters_count_twice(store, table):
    store.add("低秩", 0)
    store.add("e\u0301", 0)
    head, _, *lines = table().splitlines()[:4]
    assert lines[0].startswith("| e\u0301       |")
    assert lines[1].startswith("| 低秩    |")
    assert head.startswith("| variant |")


NAMES = [
    # name, Markdown, LaTeX
    ("a|b", "a\\|b", "a\\textbar{}b"),
    ("svd_diagonal", "svd_diagonal", "svd\\_diagonal"),
    ("_private_", "\\_private\\_", "\\_private\\_"),
    ("this & that", "this \\& that", "this \\& that"),
    ("50% #1 $x$", "50% #1 \\$x\\$", "50\\% \\#1 \\$x\\$"),
    ("{a}^~", "{a}^\\~", "\\{a\\}\\textasciicircum{}\\textasciitilde{}"),
    ("back\\slash", "back\\\\slash", "back\\textbackslash{}slash"),
    ("**bold** `code`", "\\*\\*bold\\*\\* \\`code\\`", "{}**bold** `code`"),
    ("[link](x)", "\\[link\\](x)", "{}[link](x)"),
    ("<b>", "\\<b\\>", "\\textless{}b\\textgreater{}"),
    ("a---b", "a---b", "a-{}-{}-b"),
    ("two\nlines\tand tab", "two lines and tab", "two lines and tab"),
    ("Ünïcödé 低秩 🙂", "Ünïcödé 低秩 🙂", "Ünïcödé 低秩 🙂"),
]


@pytest.mark.parametrize("name, markdown, latex", NAMES, ids=[repr(name) for name, _, _ in NAMES])
def test_names_are_shown_letter_by_letter(store, table, name, markdown, latex):
    store.add(name, 0)
    first = table().splitlines()[2]
    assert first.startswith(f"| {markdown} ")
    assert f"\\midrule\n{latex} & 80.00 (1) &" in table("runs", "--format", "latex")
    (line,) = csv.DictReader(table("runs", "--format", "csv").splitlines(keepends=True))
    assert line["variant"] == name


def test_a_task_name_is_escaped_too(store, table):
    store.add("lora", 0, task="a|b_")
    assert "| a\\|b\\_ accuracy, best" in table()
    assert "\\shortstack[r]{a\\textbar{}b\\_ \\\\ accuracy" in table("runs", "--format", "latex")
