"""What a table needs of each run: its seed, and few of its numbers."""

from __future__ import annotations

from operator import attrgetter

from analysis.records.reader import Values
from analysis.tables import costs, glue
from trainer.record import Record

_FIELDS = tuple(
    dict.fromkeys(
        ("seed", "metric.value", "params.adapter_end", *(name for cost in costs.COSTS for name in cost.names))
    )
)
NAMES = (*_FIELDS, *(f"metrics.{name}" for name in glue.METRICS))  # of a row

_fields = attrgetter(*_FIELDS)


def of(record: Record) -> Values:
    """The values of `NAMES`."""
    return (*_fields(record), *map(record.metrics.get, glue.METRICS))
