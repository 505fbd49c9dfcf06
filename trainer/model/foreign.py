"""Files of a model that somebody else has written: what transformers makes of them, in our own words."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator

from trainer.errors import ConfigError, message
from variants.core.out_of_memory import is_out_of_memory

# Given to every `from_pretrained` and `from_config`: else transformers asks on the terminal, and waits for an answer.
NO_CODE = {"trust_remote_code": False}


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Within it whatever is raised is a `ConfigError` on `what`, a part of the model; memory that runs out stays so."""
    try:
        yield
    except Exception as error:  # transformers, tokenizers, safetensors and torch have no error in common
        if isinstance(error, ConfigError) or is_out_of_memory(error):
            raise
        raise ConfigError(f"model: {what}: {_explained(error)}") from error


def _explained(error: Exception) -> str:
    text = message(error)
    # What these advise, to switch a protection off, is not what the suite does.
    if "trust_remote_code" in text:
        return "asks for code that comes with it (auto_map), which is never run; allowed: what transformers has itself"
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        return "a pickle of more than tensors, which could run code and is not read; allowed: model.safetensors"
    return f"can't be read: {type(error).__name__}: {text[:300]}"
