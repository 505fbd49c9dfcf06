"""Whether an error is memory that ran out: no fault of a setting, and never reported as one."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Of this process or of the device; torch has no error of its own for the first."""
    kind = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return kind or "DefaultCPUAllocator" in str(error) or "out of memory" in str(error)
