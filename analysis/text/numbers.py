"""Numbers as a reader wants them."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Names of metrics that lie in −1…1 and that the field prints ×100. A name made of other words
# (rmse, loss, …) is printed as it is.
_FRACTION_WORDS = {
    *("accuracy", "acc", "balanced", "f1", "macro", "micro", "weighted", "binary"),
    *("precision", "recall", "auc", "auroc", "roc", "matthews", "mcc", "kappa"),
    *("correlation", "corr", "coefficient", "pearson", "pearsonr", "spearman", "spearmanr"),
    *("matched", "mismatched", "mean", "and"),
}


def is_fraction(metric: str, values: Iterable[float], percent: bool | None = None) -> bool:
    """Whether a metric is one that is printed ×100; a value beyond ±1 says that it is not.

    percent: what records say, None where they don't: then its name tells.
    """
    if percent is not None:
        return percent and all(abs(v) <= 1 for v in values)
    words = [word for word in re.split(r"[^a-z0-9]+", metric.lower()) if word]
    return bool(words) and _FRACTION_WORDS.issuperset(words) and all(abs(v) <= 1 for v in values)


def decimals(sd: float | None, most: int) -> int:
    """Decimals for a mean: those of its sd at two significant digits, between 0 and `most`.

    Without a spread, or with one of zero, it is `most`.
    """
    if not sd:
        return most
    exponent = int(f"{sd:.1e}".partition("e")[2])
    return min(max(1 - exponent, 0), most)


def fixed(value: float, places: int) -> str:
    """`value` with so many decimals; never "-0.00"."""
    text = f"{value:.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text


def human(count: float) -> str:
    """A count in at most five characters and a unit: 770, 331.8k, 22.7M, 1.1G."""
    if count < 999.95:
        return f"{count:.0f}" if count == int(count) else f"{count:.1f}"
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        if count < 999.95 * size:  # 999,960 is 1.0M, not 1000.0k
            return f"{count / size:.1f}{unit}"
    return f"{count / 1e12:.1f}T"


def mebibytes(count: float) -> str:
    """Bytes as MiB with one decimal."""
    return f"{count / 2**20:.1f}"


def exact(value: float | None) -> str:
    """All digits: whole numbers without a point, nothing for None."""
    if value is None:
        return ""
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def magnitude(text: str) -> float:
    """The count that a text like `1.27M` stands for."""
    unit = {"k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}.get(text[-1:])
    # Rounded, since 0.33 × 1e6 is 330000.00000000006.
    return round(float(text) if unit is None else float(text[:-1]) * unit, 3)
