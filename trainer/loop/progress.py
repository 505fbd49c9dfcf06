"""The progress bar of a run: steps, loss, metric, total rank. Silent where there is no terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from tqdm.auto import tqdm


@contextlib.contextmanager
def shown(wanted: bool, done: int, steps: int, postfix: Mapping[str, str]) -> Iterator[Callable[[], None]]:
    """Within it a bar shows `postfix` beside the steps; what it gives is called after each of them."""
    # disable=None: a bar on a terminal, nothing in a log file.
    disable = None if wanted else True
    with tqdm(total=steps, initial=done, disable=disable, dynamic_ncols=True, leave=False, unit="step") as bar:

        def advance() -> None:
            bar.set_postfix(postfix, refresh=False)
            bar.update(1)

        yield advance
