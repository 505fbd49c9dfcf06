"""Reads a model's files by others through transformers, and turns its errors into `ConfigError`."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator

from trainer.errors import ConfigError, message
from variants.core.out_of_memory import is_out_of_memory

# Every `from_pretrained` and `from_config` gets this; otherwise transformers asks on the terminal and waits.
NO_CODE = {"trust_remote_code": False}


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns any error but out-of-memory into a `ConfigError` that names `what`, a part of the model."""
    try:
        yield
    except Exception as error:  # transformers, tokenizers, safetensors and torch share no error class
        if isinstance(error, ConfigError) or is_out_of_memory(error):
            raise
        raise ConfigError(f"model: {what}: {_explained(error)}") from error


def _explained(error: Exception) -> str:
    text = message(error)
    # These messages advise to disable a protection, which the suite never does.
    if "trust_remote_code" in text:
        return "needs its own code (auto_map), which is never run; allowed: an architecture of transformers"
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        return "a pickle with more than tensors could run code and is not read; allowed: model.safetensors"
    return f"can't be read: {type(error).__name__}: {text[:300]}"
