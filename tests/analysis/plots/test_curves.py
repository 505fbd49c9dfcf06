"""Learning curves, and the metric over kept ranks, which are drawn like them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.analysis.plots.conftest import legend, log, marked, only


def test_curves_are_means_over_seeds_with_a_band_of_the_sd(store, draw):
    for seed, end in enumerate((0.6, 0.8)):
        log(store.add("lora", seed), {5: 0.5, 10: end}, {5: 0.7, 10: 0.4})
    picture, figure = only(draw("learning-curves"))
    metric, loss = marked(figure, "curve")
    assert list(metric.get_xdata()) == [5, 10]
    assert list(metric.get_ydata()) == pytest.approx([50, 70])
    assert list(loss.get_ydata()) == pytest.approx([0.7, 0.4])
    band = marked(figure, "band")[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(70 + 14.142, abs=1e-3)
    assert legend(figure) == ("line and band: mean ± sd over seeds, n = 2", ["lora"])
    assert picture.name == "learning-curves.movie"


def test_panels_say_what_they_show(store, draw):
    log(store.add("lora", 0), {5: 0.5}, {5: 0.7})
    _, figure = only(draw("learning-curves"))
    assert [axes.get_ylabel() for axes in figure.axes] == ["movie: accuracy × 100, selection split", "training loss"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["optimizer step"] * 2


def test_steps_are_whole_numbers_also_where_there_is_one(store, draw):
    log(store.add("lora", 0), {7: 0.5}, {7: 0.7})
    _, figure = only(draw("learning-curves"))
    low, high = figure.axes[0].get_xlim()
    assert [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high] == [7]


def test_one_seed_has_no_band_and_the_caption_says_so(store, draw):
    log(store.add("lora", 0), {5: 0.5, 10: 0.6}, {5: 0.7})
    picture, figure = only(draw("learning-curves"))
    assert len(marked(figure, "curve")) == 2
    assert not marked(figure, "band")
    assert legend(figure)[0] == "one seed each: no spread"
    assert "One seed each: no spread" in picture.caption


def test_a_curve_ends_where_its_first_seed_does_and_the_caption_says_so(store, draw):
    log(store.add("lora", 0), {5: 0.5, 10: 0.6}, {5: 0.7})
    log(store.add("lora", 1), {5: 0.5, 10: 0.6, 15: 0.9}, {5: 0.7})
    picture, figure = only(draw("learning-curves"))
    assert list(marked(figure, "curve")[0].get_xdata()) == [5, 10]
    assert "Seeds ended at different steps, and the curve where the first did: lora (10 to 15)." in picture.caption


def test_numbers_that_were_not_finite_leave_a_gap(store, draw):
    log(store.add("lora", 0), {5: 0.5, 10: 0.6}, {5: None, 10: 0.7})
    _, figure = only(draw("learning-curves"))
    assert list(marked(figure, "curve")[1].get_xdata()) == [10]


def test_a_run_without_its_journal_is_left_out_and_the_others_are_drawn(store, draw):
    log(store.add("lora", 0), {5: 0.5}, {5: 0.7})
    store.add("lora", 1)
    store.add("full", 0)
    (picture,), left_out = draw("learning-curves")
    assert legend(picture.draw()) == ("one seed each: no spread", ["lora"])
    found = {(item.what, item.reason) for item in left_out}
    assert found == {("full on movie", "no metrics.jsonl"), ("lora on movie, seed 1", "no metrics.jsonl")}


def test_seeds_without_a_common_step_are_left_out(store, draw):
    log(store.add("lora", 0), {5: 0.5}, {5: 0.7})
    log(store.add("lora", 1), {6: 0.5}, {5: 0.7})
    pictures, (left_out,) = draw("learning-curves")
    assert not pictures
    assert left_out.reason == "metrics.jsonl: no step at which all runs have eval/accuracy"


def test_many_rows_take_several_pictures_and_none_is_lost(store, draw):
    for number in range(20):
        log(store.add(f"v{number}", 0), {5: 0.5}, {5: 0.7})
    pictures, left_out = draw("learning-curves")
    assert not left_out
    assert [p.name for p in pictures] == [f"learning-curves.movie.{page}" for page in (1, 2, 3)]
    assert [label for p in pictures for label in legend(p.draw())[1]] == [f"v{number}" for number in range(20)]


def test_rows_are_told_apart_without_colour(store, draw):
    for number in range(8):
        log(store.add(f"v{number}", 0), {5: 0.5}, {5: 0.7})
    _, figure = only(draw("learning-curves"))
    curves = [curve for curve in marked(figure, "curve") if curve.axes is figure.axes[0]]
    assert len({curve.get_marker() for curve in curves}) == 8


def cut(folder: Path, trained: float, values: Mapping[int, float]) -> None:
    """A `truncation.json`: the metric as trained, and at each kept rank; the error is 1/rank."""

    def entry(value: float, **more: float) -> dict[str, object]:
        return {"metrics": {"accuracy": value}, "relative_error": 0.0, "parameters": 10, **more}

    steps = [entry(value, rank=rank, relative_error=1 / rank) for rank, value in values.items()]
    content = {"version": 1, "metric": "accuracy", "trained": entry(trained), "cut": steps}
    (folder / "truncation.json").write_text(json.dumps(content))


def test_the_metric_over_kept_ranks(store, draw):
    for seed, value in enumerate((0.6, 0.8)):
        cut(store.add("lora", seed), 0.9, {1: 0.5, 4: value})
    picture, figure = only(draw("metric-kept-rank"))
    assert picture.name == "metric-kept-rank.movie"
    metric, error = marked(figure, "curve")
    assert (list(metric.get_xdata()), list(metric.get_ydata())) == ([1, 4], pytest.approx([50, 70]))
    assert list(error.get_ydata()) == [1, 0.25]
    assert [axes.get_xlabel() for axes in figure.axes] == ["kept rank of every layer"] * 2
    assert [axes.get_ylabel() for axes in figure.axes] == ["movie: accuracy × 100", "relative error of ΔW"]
    assert picture.caption.endswith("mean ± sd over seeds, n = 2. As trained: lora 90.")


def test_kept_ranks_that_no_two_seeds_share_are_left_out(store, draw):
    for seed in (0, 1):
        cut(store.add("lora", seed), 0.9, {seed + 1: 0.5})
    pictures, (left_out,) = draw("metric-kept-rank")
    assert not pictures
    assert left_out.reason == "truncation.json: no rank that all of its seeds were cut down to"


def test_a_run_that_was_not_cut_down_is_left_out(store, draw):
    store.add("lora", 0)
    pictures, (left_out,) = draw("metric-kept-rank")
    assert not pictures
    assert left_out.reason == "no truncation.json: the run was not evaluated at lower ranks"
