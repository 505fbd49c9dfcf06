"""The critical-difference diagram: rows at their average ranks, those that are not told apart joined.

Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006, figure 1
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from analysis.comparison.overall import Overall
from analysis.errors import AnalysisError
from analysis.stats import ALPHA

FORMATS = ("png", "svg")
_LONGEST = 50  # letters of a name: a longer one would leave no room for the axis


def check(path: Path) -> None:
    """Raises `AnalysisError` for a name that doesn't end in one of `FORMATS`."""
    if path.suffix.lstrip(".").lower() not in FORMATS:
        raise AnalysisError(f"--figure: {str(path)!r}, allowed: a name that ends in .{' or .'.join(FORMATS)}")


def draw(overall: Overall, path: Path) -> None:
    """Writes the figure. Raises `AnalysisError` where the file can't be written."""
    content = encode(overall, path.suffix.lstrip(".").lower())
    try:
        path.write_bytes(content)
    except OSError as error:
        raise AnalysisError(f"can't write {path}: {error.strerror or error}") from None


def size(overall: Overall) -> tuple[float, float]:
    """(width, height) in inches."""
    return 8, 1.6 + 0.25 * len(overall.rows)


def encode(overall: Overall, form: str) -> bytes:
    """The figure as a file of one of `FORMATS`; the same ranks give the same bytes.

    Needs tested ranks. Where Friedman's test doesn't reject, one bar joins all rows.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series
    from scikit_posthocs import critical_difference_diagram

    count = len(overall.rows)
    nemenyi = np.ones((count, count)) if overall.nemenyi is None else overall.nemenyi
    # Text stays text in an SVG; without a salt its ids, and with a date its bytes, would change.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "loratory", "font.size": 9}):
        figure = Figure(figsize=size(overall), layout="constrained")
        axes = figure.add_subplot()
        # Rows by number: sets of names would be drawn in an order that changes from run to run.
        drawn = critical_difference_diagram(
            Series(overall.average),
            DataFrame(nemenyi),
            ax=axes,
            label_fmt_left="{label}",
            label_fmt_right="{label}",
            label_props={"parse_math": False},
            marker_props={"color": "black"},
            elbow_props={"color": "0.4", "linewidth": 1},
        )
        for label in drawn["labels"]:
            row = int(label.get_text())
            label.set_color("black")
            name = overall.rows[row].label
            name = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
            label.set_text(f"{name} ({overall.average[row]:.2f})")
        if overall.nemenyi is not None and overall.critical_difference is not None:
            _scale_bar(axes, min(overall.average), overall.critical_difference)
        axes.set_xlabel(f"average rank over {len(overall.tasks)} tasks, 1 the best; a bar joins what is not told apart")
        axes.xaxis.set_label_position("bottom")
        file = io.BytesIO()
        figure.savefig(file, format=form, dpi=200, metadata={"Date": None} if form == "svg" else None)
        return file.getvalue()


def _scale_bar(axes: Any, start: float, length: float) -> None:
    """How far apart two rows must be, above the axis and its numbers."""
    axes.plot([start, start + length], [1.6, 1.6], color="black", marker="|", linewidth=1)
    axes.text(start, 2, f"critical difference {length:.2f} (Nemenyi, {ALPHA})", va="bottom")
