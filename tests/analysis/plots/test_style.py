"""The style: the same bytes, names that fit, looks that differ."""

from __future__ import annotations

import matplotlib
import pytest
from matplotlib.figure import Figure

from analysis.plots import style
from analysis.plots.kind import file_name, seeds


@style.styled
def example() -> Figure:
    figure = Figure(layout="constrained")
    (line,) = figure.add_subplot().plot([1, 2], [3, 4], marker="o")
    style.legend(figure, [line], ["a $x$ name"], "title")
    return figure


@pytest.mark.parametrize("form", style.FORMATS)
def test_the_same_figure_gives_the_same_bytes(form):
    assert style.encode(example(), form) == style.encode(example(), form)


def test_a_file_has_no_date_and_no_version_in_it():
    svg = style.encode(example(), "svg")
    assert b"<dc:date>" not in svg and b"Matplotlib v" not in svg and matplotlib.__version__.encode() not in svg
    assert b"Software" not in style.encode(example(), "png")


def test_the_users_own_settings_have_no_say_and_are_left_alone():
    before = style.encode(example(), "svg")
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.hashsalt": "other"}):
        assert style.encode(example(), "svg") == before
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_385_rows_look_different():
    assert len({(look.colour, look.marker, look.line) for look in map(style.look, range(385))}) == 385


@pytest.mark.parametrize(
    "text, shown",
    [
        ("lora rank=4", "lora rank=4"),
        ("größe Δ", "größe Δ"),
        ("two\nlines", "two lines"),
        ("變體", "\\u8b8a\\u9ad4"),
        ("_private", "\u200a_private"),
    ],
)
def test_names_are_shown_letter_by_letter(text, shown):
    assert style.name(text) == shown


def test_long_names_are_cut_and_still_told_apart():
    one, two = style.name("v" * 300 + "1"), style.name("v" * 300 + "2")
    assert one != two and len(one) == len(two) == 44


@pytest.mark.parametrize(
    "parts, expected",
    [
        (("rank-map", "movie", "lora rank=4 optim.lr=0.001"), "rank-map.movie.lora,rank=4,optim.lr=0.001"),
        (("memory", "movie", ""), "memory.movie"),
    ],
)
def test_file_names_say_what_they_are(parts, expected):
    assert file_name(*parts) == expected


@pytest.mark.parametrize("text", ["../up", "a/b", 'targets=["q"]', "變體", "v" * 300, "a\nb", "a:b"])
def test_file_names_are_safe(text):
    name = file_name("rank-map", text)
    assert len(name) <= 80 and "/" not in name and name.isascii() and name.isprintable()
    assert not set(name) & set('\\:*?"<>|')


@pytest.mark.parametrize(
    "counts, expected",
    [
        ([3, 3], "mean ± sd over seeds, n = 3"),
        ([2, 5], "mean ± sd over seeds, n = 2 to 5"),
        ([1, 3], "mean ± sd over seeds, n = 1 to 3; none where n = 1"),
        ([1, 1], "one seed each: no spread"),
    ],
)
def test_a_spread_is_named_with_its_n(counts, expected):
    assert seeds(counts) == expected


@pytest.mark.parametrize("value, text", [(20_000, "20k"), (331_776, "331.8k"), (0, "0"), (1.5, "1.5"), (1e7, "10M")])
def test_counts_on_an_axis_are_short(value, text):
    assert style.count(value) == text


@pytest.mark.parametrize("value, text", [(301.6, "302"), (15.34, "15.3"), (7.8, "7.80"), (0, "0")])
def test_three_digits_stay_three(value, text):
    assert style.digits(value) == text
