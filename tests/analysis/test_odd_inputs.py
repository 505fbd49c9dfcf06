"""Tables of unusual studies."""

from __future__ import annotations

import csv
import html
import re

import pytest

from analysis.tables.formats.markdown import one_line


def test_an_all_failed_variant_has_a_row_and_a_reason(store, table):
    store.add("lora", 0)
    for seed in (0, 1):
        store.add("sora", seed, error="no memory")
    out = table()
    assert out.cells[2] == ["sora", *[""] * 9]
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


@pytest.mark.parametrize("form", ["csv", "latex", "html"])
def test_a_very_long_name_is_there_in_full(store, table, form):
    store.add("x" * 500 + "低秩", 0)
    assert "x" * 500 + "低秩" in table("runs", "--format", form)


def test_wide_letters_count_twice(store, table):
    store.add("低秩", 0)
    store.add("e\u0301", 0)
    head, _, *lines = table().splitlines()[:4]
    assert lines[0].startswith("| e\u0301       |")
    assert lines[1].startswith("| 低秩    |")
    assert head.startswith("| variant |")


FORMS = ("md", "csv", "latex", "html")


@pytest.mark.parametrize("form", FORMS)
def test_200_variants_in_every_format(store, table, form):
    for number in range(200):
        store.add(f"variant{number}", 0, number / 1000)
    text = table("runs", "--format", form)
    names = [text.index(f"variant{number}") for number in (0, 2, 10, 199)]
    assert names == sorted(names), "as a person counts"


@pytest.mark.parametrize("form", FORMS)
def test_one_seed_has_no_spread_in_any_format(store, table, form):
    store.add("a", 0, 0.8)
    store.add("b", 0, 0.7)
    text = table("runs", "--format", form)
    assert "±" not in text and "\\pm" not in text
    if form == "csv":
        assert [line["sd"] for line in csv.DictReader(text.splitlines())] == ["", ""]
    else:
        assert "n = 1 run each: nothing is known about the spread over seeds" in text


def test_identical_runs_have_a_spread_of_zero_and_tie(store, table):
    for variant in "ab":
        for seed in range(3):
            store.add(variant, seed, 0.7)
            store.add(variant, seed, 0.1, "opinion")
    out = table()
    assert out.column("movie") == ["**70.00** ± 0.00 (3)"] * 2
    assert out.column("average") == ["**40.00** ± 0.00 (3)"] * 2
    assert out.column("rank") == ["**1.50**"] * 2
    assert "\\underline" not in table("runs", "--format", "latex"), "nobody is second"


@pytest.mark.parametrize("form", FORMS)
def test_a_study_of_failures_in_every_format(store, table, form):
    store.add("lora", 0, error="no memory")
    store.add("sora", 0, task="opinion", error="no memory")
    text = table("runs", "--format", form)
    assert "lora" in text and "sora" in text
    assert form == "csv" or "No run is done: there are no numbers." in text


NAMES = [
    # name, Markdown, LaTeX; HTML escapes by the library's rules
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
    (shown,) = re.findall(r'<th scope="row">(.*?)</th>', table("runs", "--format", "html"))
    assert html.unescape(shown) == one_line(name) and "<" not in shown


def test_a_task_name_is_escaped_too(store, table):
    store.add("lora", 0, task="a|b_")
    assert "| a\\|b\\_ accuracy, best" in table()
    assert "\\shortstack[r]{a\\textbar{}b\\_ \\\\ accuracy" in table("runs", "--format", "latex")
