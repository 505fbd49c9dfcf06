"""Rows of values → records."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from analysis.bases import Bases, Config
from analysis.points import Made
from analysis.reading import Values
from analysis.settings import hashable
from trainer.record import FIELDS, GROUPS, Record


def picker(names: Sequence[str], wanted: Sequence[str]) -> Callable[[Values], Values]:
    """From values of `names`, with a None behind them, to those of `wanted`."""
    place = {name: number for number, name in enumerate(names)}
    numbers = [place.get(name, -1) for name in wanted]
    if len(numbers) > 1:
        return operator.itemgetter(*numbers)
    return lambda values: tuple(values[number] for number in numbers)


_PLAIN = FIELDS[Record][: FIELDS[Record].index("overrides") + 1]
_SEEDS = "config"  # the other settings are not among a row's values


class Rebuild:
    """Makes records of the values of some names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._plain = picker(names, _PLAIN)
        self._groups = [picker(names, [f"{group}.{name}" for name in FIELDS[cls]]) for group, cls in GROUPS.items()]
        self._inside = []
        for group in (_SEEDS, "metrics", "method"):
            own = [name for name in names if name.startswith(f"{group}.")]
            self._inside.append(([name.partition(".")[2] for name in own], picker(names, own)))

    def __call__(self, values: Values, bases: Bases, base: int, made: Made) -> Record:
        """The record of one row."""
        *plain, overrides = self._plain(values)
        metric, *groups = [cls(*pick(values)) for cls, pick in zip(GROUPS.values(), self._groups, strict=True)]
        seeds, metrics, method = [dict(zip(names, pick(values), strict=True)) for names, pick in self._inside]
        # In the order of its fields.
        parts = [*plain, overrides or [], Config(bases, base, seeds), *made, metric, metrics, method, *groups]
        return Record(*parts)


class Share:
    """Lets many records have their equal parts in common. They are for reading, never to be changed."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._parts: dict[tuple[Any, ...], Any] = {}

    def __call__(self, record: Record) -> None:
        """Replaces what another record has too."""
        text = self._texts.setdefault
        for of, names in ((record, _LABELS), (record.metric, _CHOSEN)):
            for name in names:
                value = getattr(of, name)
                if value is not None:
                    setattr(of, name, text(value, value))
        record.overrides = [text(entry, entry) for entry in record.overrides]
        for group in _WHOLE:
            part = getattr(record, group)
            key = (group, *(hashable(getattr(part, name)) for name in FIELDS[GROUPS[group]]))
            setattr(record, group, self._parts.setdefault(key, part))


_LABELS = ("study", "variant", "task", "model", "status")
_CHOSEN = ("name", "split", "checkpoint", "positive")  # of the metric
_WHOLE = ("data", "params", "rank")  # of whole numbers and texts, and mostly the same for all seeds
