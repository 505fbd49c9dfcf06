"""A tiny model of every family, with random weights and a tokenizer that fits them all: what a user's folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as t

from tests.conftest import BAD, GOOD, OTHER

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
WORDS = [*SPECIAL, *GOOD, *BAD, *OTHER]
COMMON = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 2}
ENCODER = COMMON | {
    "pad_token_id": 1,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
# As published ones have it, a decoder's config knows no padding token: it is the tokenizer's.
DECODER = ENCODER | {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": None}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}

# (class of the config, class that the checkpoint is of, settings)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "albert": ("AlbertConfig", "AlbertForMaskedLM", ENCODER | {"embedding_size": 8}),
    "bart": (
        "BartConfig",
        "BartForConditionalGeneration",
        COMMON
        | {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "pad_token_id": 1}
        | {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 40}
        | {"decoder_start_token_id": 2},
    ),
    "bert": ("BertConfig", "BertForMaskedLM", ENCODER),
    "deberta": (
        "DebertaConfig",
        "DebertaForMaskedLM",
        ENCODER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    ),
    "deberta-v2": (
        "DebertaV2Config",
        "DebertaV2ForMaskedLM",
        ENCODER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    ),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        COMMON
        | {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 40, "pad_token_id": 1},
    ),
    "electra": ("ElectraConfig", "ElectraForPreTraining", ENCODER | {"embedding_size": 8}),
    "falcon": (
        "FalconConfig",
        "FalconForCausalLM",
        COMMON | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    ),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", DECODER),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", ENCODER | {"pad_token_id": None}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", COMMON | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", DECODER),
    "longformer": ("LongformerConfig", "LongformerForMaskedLM", ENCODER | {"attention_window": 8}),
    "mistral": ("MistralConfig", "MistralForCausalLM", DECODER),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", DECODER | {"num_local_experts": 4}),
    "modernbert": (
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        ENCODER | {"cls_token_id": 0, "sep_token_id": 2, "reference_compile": False},
    ),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {k: v for k, v in DECODER.items() if k != "head_dim"}),
    "qwen3-moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", DECODER | EXPERTS | {"num_experts": 4}),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", ENCODER | {"type_vocab_size": 1}),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        COMMON
        | {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        | {"pad_token_id": 1, "decoder_start_token_id": 1},
    ),
    "xlnet": (
        "XLNetConfig",
        "XLNetLMHeadModel",
        COMMON | {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "pad_token_id": 1},
    ),
    "xmod": (
        "XmodConfig",
        "XmodForMaskedLM",
        ENCODER | {"type_vocab_size": 1, "languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
    ),
}


def tokenizer(side: str = "right") -> Any:
    """Words as numbers, `<s>` in front and `</s>` behind: which a model pools over is its own affair."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return t.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side=side,
        model_input_names=["input_ids", "attention_mask"],
    )


def write(family: str, folder: Path, labels: int | None = None, **settings: Any) -> Path:
    """The family's pretrained checkpoint in `folder`; with `labels` one that was trained to tell so many classes."""
    config_class, model_class, own = FAMILIES[family]
    if labels is not None:
        model_class = config_class.replace("Config", "ForSequenceClassification")
        settings["num_labels"] = labels
    torch.manual_seed(0)
    config = getattr(t, config_class)(**(own | settings))
    getattr(t, model_class)(config).save_pretrained(folder)
    tokenizer("left" if family == "xlnet" else "right").save_pretrained(folder)
    return folder
