"""Random number generators that depend on a seed and a layer's name only."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator for the layer `name`; its numbers do not depend on the order of layers."""
    # torch's CPU generator uses the low 32 bits of a seed only.
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
