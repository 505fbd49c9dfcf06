"""Layers of every kind that can be adapted, each with an input."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
WAVE = torch.randn(2, 4, 20, generator=torch.Generator().manual_seed(0))
CHANNELS = torch.randn(2, 6, 9, 9, generator=torch.Generator().manual_seed(0))
ROWS = torch.tensor([[0, 3, 3], [9, 1, 0]])

OF_EVERY_KIND = [
    pytest.param(nn.Linear(8, 6), X, id="Linear"),
    pytest.param(nn.Linear(8, 6, bias=False), X, id="Linear without bias"),
    pytest.param(Conv1D(6, 8), X, id="Conv1D"),
    pytest.param(nn.Embedding(10, 6), ROWS, id="Embedding"),
    pytest.param(nn.Embedding(10, 6, padding_idx=0), ROWS, id="Embedding with padding"),
    pytest.param(nn.Conv2d(3, 6, 3), IMAGE, id="Conv2d"),
    pytest.param(nn.Conv2d(3, 6, (3, 2), stride=2, padding=1, dilation=2), IMAGE, id="Conv2d with stride"),
    pytest.param(nn.Conv2d(3, 6, 3, padding="same", padding_mode="reflect"), IMAGE, id="Conv2d reflecting"),
    pytest.param(nn.Conv2d(6, 4, 3, groups=2), CHANNELS, id="Conv2d in groups"),
    pytest.param(nn.Conv2d(6, 6, 3, padding=1, stride=2, groups=6), CHANNELS, id="depthwise Conv2d"),
    pytest.param(nn.Conv2d(6, 12, 3, padding="same", padding_mode="circular", groups=6), CHANNELS, id="depthwise, ×2"),
    pytest.param(nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), WAVE, id="Conv1d"),
    pytest.param(nn.Conv1d(4, 6, 3, bias=False), WAVE[0], id="Conv1d of one row"),
    pytest.param(nn.Conv1d(4, 8, 4, padding="same", groups=2), WAVE, id="Conv1d in groups"),
]
