"""What every run imports on its way. A fork of a process that has done it takes a quarter of the time."""

from __future__ import annotations

import functools
import gc
import importlib

from trainer.machine import garbage

NAMES = [
    "trainer.runs.run",
    "torch._dynamo",  # by torch's optimizers, at the first step
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "pandas",
    "hydra.core.override_parser.overrides_parser",
]


@functools.cache
def load() -> None:
    """Imports all of it, which no later collection of garbage then looks at: in a fork that would copy it."""
    for name in NAMES:
        importlib.import_module(name)
    gc.collect()
    garbage.freeze()
