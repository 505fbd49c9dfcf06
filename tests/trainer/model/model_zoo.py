"""Tiny models of many families, with random weights and a tokenizer of the family's kind."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

WIDTH, POSITIONS = 16, 40
TEXTS = ["a warm film with a bright cast", "a dull plot", "a slow and hollow ending of a film with a pale hero"]

# Special tokens in the order of their numbers, by role; what a text and a pair become; whose padding is on the left.
BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
T5 = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
GPT2 = {"eos": "<|endoftext|>"}
LLAMA = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
XLNET = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "cls": "<cls>", "sep": "<sep>", "pad": "<pad>"}
TEMPLATES = {
    id(BERT): ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    id(ROBERTA): ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    id(T5): ("$A </s>", "$A </s> $B </s>"),
    id(LLAMA): ("<s> $A", "<s> $A <s> $B"),
    id(XLNET): ("$A <sep> <cls>", "$A <sep> $B <sep> <cls>"),
}

ENCODER = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH}
ENCODER |= {"max_position_embeddings": POSITIONS}
DECODER = ENCODER | {"pad_token_id": None, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
FROM_PADDING = ENCODER | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
BART_SIZE = {"d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": POSITIONS}
BART_SIZE |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
BART_SIZE |= {f"{part}_ffn_dim": 2 * WIDTH for part in ("encoder", "decoder")}

# The config's class without "Config", its tokenizer, its settings, and the longest text that it has positions for.
FAMILIES: dict[str, tuple[dict[str, str], dict[str, Any], int | None]] = {
    "Bert": (BERT, ENCODER, POSITIONS),
    "Albert": (BERT, ENCODER | {"embedding_size": 8}, POSITIONS),
    "Electra": (BERT, ENCODER | {"embedding_size": 8}, POSITIONS),
    "DistilBert": (
        BERT,
        {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 40},
        40,
    ),
    "DebertaV2": (BERT, ENCODER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, POSITIONS),
    "FNet": (BERT, {k: v for k, v in ENCODER.items() if k != "num_attention_heads"}, POSITIONS),
    "Roberta": (ROBERTA, FROM_PADDING, POSITIONS - 2),
    "XLMRoberta": (ROBERTA, FROM_PADDING, POSITIONS - 2),
    "Camembert": (ROBERTA, FROM_PADDING, POSITIONS - 2),
    "Data2VecText": (ROBERTA, FROM_PADDING, POSITIONS - 2),
    "MPNet": (ROBERTA, {k: v for k, v in FROM_PADDING.items() if k != "type_vocab_size"}, POSITIONS - 2),
    "Longformer": (ROBERTA, FROM_PADDING | {"attention_window": 8}, POSITIONS - 2),
    "Xmod": (ROBERTA, FROM_PADDING | {"languages": ["en_XX"], "default_language": "en_XX"}, POSITIONS - 2),
    "Bart": (ROBERTA, BART_SIZE | {"pad_token_id": 1, "eos_token_id": 2}, POSITIONS),
    "T5": (
        T5,
        {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "eos_token_id": 1}
        | {"decoder_start_token_id": 0},
        None,
    ),
    "XLNet": (XLNET, {"d_model": WIDTH, "n_layer": 2, "n_head": 2, "d_inner": 32, "pad_token_id": 5}, None),
    "GPT2": (
        GPT2,
        {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS, "eos_token_id": 0},
        POSITIONS,
    ),
    "GPTNeoX": (GPT2, ENCODER | {"eos_token_id": 0, "bos_token_id": 0}, POSITIONS),
    "OPT": (
        ROBERTA,
        {"hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"ffn_dim": 32, "max_position_embeddings": POSITIONS, "pad_token_id": 1},
        POSITIONS,
    ),
    "Llama": (LLAMA, DECODER, POSITIONS),
    "Qwen2": (GPT2, DECODER | {"bos_token_id": 0, "eos_token_id": 0}, POSITIONS),
    "Mistral": (LLAMA, DECODER | {"head_dim": 8}, POSITIONS),
}


def make(folder: Path, family: str, tokenizer: dict[str, Any] | None = None, **config: Any) -> Path:
    """Writes the model into `folder`; `tokenizer` and `config` are set in tokenizer_config.json and config.json."""
    roles, settings, _ = FAMILIES[family]
    words = _tokenizer(id(roles), tuple(roles.items()))
    torch.manual_seed(0)
    made = getattr(transformers, f"{family}Config")(**{"vocab_size": len(words), "num_labels": 2} | settings)
    transformers.AutoModelForSequenceClassification.from_config(made).save_pretrained(folder)
    words.save_pretrained(folder)
    for name, changes in (("tokenizer_config.json", tokenizer), ("config.json", config)):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | (changes or {})))
    return folder


@functools.cache
def _tokenizer(kind: int, roles: tuple[tuple[str, str], ...]) -> transformers.PreTrainedTokenizerFast:
    special = dict(roles)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=list(special.values()),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(TEXTS, trainer)
    if kind in TEMPLATES:
        single, pair = TEMPLATES[kind]
        numbers = [(token, made.token_to_id(token)) for token in special.values() if token in pair]
        made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=numbers)  # type: ignore[assignment]
    types = ["token_type_ids"] if kind == id(BERT) else []
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_input_names=["input_ids", *types, "attention_mask"],
        padding_side="left" if kind == id(XLNET) else "right",
        **{f"{role}_token": token for role, token in special.items()},
    )
