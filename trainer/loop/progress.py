"""Shows a run's progress bar with steps, loss, metric and total rank; nothing without a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from tqdm.auto import tqdm


@contextlib.contextmanager
def shown(wanted: bool, done: int, steps: int, postfix: Mapping[str, str]) -> Iterator[Callable[[], None]]:
    """Shows a bar with the steps and `postfix`, and yields a function that the caller calls after each step."""
    # disable=None: tqdm shows the bar only on a terminal, never in a log file.
    disable = None if wanted else True
    with tqdm(total=steps, initial=done, disable=disable, dynamic_ncols=True, leave=False, unit="step") as bar:

        def advance() -> None:
            bar.set_postfix(postfix, refresh=False)
            bar.update(1)

        yield advance
