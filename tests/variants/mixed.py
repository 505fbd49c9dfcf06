"""A small model with every kind of layer that can be adapted."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

KINDS = ["embedding", "conv1d", "conv2d", "linear"]


class Mixed(nn.Module):
    """Embedding (10 rows → 6), Conv1D (6 → 8), Conv2d (1 → 6 channels, 3×3), Linear (6 → 6), a head (6 → 3)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.embedding = nn.Embedding(10, 6)
        self.conv1d = Conv1D(8, 6)
        self.conv2d = nn.Conv2d(1, 6, 3)
        self.linear = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.conv1d(self.embedding(rows)))
        return self.head(torch.tanh(self.linear(torch.tanh(self.conv2d(h[:, None])).mean((2, 3)))))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """32 rows of 5 numbers (32, 5) and targets (32, 3)."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(10, (32, 5), generator=generator)
    return rows, torch.randn(32, 3, generator=generator)
