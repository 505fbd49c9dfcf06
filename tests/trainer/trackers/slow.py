"""A method whose steps take long enough for something to happen between two of them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from variants.core.variant import Step
from variants.lora import LoRA


@dataclass(kw_only=True)
class Slow(LoRA):
    """LoRA, slowly."""

    def on_step_begin(self, step: Step) -> None:
        time.sleep(0.1)
