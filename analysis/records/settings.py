"""Settings in which runs of one variant differ, besides the seed.

A *setting* is a field of the flat record: `config.…`, or one of `PROTOCOL`, which the run itself
reports. Two values are equal if their JSON is, and a missing entry equals null (records leave
nulls out).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from analysis.text.phrases import shortened
from analysis.text.sorting import natural
from trainer.record import Record

if TYPE_CHECKING:
    from analysis.records.grouping import Point

CONFIG = "config."
VARIANT = "config.variant."

# By field, the name in tables. A mean over runs that differ in one of these is meaningless. All but the last
# must be equal in a whole column for its numbers to be comparable.
PROTOCOL = {
    "metric.name": "metric",
    "metric.checkpoint": "checkpoint",
    "metric.split": "split",
    "metric.higher_is_better": "higher_is_better",
    "data.protocol": "protocol",
    "metric.positive": "positive",
    "steps.total": "steps",
}
COMPARABLE = tuple(PROTOCOL)[:-1]

_LONGEST = 40  # characters of a value in a label


def hashable(value: Any) -> Any:
    """The value of a setting, hashable: of a list or dict its JSON."""
    if isinstance(value, list | dict):
        return _Json(json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")))
    return value


# Returns the values of `PROTOCOL` in a record, in its order.
protocol_of: Callable[[Record], tuple[Any, ...]] = attrgetter(*PROTOCOL)


class _Json(str):
    """The JSON of a list, which is printed without quotes."""


def differing(points: Iterable[Point]) -> set[str]:
    """The `config.…` settings in which the points differ."""
    identities = [point.identity for point in points]
    columns = {name: [identity.get(name) for identity in identities] for name in set().union(*identities)}
    return {CONFIG + name for name, values in columns.items() if values.count(values[0]) < len(values)}


def telling(cells: Iterable[Sequence[Point]], names: Collection[str], typed_names: Collection[str]) -> list[str]:
    """A small subset of `names` that distinguishes the points of each cell as well as all names do.

    If alpha follows the rank, a sweep over the rank changes both, and the rank is enough. The choice is greedy:
    overridden settings first, then the rank, then the variant's other settings, then alphabetical order.
    """
    if len(names) < 2:
        return list(names)
    ordered = sorted(
        names,
        key=lambda n: (n not in typed_names, n != VARIANT + "rank", not n.startswith(VARIANT), natural(n)),
    )
    points = {
        (number, tuple(point.value(name) for name in ordered)) for number, cell in enumerate(cells) for point in cell
    }

    def groups(columns: Sequence[int]) -> int:
        return len({(number, *(values[c] for c in columns)) for number, values in points})

    chosen: list[int] = []
    first_choice = [c for c, name in enumerate(ordered) if name in typed_names]
    for pool in (first_choice, range(len(ordered))):
        reachable = groups(pool)
        while groups(chosen) < reachable:
            # max() keeps the first of equals: the order above decides.
            chosen.append(max((c for c in pool if c not in chosen), key=lambda c: groups([*chosen, c])))
    return [ordered[c] for c in sorted(chosen, key=lambda c: (not ordered[c].startswith(VARIANT), c))]


def label(name: str, setting: Any) -> str:
    """`rank=4`, `optim.lr=0.001`; a long value is truncated and gets a hash."""
    return f"{short(name)}={shortened(text(setting), _LONGEST)}"


def short(name: str) -> str:
    """The name of a setting in tables: those of the variant without a prefix, except a seed of its own."""
    field = name.removeprefix(VARIANT)
    return PROTOCOL.get(name, name.removeprefix(CONFIG) if field == "seed" else field.removeprefix(CONFIG))


def text(setting: Any) -> str:
    """A value as in YAML: a string that could be read as another type keeps its quotes."""
    if setting is None:
        return "none"
    if isinstance(setting, bool):
        return "true" if setting else "false"
    if isinstance(setting, float) and setting.is_integer() and abs(setting) < 1e15:
        return str(int(setting))
    if isinstance(setting, str) and not isinstance(setting, _Json) and _looks_otherwise(setting):
        return json.dumps(setting, ensure_ascii=False)
    return str(setting)


def _looks_otherwise(text: str) -> bool:
    if text in ("", "none", "true", "false") or text[0] in "[{\"'":
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def sort_key(setting: Any) -> tuple[object, ...]:
    """Sort key of a value: none first, then numbers by size, then text by `natural`."""
    if setting is None:
        return (0,)
    if isinstance(setting, int | float):
        return (1, setting)
    return (2, natural(str(setting)))
