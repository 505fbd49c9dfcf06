"""Checks before any weight is loaded that a model, its tokenizer and the rows of a run fit together.

The checks read the model's modules, which have no weights yet, and its forward's parameters; no model is known by name.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from trainer.data.ragged import Ragged
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.data.rows import Rows, TaskSplits
    from trainer.data.sources import TaskData


def model_inputs(model: Any, offered: list[str]) -> list[str]:
    """Selects the tokenizer's outputs (`offered`) that `model` uses, and adds a mask if the model takes one.

    Token types are omitted if the model has only one type, and if it looks them up in its word embeddings, as GPT-2
    does, which was trained without them.
    """
    taken = inspect.signature(model.forward).parameters
    names = [name for name in offered if name in taken and (name != "token_type_ids" or _has_types(model))]
    if "attention_mask" in taken and "attention_mask" not in names:
        names.append("attention_mask")
    return names


def longest_text(model: Any) -> int | None:
    """Returns the number of tokens that `model` has positions for, or None if nothing limits it.

    RoBERTa and related models number positions from the padding index of their table, so its first entries are unused.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions < 1:
        return None
    words = _words(model)
    unused = [0]
    for table in model.modules():
        padding, weight = getattr(table, "padding_idx", None), getattr(table, "weight", None)
        if table is not words and padding is not None and weight is not None and len(weight) == positions:
            unused.append(padding + 1)
    return positions - max(unused)


def refuse_no_room(tokenizer: Any, max_length: int, pairs: bool) -> None:
    """Raises `ConfigError` if rows of at most `max_length` tokens have room only for special tokens."""
    special = tokenizer.num_special_tokens_to_add(pair=pairs)
    if max_length <= special:
        raise ConfigError(
            f"data.max_length: {max_length} tokens in a row, {special} of which the tokenizer adds; "
            f"allowed: above {special}"
        )


def refuse_another_end(config: Any, tokenizer: Any) -> None:
    """Raises `ConfigError` if a model classifies at the end of the text and its end token is not the tokenizer's.

    This concerns encoder-decoder models: they search the text for their config's eos_token_id.
    """
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if config.is_encoder_decoder and tokenizer.eos_token_id not in ends:
        raise ConfigError(
            f"model: the end of a text is token {config.eos_token_id} in its config (eos_token_id) and "
            f"{tokenizer.eos_token_id} ({tokenizer.eos_token!r}) in its tokenizer; allowed: the same number"
        )


def check(model: Any, tokenizer: Any, rows: TaskSplits, task: TaskData) -> None:
    """Raises `ConfigError` if the model has no embedding for one of the tokenizer's ids; the error names a row.

    model: without weights. rows: the tokenized rows of `task`.
    """
    size, types = _limits(model)
    if size is not None and tokenizer.pad_token_id >= size:
        raise ConfigError(
            f"model: its tokenizer pads with token {tokenizer.pad_token_id} ({tokenizer.pad_token!r}), and the model "
            f"has embeddings for {size} tokens; allowed: ids below {size}, or resized embeddings"
        )
    if "token_type_ids" in tokenizer.model_input_names and types is not None and tokenizer.pad_token_type_id >= types:
        raise ConfigError(
            f"model: its tokenizer gives padding the type {tokenizer.pad_token_type_id}, and the model has {types} "
            f"token types; allowed: a pad_token_type_id below {types}"
        )
    for split, split_rows in rows.splits():
        check_rows(model, split_rows, split, task)


def check_rows(model: Any, rows: Rows, split: str, task: TaskData) -> None:
    """Raises `ConfigError` if one of `rows`, of a split of `task`, is empty or has an id without an embedding."""
    size, types = _limits(model)
    empty = rows.sources[np.asarray(rows.lengths) == 0]
    if len(empty):
        name = row_name(task, split, empty[0])
        raise ConfigError(f"task: {name} yields no token with the model's tokenizer; allowed: one or more")
    _refuse_above(rows, "input_ids", size, "model: its tokenizer has more tokens", split, task)
    _refuse_above(rows, "token_type_ids", types, "model: its tokenizer has more token types", split, task)


def _limits(model: Any) -> tuple[int | None, int | None]:
    """Returns how many tokens and token types the model has embeddings for; None if it doesn't say."""
    words = _words(model)
    return None if words is None else words.weight.shape[0], getattr(model.config, "type_vocab_size", None)


def row_name(task: TaskData, split: str, row: int) -> str:
    """Names a row of a split in an error. row: its index, from 0."""
    values = task.splits[split][int(row)]
    text = next(str(value) for name, value in values.items() if name != "id")
    return f"row {row + 1} of {split} ({text if len(text) < 40 else text[:40] + '…'!r})"


def _refuse_above(rows: Rows, column: str, limit: int | None, problem: str, split: str, task: TaskData) -> None:
    """Raises `ConfigError` for the first of `rows` that has an id of `limit` or above."""
    ids = rows.columns.get(column)
    if limit is None or not isinstance(ids, Ragged) or ids.numbers.max() < limit:
        return
    for row, source in zip(rows.indices, rows.sources, strict=True):
        largest = max(ids[int(row)])
        if largest >= limit:
            name = row_name(task, split, source)
            raise ConfigError(
                f"{problem}: {name} has the id {largest}, and the model has {limit}; allowed: ids below {limit}"
            )


def _words(model: Any) -> nn.Embedding | None:
    """Returns the model's word embeddings, or None if it has none."""
    try:
        table = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    return table if isinstance(getattr(table, "weight", None), torch.Tensor) else None


def _has_types(model: Any) -> bool:
    """Whether `model` was trained with more than one token type."""
    types = getattr(model.config, "type_vocab_size", None)
    return types > 1 if types is not None else not _reads_types_as_words(model)


def _reads_types_as_words(model: Any) -> bool:
    """Whether `model`, which has no weights, looks up token types in its word embeddings."""
    words, looked_up = _words(model), []
    if words is None:
        return False
    numbers = torch.zeros((1, 2), dtype=torch.long, device="meta")
    watch = words.register_forward_pre_hook(lambda *_: looked_up.append(1))
    padding, model.config.pad_token_id = (
        model.config.pad_token_id,
        None,
    )  # otherwise the model would search the ids for it
    try:
        model(input_ids=numbers, token_type_ids=numbers)
    except (RuntimeError, NotImplementedError):
        pass  # the forward pass reads values, which meta tensors don't have
    finally:
        watch.remove()
        model.config.pad_token_id = padding
    return len(looked_up) > 1
