"""What was written, loaded again and compared with what was trained: nothing is handed over unseen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from trainer.runs.finished import Finished

ROWS, BATCH = 64, 16
WRITTEN, TOKENS = 4, 16  # texts that a language model writes, and their tokens


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows. largest_difference: between logits. changed: predictions that are not the same.

    largest_logit: what the difference is to be seen against. written, other_texts: of a kind that writes, how many
    texts both wrote, and how many of these are not the same: where two tokens are as likely, rounding chooses.
    """

    rows: int
    largest_difference: float
    largest_logit: float
    changed: int
    written: int = 0
    other_texts: int = 0

    def is_close(self, dtype: torch.dtype) -> bool:
        """Whether half the digits of `dtype` agree: what is left of them after a model's depth."""
        return self.largest_difference <= torch.finfo(dtype).eps ** 0.5 * max(1.0, self.largest_logit)


@torch.no_grad()
def outputs(run: Finished, model: nn.Module) -> torch.Tensor:
    """Logits (rows, labels) in float64 of the first rows of the reported split, the longest ones."""
    found = [run.objective.outputs_of(model, batch).double() for batch in _batches(run)]
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
        smooth = [f"stats.{name}" for name in run.objective.smooth]
        columns = smooth or ["outputs"]
        table = parquet.read_table(path, columns=["split", *columns]).to_pydict()
        here = [place for place, split in enumerate(table["split"]) if split == run.split]
        kept = [[table[name][place] for name in smooth] if smooth else table["outputs"][place] for place in here]
        found = _numbers(run) if smooth else found
        recorded = torch.tensor(kept[: len(found)], dtype=torch.float64)
    except (OSError, ArrowException, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: can't be read: {message(error)}") from None
    what = "likelihoods" if smooth else "logits"
    if recorded.shape != found.shape:
        raise ConfigError(f"{path}: outputs of shape {tuple(recorded.shape)}, the model's are {tuple(found.shape)}")
    comparison = compare(recorded, found)
    half = run.config.train.autocast or run.config.model.dtype == "bfloat16"
    if not comparison.is_close(torch.bfloat16 if half else torch.float32):
        raise ConfigError(
            f"{run.folder}: not the model that the run evaluated: on {comparison.rows} rows of {run.split} its {what} "
            f"differ by up to {comparison.largest_difference:.1e} from {PREDICTIONS}, {comparison.changed} predictions"
        )
    return (
        f"as in {PREDICTIONS}: on {comparison.rows} rows of {run.split} {what} differ by at most "
        f"{comparison.largest_difference:.1e}"
    )


def _numbers(run: Finished) -> torch.Tensor:
    """What the model as it is gives for the first examples, in place of outputs that no file keeps: (examples, …)."""
    rows = run.context.rows.report[run.split]
    first = set(rows.examples[:ROWS])
    found = run.predictions(rows.view(np.flatnonzero([source in first for source in rows.sources.tolist()])))
    return torch.tensor(np.stack([found.stats[name] for name in run.objective.smooth], axis=1), dtype=torch.float64)


def compare(before: torch.Tensor, after: torch.Tensor) -> Comparison:
    """before, after: logits (rows, …, labels)."""
    other = (before.argmax(-1) != after.argmax(-1)).reshape(len(before), -1).any(1)
    changed = 0 if before.shape[-1] == 1 else int(other.sum())
    difference, largest = (float(x.abs().max()) for x in (before - after, before))
    return Comparison(len(before), difference, largest, changed)


def texts(run: Finished, model: nn.Module) -> list[str]:
    """What `model`, on the CPU, writes of the first rows of the reported split; none in a kind that writes nothing."""
    from trainer.loop.network import Network

    kind, rows, source = run.objective, run.context.rows.report[run.split], run.context.source
    if kind.most_written is None:
        return []
    kind = kind.writing_at_most(min(TOKENS, kind.most_written))
    first = [rows[place] for place in range(min(WRITTEN, len(rows)))]
    inputs = kind.begun(first, source, run.context.max_length)
    return kind.written(Network(model, source, torch.device("cpu"), run.config.train.autocast), inputs)


def _batches(run: Finished) -> Iterator[dict[str, Any]]:
    from trainer.loop.network import cast

    dtype = getattr(torch, run.config.model.dtype)
    rows, pad = run.context.rows.report[run.split], run.objective.pad(run.context.source)
    names = run.context.tokenizer.model_input_names
    for start in range(0, min(ROWS, len(rows)), BATCH):
        batch = pad([rows[i] for i in range(start, min(start + BATCH, ROWS, len(rows)))])
        yield {name: cast(tensor, dtype) for name, tensor in batch.items() if name in names}
