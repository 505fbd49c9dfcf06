"""Whether a model, its tokenizer and the rows of a run fit together: found before a weight is loaded.

All is asked of the model's modules, without weights, and of its forward's parameters; no model is known by its name.
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
    from trainer.data.rows import Prepared, Rows
    from trainer.data.sources import TaskData


def model_inputs(model: Any, offered: list[str]) -> list[str]:
    """Of the tokenizer's outputs (`offered`) those that `model` has a use for, and a mask wherever it takes one.

    Types of tokens are left out where the model has one type alone, and where it looks them up among its words, as
    GPT-2 does, which was trained without.
    """
    taken = inspect.signature(model.forward).parameters
    names = [name for name in offered if name in taken and (name != "token_type_ids" or _has_types(model))]
    if "attention_mask" in taken and "attention_mask" not in names:
        names.append("attention_mask")
    return names


def longest_text(model: Any) -> int | None:
    """Tokens of the longest text that `model` has positions for, or None where nothing limits them.

    RoBERTa and its kin count positions from the padding index of their table on, so that its first places are never
    used.
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
    """Raises `ConfigError` where rows of at most `max_length` tokens have room for special tokens alone."""
    special = tokenizer.num_special_tokens_to_add(pair=pairs)
    if max_length <= special:
        raise ConfigError(
            f"data.max_length: {max_length} tokens in a row, {special} of which the tokenizer adds; "
            f"allowed: above {special}"
        )


def refuse_another_end(config: Any, tokenizer: Any) -> None:
    """Raises `ConfigError` where a model that classifies at the end of a text takes another token for it.

    These are the models with a decoder above an encoder: they look for their config's eos_token_id in the text.
    """
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if config.is_encoder_decoder and tokenizer.eos_token_id not in ends:
        raise ConfigError(
            f"model: its config takes token {config.eos_token_id} for the end of a text (eos_token_id) and its "
            f"tokenizer {tokenizer.eos_token_id} ({tokenizer.eos_token!r}); allowed: one number"
        )


def check(model: Any, tokenizer: Any, rows: Prepared, task: TaskData) -> None:
    """Raises `ConfigError` where the model has no embedding for one of the tokenizer's numbers; a row is named.

    model: without weights. rows: of `task`, as the tokenizer gives them.
    """
    size, types = _limits(model)
    if size is not None and tokenizer.pad_token_id >= size:
        raise ConfigError(
            f"model: its tokenizer pads with number {tokenizer.pad_token_id} ({tokenizer.pad_token!r}), and the model "
            f"has embeddings for {size} tokens; allowed: numbers below {size}, or resized embeddings"
        )
    if "token_type_ids" in tokenizer.model_input_names and types is not None and tokenizer.pad_token_type_id >= types:
        raise ConfigError(
            f"model: its tokenizer gives padding the type {tokenizer.pad_token_type_id}, and the model has {types} "
            f"types of tokens; allowed: a pad_token_type_id below {types}"
        )
    for split, part in rows.splits():
        check_rows(model, part, split, task)


def check_rows(model: Any, part: Rows, split: str, task: TaskData) -> None:
    """Raises `ConfigError` where `part`, rows of a split of `task`, has an empty row or one without embeddings."""
    size, types = _limits(model)
    empty = part.sources[np.asarray(part.lengths) == 0]
    if len(empty):
        name = row_name(task, split, empty[0])
        raise ConfigError(f"task: {name} has no token for the model's tokenizer; allowed: one or more")
    _refuse_above(part, "input_ids", size, "model: its tokenizer has more tokens", split, task)
    _refuse_above(part, "token_type_ids", types, "model: its tokenizer has more types of tokens", split, task)


def _limits(model: Any) -> tuple[int | None, int | None]:
    """For how many words and types of tokens the model has embeddings; None where it doesn't say."""
    words = _words(model)
    return None if words is None else words.weight.shape[0], getattr(model.config, "type_vocab_size", None)


def row_name(task: TaskData, split: str, row: int) -> str:
    """How an error names a row of a split, counted from 0 by `row`."""
    values = task.splits[split][int(row)]
    text = next(str(value) for name, value in values.items() if name != "id")
    return f"row {row + 1} of {split} ({text if len(text) < 40 else text[:40] + '…'!r})"


def _refuse_above(rows: Rows, column: str, limit: int | None, problem: str, split: str, task: TaskData) -> None:
    """Raises `ConfigError` for the first of `rows` that has a number from `limit` on."""
    found = rows.columns.get(column)
    if limit is None or not isinstance(found, Ragged) or found.numbers.max() < limit:
        return
    for row, source in zip(rows.indices, rows.sources, strict=True):
        largest = max(found[int(row)])
        if largest >= limit:
            name = row_name(task, split, source)
            raise ConfigError(
                f"{problem}: {name} has the number {largest}, and the model has {limit}; allowed: numbers below {limit}"
            )


def _words(model: Any) -> nn.Embedding | None:
    """The table of the model's words, where it has one."""
    try:
        found = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    return found if isinstance(getattr(found, "weight", None), torch.Tensor) else None


def _has_types(model: Any) -> bool:
    """Whether types of tokens tell `model` anything that it was trained with."""
    types = getattr(model.config, "type_vocab_size", None)
    return types > 1 if types is not None else not _reads_types_as_words(model)


def _reads_types_as_words(model: Any) -> bool:
    """Whether `model`, which is without weights, looks up types of tokens in its table of words."""
    words, looked_up = _words(model), []
    if words is None:
        return False
    numbers = torch.zeros((1, 2), dtype=torch.long, device="meta")
    watch = words.register_forward_pre_hook(lambda *_: looked_up.append(1))
    padding, model.config.pad_token_id = model.config.pad_token_id, None  # or numbers would be searched for it
    try:
        model(input_ids=numbers, token_type_ids=numbers)
    except (RuntimeError, NotImplementedError):
        pass  # it asks for numbers, and there are none
    finally:
        watch.remove()
        model.config.pad_token_id = padding
    return len(looked_up) > 1
