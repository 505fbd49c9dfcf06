"""Memory as stacked bars."""

from __future__ import annotations

from matplotlib.patches import Rectangle

from tests.analysis.conftest import MIB
from tests.analysis.plots.conftest import legend, marked, only


def test_a_bar_is_the_sum_of_its_parts(store, draw):
    store.add("lora", 0, memory__weights=10 * MIB)
    store.add("lora", 1, memory__weights=30 * MIB)
    store.add("full", 0, memory__gradients=100 * MIB)
    picture, figure = only(draw("memory"))
    assert picture.name == "memory.movie"
    assert [text.get_text().strip() for text in marked(figure, "total")] == ["244", "76"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["full", "lora"]
    assert figure.axes[0].get_xlabel() == "MiB"


def test_parts_are_told_apart_by_hatches(store, draw):
    store.add("lora", 0)
    _, figure = only(draw("memory"))
    bars = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert len(bars) == 4 and len({bar.get_hatch() for bar in bars}) == 4
    assert legend(figure)[1] == ["weights and buffers", "gradients", "optimizer state", "saved activations"]


def test_a_row_with_a_part_missing_is_left_out(store, draw):
    store.add("lora", 0, memory__activations=None)
    store.add("full", 0)
    (picture,), (left_out,) = draw("memory")
    assert len(marked(picture.draw(), "total")) == 1
    assert (left_out.what, left_out.reason) == ("lora on movie", "not recorded in all of its runs: activations")


def test_200_rows_take_several_pictures(store, draw):
    for number in range(200):
        store.add(f"v{number}", 0)
    pictures, _ = draw("memory")
    assert [picture.name for picture in pictures] == [f"memory.movie.{page}" for page in range(1, 8)]
    assert len(marked(pictures[-1].draw(), "total")) == 200 - 6 * 30
