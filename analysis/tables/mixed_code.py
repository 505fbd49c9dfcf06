"""Finds classes whose code differs between the runs of a table."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from analysis.records.provenance import counted
from analysis.tables.rows import Row
from trainer import code_hash
from trainer.record import Record

T = TypeVar("T")


def notes(rows: Sequence[Row]) -> Iterator[str]:
    """Variants whose own code differs between their runs, so that a mean over them mixes methods.

    The same holds for a user's own kind of task, task source and optimizer.
    """
    by_variant: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_variant[row.variant].append(row)
    for variant, variant_rows in by_variant.items():
        codes = cells(variant_rows, lambda record: record.code.get("variant", ""))
        if len(codes) > 1:
            yield from _mixed(variant, cells(variant_rows, functools.partial(_own_code, "variant")))
    fields = {
        name
        for row in rows
        for task in (row.runs, row.failed)
        for runs in task.values()
        for run in runs
        for name in run.record.code
    }
    for field in sorted(fields - {"variant"}):  # most studies have none
        by_class: dict[str, dict[tuple[str, str], list[tuple[str, int]]]] = defaultdict(dict)
        for (target, code), counts in cells(rows, functools.partial(_own_code, field)).items():
            by_class[target][target, code] = counts
        for target, counts_by_code in by_class.items():
            yield from _mixed(target, counts_by_code)


def _own_code(field: str, record: Record) -> tuple[str, str]:
    """The class that the field names, and the recorded hash of its code; "" for none."""
    target = record.config.get(field) or record.config.get(f"{field}._target_") or ""
    return str(target), record.code.get(field, "")


def _mixed(name: str, counts_by_code: Mapping[tuple[str, str], Sequence[tuple[str, int]]]) -> Iterator[str]:
    """A sentence on a class with several codes. counts_by_code: the cells with such runs and their number."""
    by_code: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for (target, code), counts in counts_by_code.items():
        by_code[code_hash.today(target, code) if len(counts_by_code) > 1 else code] += counts
    if len(by_code) > 1:
        numbers = {code: sum(n for _, n in counts) for code, counts in by_code.items()}
        where = {code: list(dict.fromkeys(cell for cell, _ in counts)) for code, counts in by_code.items()}
        listing = counted(numbers, where, lambda code: f"code {code[:10]}" if code else "code not recorded")
        yield f"Mixed code of {name} in one comparison: {listing}."


def cells(rows: Sequence[Row], of: Callable[[Record], T]) -> dict[T, list[tuple[str, int]]]:
    """By value of `of`, the cells with such runs and their number: done runs, or failed ones if none is done."""
    done = any(row.runs for row in rows)
    by_value: dict[T, list[tuple[str, int]]] = defaultdict(list)
    for row in rows:
        label = row.label
        for task, task_runs in (row.runs if done else row.failed).items():
            for value, number in Counter(of(run.record) for run in task_runs).items():
                by_value[value].append((f"{label} on {task}", number))
    return by_value
