"""Random draws that depend on a seed and a layer's name, and on nothing that was drawn before."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU for the layer `name`: every layer draws its own numbers, whatever the order of layers."""
    # torch's generator on the CPU looks at 32 bits of a seed alone: what stands above them changes nothing.
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
