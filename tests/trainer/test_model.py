"""The backbone: whose dropout `model.dropout` sets, and whose it leaves."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from trainer import model as models
from trainer.errors import ConfigError


@pytest.mark.parametrize("own", [None, 0.25])
def test_the_dropout_of_hidden_states_and_attention_is_set_and_that_of_the_head_stays(own):
    config = transformers.BertConfig(hidden_dropout_prob=0.1, classifier_dropout=own)
    models.set_dropout(config, 0.3)
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.3
    assert config.classifier_dropout == (0.1 if own is None else own)


@pytest.mark.parametrize("kind", ["DistilBertConfig", "GPT2Config", "T5Config", "ModernBertConfig", "DebertaV2Config"])
def test_configs_that_call_it_otherwise_have_it_set_as_well(kind):
    config = getattr(transformers, kind)()
    models.set_dropout(config, 0.37)
    assert 0.37 in [getattr(config, name, None) for name in models.BACKBONE_DROPOUT]


def test_a_model_without_any_is_refused():
    with pytest.raises(ConfigError, match=r"model.dropout: 0.3, allowed: null; resnet's config has none of "):
        models.set_dropout(transformers.ResNetConfig(), 0.3)


def test_a_backbone_without_dropout_computes_the_same_twice_in_training(tiny_model):
    ids = torch.ones(2, 7, dtype=torch.long)
    outputs = {}
    for dropout in (None, 0.0):
        model = models.fresh(models.pristine(tiny_model, 2, dropout), 0).train()
        outputs[dropout] = [model.base_model(ids).last_hidden_state for _ in range(2)]
    assert not torch.equal(*outputs[None]) and torch.equal(*outputs[0.0])
    head = models.fresh(models.pristine(tiny_model, 2, 0.0), 0).dropout
    assert isinstance(head, nn.Dropout) and head.p == 0.1
