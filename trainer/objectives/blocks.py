"""Texts as a language model learns them: one behind the other, in blocks of one length."""

from __future__ import annotations

import numpy as np

from trainer.data.ragged import Ragged
from trainer.data.rows import Rows
from trainer.objectives import placed


def packed(rows: Rows, length: int) -> Rows:
    """The tokens of all rows in blocks of `length`; the last block is shorter, and left out if it is a single token.

    A block has each token's position, counted from the start of its text or, if the text began in an earlier block, of
    the block. The example of a block is the text that it begins with.
    """
    ids = rows.columns["input_ids"]
    assert isinstance(ids, Ragged)
    tokens: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    texts: list[int] = []  # of each token
    for row in rows.indices.tolist():
        own, begun = ids[row], len(tokens)
        tokens += own
        labels += rows.all_labels[row]
        positions += [min(place, (begun + place) % length) for place in range(len(own))]
        texts += [row] * len(own)
    starts = [place for place in range(0, len(tokens), length) if len(tokens) - place > 1]

    def in_blocks(values: list[int]) -> Ragged:
        return placed.ragged([values[place : place + length] for place in starts])

    columns = {"input_ids": in_blocks(tokens), "position_ids": in_blocks(positions)}
    return Rows(columns, in_blocks(labels), np.arange(len(starts)), np.array([texts[place] for place in starts]))
