"""What tells runs of one variant apart, apart from their seed.

A *setting* is a name of the flat record: an entry of `config.…`, or one of `OBSERVED`, what
the run itself reported about its protocol. Two values are the same setting when they are
equal as JSON, and a missing entry equals null (a record leaves nulls out).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from itertools import compress
from operator import ne
from typing import Any

from analysis.order import natural
from analysis.reading import Config
from trainer.record import Record

CONFIG = "config."
VARIANT = "config.variant."

# How a table calls them. Means over runs that differ in one of these mean nothing; the first
# five must be the same for a whole column, or its numbers can't be compared.
OBSERVED = {
    "metric.name": "metric",
    "metric.checkpoint": "checkpoint",
    "metric.split": "split",
    "metric.higher_is_better": "higher_is_better",
    "data.protocol": "protocol",
    "steps.total": "steps",
}
COMPARABLE = tuple(OBSERVED)[:5]

_LONGEST = 40  # characters of a value in a label


def value(record: Record, name: str) -> Any:
    """The value of a setting in a form that can be hashed; None where there is none."""
    if not name.startswith(CONFIG):
        group, _, rest = name.partition(".")
        return getattr(getattr(record, group), rest)
    raw = record.config.get(name.removeprefix(CONFIG))
    if isinstance(raw, list | dict):
        return _Json(json.dumps(raw, sort_keys=True, ensure_ascii=False, separators=(",", ":")))
    return raw


def observed(record: Record) -> tuple[Any, ...]:
    """The values of `OBSERVED`, in its order."""
    metric = record.metric
    return (
        *(metric.name, metric.checkpoint, metric.split, metric.higher_is_better),
        *(record.data.protocol, record.steps.total),
    )


class _Json(str):
    """The JSON text of a list: printed without the quotes of a string."""


def seed_names(records: Iterable[Record]) -> frozenset[str]:
    """Settings that repeat the run's seed under another name (`config.data.seed: ${seed}`)."""
    # Runs of one seed share these settings: there are few pairs.
    pairs = {(id(seeds), record.seed): seeds for record in records for seeds in [Config.of(record.config).seeds]}
    names: set[str] = set().union(*pairs.values())
    own = {name for (_, seed), seeds in pairs.items() for name, entry in seeds.items() if entry != seed}
    return frozenset({CONFIG + "seed", *(CONFIG + name for name in names - own)})


def differing(records: Iterable[Record], ignored: Collection[str] = ()) -> set[str]:
    """The names of the `config.…` settings in which some records differ."""
    configs = [Config.of(record.config) for record in records]
    # Runs that differ in their seed alone share the rest: most comparisons are never made.
    names = unequal({id(config.base): config.base for config in configs}.values())
    names |= unequal({id(config.seeds): config.seeds for config in configs}.values())
    return {CONFIG + name for name in names}.difference(ignored)


def unequal(parts: Iterable[dict[str, Any]]) -> set[str]:
    """The names under which some of the dictionaries have something else than the first."""
    first, *others = [*parts] or [{}]
    names: set[str] = set()
    for other in others:
        # No step of this runs in Python. A name that the first one lacks is None there.
        names.update(compress(other, map(ne, other.values(), map(first.get, other))))
        names.update(first.keys() - other.keys())
    return names


def typed(records: Iterable[Record]) -> set[str]:
    """The `config.…` names that were typed on the command line of some run."""
    overrides = {override for record in records for override in record.overrides}
    return {CONFIG + override.lstrip("+").partition("=")[0] for override in overrides}


def telling(cells: Iterable[Sequence[Record]], names: Collection[str], typed_names: Collection[str]) -> list[str]:
    """The fewest of `names` that separate, within each cell, all that the whole of them separates.

    A sweep over the rank changes alpha too where alpha follows the rank: the row is called
    after the rank. What was typed on a command line goes first, then the rank, then the
    variant's other settings, then the alphabet.
    """
    if len(names) < 2:
        return list(names)
    ordered = sorted(
        names,
        key=lambda n: (n not in typed_names, n != VARIANT + "rank", not n.startswith(VARIANT), natural(n)),
    )
    points = {
        (number, tuple(value(record, name) for name in ordered)) for number, cell in enumerate(cells) for record in cell
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
    """`rank=4`, `optim.lr=0.001`; of a long value the start and a mark that tells it from others."""
    shown = text(setting)
    if len(shown) > _LONGEST:
        import hashlib  # few tables need it

        mark = hashlib.sha256(shown.encode()).hexdigest()[:6]
        shown = f"{shown[: _LONGEST - 7]}…{mark}"
    return f"{short(name)}={shown}"


def short(name: str) -> str:
    """A setting's name as a table has it: the variant's own settings without a prefix."""
    return OBSERVED.get(name, name.removeprefix(VARIANT).removeprefix(CONFIG))


def text(setting: Any) -> str:
    """A value as in YAML: a string that looks like something else keeps its quotes."""
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
    """Orders values: none, then numbers by size, then text by `natural`."""
    if setting is None:
        return (0,)
    if isinstance(setting, int | float):
        return (1, setting)
    return (2, natural(str(setting)))
