"""The progress bar of a run: steps, loss, metric, total rank. Silent where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import transformers
from tqdm.auto import tqdm


class Progress(transformers.TrainerCallback):
    """Shows `postfix()` beside the steps."""

    def __init__(self, wanted: bool, postfix: Callable[[], Mapping[str, str]]) -> None:
        self.wanted = wanted
        self.postfix = postfix
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # disable=None: a bar on a terminal, nothing in a log file.
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            disable=None if self.wanted else True,
            dynamic_ncols=True,
            leave=False,
            unit="step",
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.set_postfix(self.postfix(), refresh=False)
        self.bar.update(1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()
