"""What is not drawn, in as few lines as there are reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from analysis.plots.kind import Kind, LeftOut, Study
from analysis.text.phrases import names

_MOST = 3  # of a reason's rows are named


def lines(study: Study, left_out: Iterable[tuple[Kind, LeftOut]]) -> list[str]:
    """One line for each reason: the kinds of figures, the reason, and which rows it concerns unless it is all."""
    by_reason: dict[str, dict[str, list[str]]] = {}
    for kind, item in left_out:
        by_reason.setdefault(item.reason, {}).setdefault(kind.name, []).append(item.what)
    found: list[str] = []
    for reason, by_kind in by_reason.items():
        alike: dict[str, list[str]] = {}
        for kind_name, what in by_kind.items():
            alike.setdefault(concerned(study, what), []).append(kind_name)
        found += [f"{', '.join(kinds)}: {reason}{said}" for said, kinds in alike.items()]
    return found


def concerned(study: Study, what: Sequence[str]) -> str:
    """` (lora on movie, sora on movie and 4 more)`; empty for every row on every task."""
    rows = {group.title for _, groups in study.tasks() for group in groups}
    tasks = {column.task for column, _ in study.tasks()}
    if rows <= {text.partition(", seed")[0] for text in what} or tasks <= set(what):
        return ""
    return f" ({names(dict.fromkeys(what), _MOST)})"
