"""The backbone: loaded once per process, copied and given a fresh head for each run."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer import agreement
from trainer.errors import ConfigError
from trainer.foreign import NO_CODE, reading

# What the configs of transformers call it. Those of a head: None where it is the backbone's.
BACKBONE_DROPOUT = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout", "attention_dropout", "dropout"),
    *("dropout_rate", "activation_dropout", "embedding_dropout", "mlp_dropout"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop"),
)
HEAD_DROPOUT = ("classifier_dropout", "classifier_dropout_prob", "cls_dropout")


@dataclass(frozen=True)
class Pristine:
    """A loaded backbone that no run has touched.

    new: names of the modules whose weights the checkpoint does not have: the head, drawn anew
    for every run. head: names of the modules that belong to the task.
    """

    model: nn.Module
    new: tuple[str, ...]
    head: tuple[str, ...]


@functools.cache
def tokenizer(folder: Path) -> Any:
    """The model's tokenizer, which gives what the model takes; see `agreement.model_inputs`."""
    found = _padding_tokenizer(folder)
    found.model_input_names = agreement.model_inputs(skeleton(folder, 2), found.model_input_names)
    return found


@functools.cache
def _padding_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`; one without a padding token pads with its end-of-text token."""
    from transformers import AutoTokenizer

    with reading("its tokenizer"):
        found = AutoTokenizer.from_pretrained(folder, **NO_CODE)
        if found.pad_token is None:
            found.pad_token = found.eos_token
        found("a", truncation=True, max_length=min(8, found.model_max_length))  # some settings are only looked at here
    if found.pad_token is None:
        raise ConfigError(
            "model: its tokenizer has no padding token, and no end-of-text token to take its place; "
            "allowed: a tokenizer_config.json with a pad_token"
        )
    return found


@functools.cache
def model_config(folder: Path, labels: int) -> Any:
    """The model's config for a task with `labels` outputs (1 for a regression)."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig

    with reading("its config.json"):
        config = AutoConfig.from_pretrained(folder, num_labels=labels, **NO_CODE)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ConfigError(
            f"model: a {config.model_type}, of which transformers has no classifier of texts "
            "(AutoModelForSequenceClassification); allowed: a model of which it has one"
        )
    config.return_dict = True  # its outputs are asked for by name
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        if part.pad_token_id is None:
            part.pad_token_id = _padding_tokenizer(folder).pad_token_id
        words = getattr(part, "vocab_size", None)
        if words is not None and part.pad_token_id >= words:
            raise ConfigError(
                f"model: token {part.pad_token_id} is its padding (the config's pad_token_id, or the tokenizer's where"
                f" it has none), and its vocab_size is {words}; allowed: below {words}, or resized embeddings"
            )
    return config


def skeleton(folder: Path, labels: int) -> nn.Module:
    """The model's modules without any weights: enough to check targets and ranks against."""
    from transformers import AutoModelForSequenceClassification

    config = model_config(folder, labels)
    with reading("its config.json"), torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config, **NO_CODE)


@functools.lru_cache(maxsize=2)
def pristine(folder: Path, labels: int, dropout: float | None = None) -> Pristine:
    """Loads the weights in float32; a checkpoint that lacks more than a head is an error.

    dropout: of the backbone, see `set_dropout`; None leaves what the model's config says.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()  # that the head is new is no news
    logging.disable_progress_bar()
    config = copy.deepcopy(model_config(folder, labels))
    if dropout is not None:
        set_dropout(config, dropout)
    with reading("its weights"):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, **NO_CODE
        )
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ConfigError(f"model: its weights: {name} has values that are not finite")
    head = head_modules(model)
    missing = sorted(report["missing_keys"])
    new = tuple(dict.fromkeys(name.rpartition(".")[0] for name in missing))
    outside = [name for name in new if not _inside(name, head)]
    if outside:
        raise ConfigError(f"model: the checkpoint has no weights for {outside[0]} ({len(outside)} modules in all)")
    return Pristine(model, new, head)


def set_dropout(config: Any, dropout: float) -> None:
    """Makes `dropout` that of hidden states and attention in a model's config; that of the head stays as it is.

    Raises `ConfigError` for a model whose config has no dropout by any of the names that transformers uses.
    """
    found = [name for name in BACKBONE_DROPOUT if getattr(config, name, None) is not None]
    if not found:
        known = ", ".join(BACKBONE_DROPOUT)
        raise ConfigError(f"model.dropout: {dropout}, allowed: null; {config.model_type}'s config has none of {known}")
    for name in HEAD_DROPOUT:
        # None stands for the backbone's own, which is about to change.
        if getattr(config, name, 0.0) is None:
            setattr(config, name, getattr(config, found[0]))
    for name in found:
        setattr(config, name, dropout)


def as_loaded(folder: Path, labels: int, dtype: str) -> nn.Module:
    """The model as transformers loads it, in `dtype` throughout, its head drawn anew: what an adapter is put on."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(model_config(folder, labels))
    return AutoModelForSequenceClassification.from_pretrained(
        folder, config=config, dtype=getattr(torch, dtype), **NO_CODE
    ).eval()


def head_modules(model: Any) -> tuple[str, ...]:
    """The modules that belong to the task: all outside the encoder, and the encoder's pooler."""
    base = model.base_model_prefix
    head = [name for name, child in model.named_children() if name != base and list(child.parameters())]
    head += [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "pooler" and name not in head]
    return tuple(head)


def fresh(source: Pristine, seed: int, dtype: str = "float32") -> nn.Module:
    """A copy for one run: the new modules drawn with `seed`, the backbone in `dtype`.

    The head stays in float32 above a bfloat16 backbone; its inputs are cast.
    """
    model: Any = copy.deepcopy(source.model)
    torch.manual_seed(seed)
    for name in source.new:
        module = model.get_submodule(name)
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False
        model._init_weights(module)
    wanted: torch.dtype = getattr(torch, dtype)
    model.to(wanted)
    if wanted.itemsize < 4:
        for name in source.head:
            module = model.get_submodule(name).to(torch.float32)
            module.register_forward_pre_hook(_to_float32)
    return model


def refuse_half_precision(model: nn.Module, variant: str) -> None:
    """Raises `ConfigError` where a weight in half precision would be trained: small steps vanish in it."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype.itemsize < 4:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ConfigError(f"model.dtype: {kind} is for a frozen backbone, and {variant} trains {name}")


def _to_float32(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments)


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
