"""The backbone: what is new in it, how that starts, and whose dropout `model.dropout` sets."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from transformers import initialization

from tests.classifiers import pristine
from tests.trainer.families import FAMILIES, write
from trainer.config import validate
from trainer.errors import ConfigError
from trainer.model import backbone as models
from trainer.runs.assemble import check


# Heads with a dropout of their own, and heads that read the backbone's: by one name, by another, by the backbone's own.
@pytest.mark.parametrize("family", ["distilbert", "bert", "roberta", "deberta-v2", "longformer"])
def test_the_dropout_of_the_backbone_is_set_and_that_of_the_head_stays(family, tmp_path):
    folder = write(family, tmp_path)
    usual, other = ({n: m.p for n, m in dropouts(pristine(folder, 2, p).model)} for p in (None, 0.37))
    backbone = pristine(folder, 2).model.base_model_prefix
    head = {name for name in usual if not name.startswith(f"{backbone}.")}
    assert head and {other[name] for name in usual.keys() - head} == {0.37}
    assert {name: usual[name] for name in head} == {name: other[name] for name in head}


def dropouts(model):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Dropout)]


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
        model = models.fresh(pristine(tiny_model, 2, dropout), 0).train()
        outputs[dropout] = [model.base_model(ids).last_hidden_state for _ in range(2)]
    assert not torch.equal(*outputs[None]) and torch.equal(*outputs[0.0])
    head = models.fresh(pristine(tiny_model, 2, 0.0), 0).dropout
    assert isinstance(head, nn.Dropout) and head.p == 0.1


# Of one family for every way in which a class starts its head.
STARTS = [
    "bert",
    "roberta",
    "distilbert",
    "modernbert",
    "deberta-v2",
    "xlnet",
    "t5",
    "bart",
    "gpt2",
    "llama",
    "electra",
]


@pytest.mark.parametrize("family", STARTS)
def test_a_new_head_is_to_the_bit_what_its_class_makes_of_it(family, tmp_path):
    folder = write(family, tmp_path)
    source = pristine(folder, 3)
    for seed in (0, 1):
        torch.manual_seed(seed)
        usual = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).state_dict()
        own = models.fresh(source, seed).state_dict()
        assert source.new and all(torch.equal(own[name], usual[name]) for name in usual)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_head_is_as_wide_as_one_of_a_model_made_from_its_config(family, tmp_path):
    """Of every new tensor the variance over seeds, against the class's own from a config."""
    source = pristine(write(family, tmp_path), 3)
    ours, usual = {}, {}
    for seed in range(6):
        own = models.fresh(source, seed).state_dict()
        torch.manual_seed(100 + seed)
        made = transformers.AutoModelForSequenceClassification.from_config(source.model.config).state_dict()
        for name in source.new:
            ours.setdefault(name, []).append(own[name].flatten())
            usual.setdefault(name, []).append(made[name].flatten())
    assert any(name.endswith(".weight") for name in source.new)
    for name in source.new:
        mine, theirs = (torch.cat(drawn[name]).std() for drawn in (ours, usual))
        torch.testing.assert_close(mine, theirs, rtol=0.35, atol=0, msg=name)
        assert not torch.equal(*ours[name][:2]) or not mine


class Weighted(transformers.BertForSequenceClassification):
    """A head with parameters of its own in it and beside it, one of which no `_init_weights` knows."""

    def __init__(self, config):
        super().__init__(config)
        self.classifier.temperature = nn.Parameter(torch.full((2,), 3.0))
        self.scales = nn.Parameter(torch.empty(5))

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Weighted):
            initialization.normal_(module.scales, std=0.5)


def test_plain_parameters_of_a_head_start_as_the_class_says(tmp_path):
    model = Weighted(transformers.BertConfig(**FAMILIES["bert"][2]))
    head = models.head_modules(model)
    assert head == ("classifier", "scales", "bert.pooler")
    new = ("classifier.weight", "classifier.bias", "classifier.temperature", "scales")
    source = models.LoadedBackbone(model, new, head)
    first, again, other = (models.fresh(source, seed, "bfloat16") for seed in (0, 0, 1))
    assert first.classifier.temperature.tolist() == [3.0, 3.0]
    assert torch.equal(first.scales, again.scales) and not torch.equal(first.scales, other.scales)
    assert 0.1 < first.scales.std() < 1.0 and first.scales.dtype == torch.float32
    assert torch.equal(first.bert.pooler.dense.weight, model.bert.pooler.dense.weight.bfloat16().float())


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert", "t5", "bart", "gpt2", "llama"])
def test_a_head_that_was_trained_for_another_task_is_drawn_anew(family, tmp_path):
    folder = write(family, tmp_path, labels=2)
    own = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).state_dict()
    source = pristine(folder, 2)
    drawn = [models.fresh(source, seed).state_dict() for seed in (0, 1)]
    weights = [name for name in source.new if own[name].ndim > 1]
    assert weights and all(any(name.startswith(f"{part}.") for part in source.head) for name in source.new)
    for name in weights:
        assert not torch.equal(drawn[0][name], drawn[1][name]) and not torch.equal(drawn[0][name], own[name])
    assert all(torch.equal(drawn[0][name], own[name]) for name in own if name not in source.new)
    assert ") is not used, a new one is drawn; model.keep_head=true would keep it" in source.notice


