"""Recognises out-of-memory errors, which must not be reported as faults of a setting."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this process or the device ran out of memory; torch has no error class for the former."""
    kind = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return kind or "DefaultCPUAllocator" in str(error) or "out of memory" in str(error)
