"""What was written, loaded again and compared with what was trained: nothing is handed over unseen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from trainer.finished import Finished

ROWS, BATCH = 64, 16


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows. largest_difference: between logits. changed: predictions that are not the same.

    largest_logit: what the difference is to be seen against.
    """

    rows: int
    largest_difference: float
    largest_logit: float
    changed: int

    def is_close(self, dtype: torch.dtype) -> bool:
        """Whether half the digits of `dtype` agree: what is left of them after a model's depth."""
        return self.largest_difference <= torch.finfo(dtype).eps ** 0.5 * max(1.0, self.largest_logit)


@torch.no_grad()
def outputs(run: Finished, model: nn.Module) -> torch.Tensor:
    """Logits (rows, labels) in float64 of the first rows of the reported split, the longest ones."""
    found = [model(**batch).logits.double() for batch in _batches(run)]
    return torch.cat(found)


def compare(before: torch.Tensor, after: torch.Tensor) -> Comparison:
    """before, after: logits (rows, labels)."""
    changed = 0 if before.shape[1] == 1 else int((before.argmax(1) != after.argmax(1)).sum())
    difference, largest = (float(x.abs().max()) for x in (before - after, before))
    return Comparison(len(before), difference, largest, changed)


def _batches(run: Finished) -> Iterator[dict[str, Any]]:
    from trainer.data import collator

    rows, pad = run.parts.rows.report[run.split], collator(run.parts.source)
    for start in range(0, min(ROWS, len(rows)), BATCH):
        batch = dict(pad([rows[i] for i in range(start, min(start + BATCH, ROWS, len(rows)))]))
        del batch["labels"]
        yield batch
