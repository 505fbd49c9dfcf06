"""The critical-difference diagram: average ranks of rows; a bar joins rows that don't differ significantly.

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
from analysis.text.phrases import shortened

FORMATS = ("png", "svg")
_LONGEST = 50  # letters of a name; a longer one leaves no room for the axis


def check(path: Path) -> None:
    """Raises `AnalysisError` if the name does not end in one of `FORMATS`."""
    if path.suffix.lstrip(".").lower() not in FORMATS:
        raise AnalysisError(f"--figure: {str(path)!r}, allowed: a name that ends in .{' or .'.join(FORMATS)}")


def draw(overall: Overall, path: Path) -> None:
    """Writes the figure. Raises `AnalysisError` if the file can't be written."""
    content = encode(overall, path.suffix.lstrip(".").lower())
    try:
        path.write_bytes(content)
    except OSError as error:
        raise AnalysisError(f"can't write {path}: {error.strerror or error}") from None


def size(overall: Overall) -> tuple[float, float]:
    """(width, height) in inches."""
    return 8, 1.6 + 0.25 * len(overall.rows)


def encode(overall: Overall, form: str) -> bytes:
    """The bytes of the figure in one of `FORMATS`; they depend on the ranks only.

    overall: with tests. If Friedman's test does not reject, one bar joins all rows.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series
    from scikit_posthocs import critical_difference_diagram

    count = len(overall.rows)
    nemenyi = np.ones((count, count)) if overall.nemenyi is None else overall.nemenyi
    # The SVG keeps text as text. The salt makes its ids reproducible; a date would change its bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "loratory", "font.size": 9}):
        figure = Figure(figsize=size(overall), layout="constrained")
        axes = figure.add_subplot()
        # Rows are numbers here, because the library draws sets of names in an order that varies.
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
            name = shortened(name, _LONGEST)
            label.set_text(f"{name} ({overall.average[row]:.2f})")
        if overall.nemenyi is not None and overall.critical_difference is not None:
            _scale_bar(axes, min(overall.average), overall.critical_difference)
        axes.set_xlabel(
            f"average rank over {len(overall.tasks)} tasks, 1 is the best; a bar joins rows that do not differ"
        )
        axes.xaxis.set_label_position("bottom")
        file = io.BytesIO()
        figure.savefig(file, format=form, dpi=200, metadata={"Date": None} if form == "svg" else None)
        return file.getvalue()


def _scale_bar(axes: Any, start: float, length: float) -> None:
    """Draws the critical difference above the axis."""
    axes.plot([start, start + length], [1.6, 1.6], color="black", marker="|", linewidth=1)
    axes.text(start, 2, f"critical difference {length:.2f} (Nemenyi, {ALPHA})", va="bottom")
