"""Ratings of items by users: a vector for each user and each item, whose product is the rating beside both's biases.

Without layers it is matrix factorisation (Koren, Bell, Volinsky, "Matrix Factorization Techniques for Recommender
Systems", IEEE Computer 2009); with layers, each vector goes through a tower of its own before.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput

TYPE = "two_tower"


class TwoTowerConfig(PretrainedConfig):
    """users, items: how many. factors: the size of their vectors. layers: of each tower. mean: added to each rating."""

    model_type = TYPE
    users: int = 2
    items: int = 2
    factors: int = 16
    layers: int = 0
    mean: float = 0.0
    initializer_range: float = 0.1


class Layer(GradientCheckpointingLayer):
    """Adds to a vector (…, factors) what a layer makes of it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.dense(x))


class TwoTower(PreTrainedModel):
    config_class = TwoTowerConfig
    base_model_prefix = "two_tower"
    main_input_name = "user_ids"
    supports_gradient_checkpointing = True

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__(config)
        self.supports_gradient_checkpointing = config.layers > 0
        self.user_factors, self.user_bias = nn.Embedding(config.users, config.factors), nn.Embedding(config.users, 1)
        self.item_factors, self.item_bias = nn.Embedding(config.items, config.factors), nn.Embedding(config.items, 1)
        self.user_tower, self.item_tower = (
            nn.ModuleList(Layer(config.factors) for _ in range(config.layers)) for _ in range(2)
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        for bias in (self.user_bias, self.item_bias):
            if module is bias:
                nn.init.zeros_(bias.weight)

    def forward(self, user_ids: torch.Tensor, item_ids: torch.Tensor, **_: Any) -> SequenceClassifierOutput:
        """Returns the ratings (rows, items) that users (rows,) give to items (rows, items), as `logits`."""
        user, item = self.user_factors(user_ids), self.item_factors(item_ids)
        for layer in self.user_tower:
            user = layer(user)
        for layer in self.item_tower:
            item = layer(item)
        ratings = (user.unsqueeze(1) * item).sum(-1)
        ratings = ratings + self.user_bias(user_ids) + self.item_bias(item_ids).squeeze(-1) + self.config.mean
        return SequenceClassifierOutput(logits=ratings)


def register(auto: str) -> None:
    """Makes transformers' `AutoConfig` and its class of this name know the model."""
    AutoConfig.register(TYPE, TwoTowerConfig, exist_ok=True)
    getattr(transformers, auto).register(TwoTowerConfig, TwoTower, exist_ok=True)
