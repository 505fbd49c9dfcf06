"""A tiny language model with random weights, and a tokenizer that can take any text: what a user's folder holds."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import decoders

from tests.trainer.model.model_zoo import FAMILIES, _tokenizer

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make(folder: Path, family: str = "Llama", template: str | None = None, **settings: Any) -> Path:
    """The model in `folder`, whose embeddings make the words it predicts, too, unless `settings` say otherwise.

    family: of `model_zoo`, or one whose config has the names of Llama's.
    """
    roles, own, _ = FAMILIES.get(family, FAMILIES["Llama"])
    words = copy.deepcopy(_tokenizer(id(roles), tuple(roles.items())))
    words.backend_tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    wide = {"initializer_range": 0.2, "tie_word_embeddings": True, "vocab_size": len(words)}
    config = getattr(transformers, f"{family}Config")(**(own | wide | settings))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    if template is not None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path
