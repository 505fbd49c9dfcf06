"""The training rows of a mixture of tasks: how many of each an epoch has, and which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trainer.errors import ConfigError


def drawn(order: np.ndarray, tasks: Sequence[str], shares: Mapping[str, float], limit: int | None) -> np.ndarray:
    """Returns the rows of an epoch, sorted: of each task its share, and a task's first rows in `order` most often.

    order: indices of the rows that there are, in the run's own order. tasks: of each row. limit: rows of an epoch; None
    for as many as it takes to have each row once and the shares, so that the rows of a task with a greater share than
    its size has are repeated. Raises `ConfigError` where a task would have none.
    """
    of_row = np.asarray(tasks)[order]
    by_task = {name: order[of_row == name] for name in shares}
    for name, rows in by_task.items():
        if not len(rows):
            raise ConfigError(f"data.select_share: no training row of {name} is left; allowed: a smaller share")
    total = limit if limit is not None else max(len(rows) / shares[name] for name, rows in by_task.items())
    chosen = []
    for name, count in _whole({name: share * total for name, share in shares.items()}, limit is None).items():
        if not count:
            raise ConfigError(f"data.limit: {limit} leaves no training row of {name}; allowed: more")
        chosen.append(np.resize(by_task[name], count))
    return np.sort(np.concatenate(chosen))


def _whole(parts: Mapping[str, float], up: bool) -> dict[str, int]:
    """Whole numbers near `parts`: all rounded up, or with their sum, the largest remainders rounded up."""
    if up:
        return {name: int(np.ceil(round(part, 6))) for name, part in parts.items()}
    found = {name: int(part + 1e-9) for name, part in parts.items()}
    missing = round(sum(parts.values())) - sum(found.values())
    for name in sorted(parts, key=lambda name: found[name] - parts[name])[:missing]:
        found[name] += 1
    return found


def refuse_absent(tasks: Sequence[str], shares: Mapping[str, float], split: str, setting: str) -> None:
    """Raises `ConfigError` where a task has no row among those that are evaluated, of which its metric would be 0.

    tasks: of these rows. setting: the field that chose them, with its value.
    """
    for name in shares:
        if name not in tasks:
            raise ConfigError(f"{setting} leaves no row of {name} in {split}; allowed: more")


def said(tasks: Sequence[str], rows: np.ndarray, shares: Mapping[str, float]) -> str:
    """A line on what an epoch has. rows: of the epoch, as `drawn` returns them."""
    own = np.asarray(tasks)
    parts = []
    for name in shares:
        mine = rows[own[rows] == name]
        again = len(mine) - len(np.unique(mine))
        parts.append(f"{len(mine):,} of {name}" + (f" ({again:,} of them repeated)" if again else ""))
    return f"an epoch has {len(rows):,} rows: {', '.join(parts)}"
