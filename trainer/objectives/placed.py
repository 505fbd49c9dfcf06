"""Texts as tokens of which it is known for which characters each stands, in one row or in windows.

The letters of a special token in a text, as `</s>` in a log, are letters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer.data.ragged import Ragged
from trainer.data.tokens import special_tokens
from trainer.errors import ConfigError

AT_ONCE = 1_000  # texts that are tokenised together


@dataclass(frozen=True)
class Window:
    """One row. inputs: the tokenizer's outputs by name.

    parts: of each token the number of the text that it is of, from 0, and −1 for one that the tokenizer adds.
    places: (tokens, 2), where its characters begin and end in that text.
    """

    inputs: Mapping[str, np.ndarray]
    parts: np.ndarray
    places: np.ndarray


def refuse_without_places(tokenizer: Any) -> None:
    """Raises `ConfigError` for a tokenizer that does not say where in a text its tokens are."""
    if not tokenizer.is_fast:
        raise ConfigError(
            f"model: its tokenizer, {type(tokenizer).__name__}, does not say for which characters a token stands; "
            "allowed: a fast one, with a tokenizer.json"
        )


def windows(tokenizer: Any, *texts: Sequence[str], **options: Any) -> Iterator[tuple[list[Window], int]]:
    """Of each text, or pair of texts, its windows, and what `trainer.data.tokens.Tokens` calls letters.

    options: of the tokenizer, what it does with texts that are too long. The windows of a model that takes no mask,
    which sees its padding, are all of one length.
    """
    masked = "attention_mask" in tokenizer.model_input_names
    usual = special_tokens(tokenizer, tokenizer(*[[""] for _ in texts])["input_ids"])[0]

    def unusual(one: Sequence[Window]) -> bool:
        return bool((special_tokens(tokenizer, [window.inputs["input_ids"].tolist() for window in one]) != usual).any())

    for first in range(0, len(texts[0]), AT_ONCE):
        some = [list(column[first : first + AT_ONCE]) for column in texts]
        for place, found in enumerate(_encode(tokenizer, some, options)):
            if not unusual(found):
                yield found if masked else [_filled(tokenizer, one, options["max_length"]) for one in found], 0
                continue
            (again,) = _encode(
                tokenizer, [[column[place]] for column in some], options | {"split_special_tokens": True}
            )
            letters = 2 if unusual(again) else 1
            yield again if masked else [_filled(tokenizer, one, options["max_length"]) for one in again], letters


def _filled(tokenizer: Any, window: Window, length: int) -> Window:
    """A window with padding up to `length` tokens, on the tokenizer's side."""
    more = (0, length - len(window.parts)) if tokenizer.padding_side == "right" else (length - len(window.parts), 0)
    filling = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    inputs = {name: np.pad(row, more, constant_values=filling.get(name, 0)) for name, row in window.inputs.items()}
    return Window(inputs, np.pad(window.parts, more, constant_values=-1), np.pad(window.places, (more, (0, 0))))


def _encode(tokenizer: Any, texts: Sequence[list[str]], options: Mapping[str, Any]) -> list[list[Window]]:
    encoded = tokenizer(*texts, return_offsets_mapping=True, return_overflowing_tokens=True, **options)
    found: list[list[Window]] = [[] for _ in texts[0]]
    names = [name for name in tokenizer.model_input_names if name in encoded]
    for row, text in enumerate(encoded["overflow_to_sample_mapping"]):
        parts = np.array([-1 if part is None else part for part in encoded.sequence_ids(row)], np.int8)
        places = np.array(encoded["offset_mapping"][row], np.int32).reshape(-1, 2)
        inputs = {name: np.array(encoded[name][row], np.int32) for name in names}
        found[text].append(Window(inputs, parts, places))
    return found


def ragged(rows: Sequence[Any]) -> Ragged:
    """Rows of whole numbers, arrays or lists, behind one another."""
    numbers = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return Ragged(numbers, np.cumsum([len(row) for row in rows], dtype=np.int64))


def columns(rows: Sequence[Window]) -> dict[str, Ragged]:
    """The inputs of rows, by name."""
    return {name: ragged([row.inputs[name] for row in rows]) for name in rows[0].inputs}


def ends(logits: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Of outputs for each token (rows, length, …) those of a row's first and last one, padding apart: (rows, 2, …)."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return logits[:, [0, -1]]
    first, last = mask.argmax(1), (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
    before = logits.shape[1] - mask.shape[1]  # words that a method has put in front
    return logits[torch.arange(len(mask))[:, None], torch.stack([first, last], 1) + before]
