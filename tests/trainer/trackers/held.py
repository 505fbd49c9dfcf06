"""A method that waits in the middle of a run for something to happen."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from variants.core.variant import Step
from variants.lora import LoRA


@dataclass(kw_only=True)
class Held(LoRA):
    """LoRA that takes its eighth step when the file `held` is gone."""

    held: str = ""

    def on_step_begin(self, step: Step) -> None:
        while step.index == 8 and Path(self.held).exists():
            time.sleep(0.02)
