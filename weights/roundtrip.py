"""What was written, loaded again and compared with what was trained: nothing is handed over unseen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from trainer.runs.finished import Finished

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


def as_recorded(run: Finished, found: torch.Tensor) -> str:
    """That the model is the one that the run evaluated: a line to say so, or what can't be said.

    found: logits (rows, labels) of the first rows of the reported split. Raises `ConfigError` where the run's own
    predictions, which lie beside, are others: a check of the model against itself would see nothing.
    """
    from pyarrow import ArrowException, parquet

    from trainer.errors import ConfigError, message
    from trainer.hashing import sha256
    from trainer.runs.run import PREDICTIONS

    path, known = run.folder / PREDICTIONS, run.record.files
    unknown = "" if known.weights else "; the record has no hash of the adapter, so whether it is the run's is unknown"
    if not path.is_file():
        return f"not compared with the run's own predictions: there is no {PREDICTIONS}{unknown}"
    try:
        if known.predictions not in (None, sha256(path)):
            raise ConfigError(f"{path}: not what the run wrote: its hash is not that of the record")
        table = parquet.read_table(path, columns=["split", "outputs"]).to_pydict()
        kept = [row for split, row in zip(table["split"], table["outputs"], strict=True) if split == run.split]
        recorded = torch.tensor(kept[: len(found)], dtype=torch.float64)
    except (OSError, ArrowException, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: can't be read: {message(error)}") from None
    if recorded.shape != found.shape:
        raise ConfigError(f"{path}: outputs of shape {tuple(recorded.shape)}, the model's are {tuple(found.shape)}")
    comparison = compare(recorded, found)
    half = run.config.train.autocast or run.config.model.dtype == "bfloat16"
    if not comparison.is_close(torch.bfloat16 if half else torch.float32):
        raise ConfigError(
            f"{run.folder}: not the model that the run evaluated: on {comparison.rows} rows of {run.split} its logits "
            f"differ by up to {comparison.largest_difference:.1e} from {PREDICTIONS}, {comparison.changed} predictions"
        )
    return (
        f"as in {PREDICTIONS}: on {comparison.rows} rows of {run.split} logits differ by at most "
        f"{comparison.largest_difference:.1e}"
    )


def compare(before: torch.Tensor, after: torch.Tensor) -> Comparison:
    """before, after: logits (rows, labels)."""
    changed = 0 if before.shape[1] == 1 else int((before.argmax(1) != after.argmax(1)).sum())
    difference, largest = (float(x.abs().max()) for x in (before - after, before))
    return Comparison(len(before), difference, largest, changed)


def _batches(run: Finished) -> Iterator[dict[str, Any]]:
    from trainer.data.rows import collator

    rows, pad = run.parts.rows.report[run.split], collator(run.parts.source)
    for start in range(0, min(ROWS, len(rows)), BATCH):
        batch = dict(pad([rows[i] for i in range(start, min(start + BATCH, ROWS, len(rows)))]))
        del batch["labels"]
        yield batch