@pytest.mark.parametrize("labels", [1, 2, 5])
def test_and_so_is_one_of_another_size_or_of_a_regression(labels, tmp_path):
    source = pristine(write("bert", tmp_path, labels=3), labels)
    assert source.notice and {name.rpartition(".")[0] for name in source.new} == {"classifier", "bert.pooler.dense"}
    assert models.fresh(source, 0).classifier.weight.shape == (labels, 16)


def test_what_was_pretrained_stays_without_a_word(tmp_path):
    """A pooler without a classifier (MiniLM's), or a masked language model's prediction head in ModernBERT."""
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**FAMILIES["bert"][2])).save_pretrained(tmp_path / "pooled")
    for folder in (tmp_path / "pooled", write("modernbert", tmp_path / "modern")):
        source = pristine(folder, 2)
        assert source.notice is None and set(source.new) <= {"classifier.weight", "classifier.bias"}


def test_a_trained_head_is_kept_where_that_is_asked_for(tmp_path):
    folder = write("bert", tmp_path, labels=2, id2label={0: "spam", 1: "ham"}, label2id={"spam": 0, "ham": 1})
    source = pristine(folder, 2, keep_head=True)
    own = transformers.AutoModelForSequenceClassification.from_pretrained(folder).classifier.weight
    assert all(torch.equal(models.fresh(source, seed).classifier.weight, own) for seed in (0, 1))
    assert "trained for spam, ham) stays, the same for every seed" in source.notice
    with pytest.raises(
        ConfigError, match=r"keep_head: true, allowed: null; .*classes is spam, ham, that of the task's ham, spam"
    ):
        models.check_kept_head(folder, ["ham", "spam"])
    models.check_kept_head(folder, ["spam", "ham"])
    models.check_kept_head(folder, None)


def test_and_is_an_error_where_there_is_none_or_it_does_not_fit(tmp_path):
    with pytest.raises(ConfigError, match=r"keep_head: true, allowed: null; the checkpoint has no trained head"):
        pristine(write("bert", tmp_path / "bare"), 2, keep_head=True)
    with pytest.raises(ConfigError, match=r"keep_head: true, allowed: null; .* size doesn't fit 2 outputs"):
        pristine(write("bert", tmp_path / "three", labels=3), 2, keep_head=True)


@pytest.mark.parametrize("value", ["false", "1", "yes", "0"])
def test_keep_head_has_one_spelling(value, configured, tiny_overrides):
    with pytest.raises(ConfigError, match=r"model.keep_head: .*, allowed: true, null"):
        validate(configured([*tiny_overrides, f"model.keep_head={value}"]))


def test_the_head_is_what_is_not_pretrained():
    def head(kind: str, family: str) -> tuple[str, ...]:
        config_class, _, settings = FAMILIES[family]
        with torch.device("meta"):
            return models.head_modules(getattr(transformers, kind)(getattr(transformers, config_class)(**settings)))

    assert head("T5ForSequenceClassification", "t5") == ("classification_head",)
    assert head("BartForSequenceClassification", "bart") == ("classification_head",)
    assert (
        head("GPT2ForSequenceClassification", "gpt2") == head("LlamaForSequenceClassification", "llama") == ("score",)
    )
    # Tied embeddings are the backbone's, wherever they stand.
    assert head("GPT2LMHeadModel", "gpt2") == head("T5ForConditionalGeneration", "t5") == ()
    assert head("LlamaForCausalLM", "llama") == ("lm_head",)


def test_a_model_whose_head_lies_in_its_backbone_is_refused(tiny_overrides, configured, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "head_modules", lambda model: ())
    with pytest.raises(ConfigError, match="model: BertForSequenceClassification, allowed: a model whose head is out"):
        check(configured([*tiny_overrides, "variant=head"]))
