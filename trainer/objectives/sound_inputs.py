"""How sounds become a model's inputs, such that a row's outputs don't depend on the other rows of its batch.

A model takes one of two forms of a sound. A window of fixed length (Whisper's and AST's spectrograms) has nothing of
other rows.
Samples (Wav2Vec2, HuBERT, WavLM) are padded to the longest row, with a mask. Some models read the padding despite the
mask: a group norm of the first convolution is over all places of a row. Whether a model does is found by computing, see
`settle`. Rows of such a model are read by length: those of equal length together, without padding. Their padding in a
batch is nan, so that outputs would be nan if anything else read it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from trainer.data import sounds
from trainer.errors import ConfigError, one_line
from trainer.model import agreement
from trainer.model import backbone as models
from trainer.model.padding import TOLERANCE
from trainer.objectives.objective import Objective
from variants.core.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.data.rows import Column
    from trainer.data.sources import TaskData
    from trainer.loop.batches import Batch

log = logging.getLogger(__name__)

SAMPLES, COUNTS = "input_values", "samples"
FRAME, SHIFT, FRAME_RATE = 400, 160, 16000  # samples of a frame of AST's spectrogram, and from one to the next


def check_extractor(model: Any, extractor: Any, windows: bool = True) -> None:
    """Raises `ConfigError` for a feature extractor whose inputs have neither of the two forms.

    windows: whether a kind of task takes windows, which don't say where a sound ends.
    """
    name, rate = extractor.model_input_names[0], getattr(extractor, "sampling_rate", None)
    if not isinstance(rate, int) or rate < 1:
        raise ConfigError(
            f"model: its preprocessor_config.json has the sampling_rate {rate}; allowed: a whole number ≥ 1"
        )
    of_samples = name == SAMPLES and hasattr(model, "_get_feat_extract_output_lengths")
    of_window = windows and window(extractor) is not None
    if of_window and _frames(extractor) and rate != FRAME_RATE:
        kind = type(extractor).__name__
        raise ConfigError(f"model: sampling_rate {rate} of its {kind}, allowed: {FRAME_RATE}, of which its frames are")
    if not (of_samples or of_window):
        forms = "neither samples nor a window of fixed length" if windows else "no samples"
        allowed = (
            "that takes either, as Wav2Vec2, HuBERT, Whisper and AST"
            if windows
            else "of samples, as Wav2Vec2 and HuBERT"
        )
        raise ConfigError(
            f"model: {model.config.model_type}, whose {type(extractor).__name__} makes {forms}; "
            f"allowed: a model {allowed}"
        )


def refuse_sharding(model: Any, extractor: Any) -> None:
    """Raises `ConfigError` for a model whose rows are read by length, and for one that leaves out layers at random."""
    if window(extractor) is None and not extractor.return_attention_mask:
        raise ConfigError(
            "machine.fsdp: true with a model that reads padding, allowed: false; processes read a batch in as many "
            "passes as there are lengths in it"
        )
    for name in ("layerdrop", "encoder_layerdrop"):
        if share := getattr(model.config, name, 0.0):
            raise ConfigError(
                f"machine.fsdp: true with {name} {share} in the model's config.json, allowed: 0; each process leaves "
                "out other layers"
            )


def window(extractor: Any) -> int | None:
    """Returns the samples of a window, after which a sound is cut; None for a model of samples."""
    if (made := _frames(extractor)) is not None:
        return FRAME + SHIFT * (made - 1)
    found: int | None = getattr(extractor, "n_samples", None)
    return found


def _frames(extractor: Any) -> int | None:
    """Returns the frames of a spectrogram of fixed length that is made of whole frames of a sound, as AST's is."""
    made = getattr(extractor, "max_length", None)
    whole = extractor.model_input_names[0] == SAMPLES and hasattr(extractor, "num_mel_bins")
    return made if whole and isinstance(made, int) else None


def frames(model: Any, samples: torch.Tensor) -> torch.Tensor:
    """Returns the number of a model's outputs for so many samples, not below 0. model: with or without weights."""
    found: torch.Tensor = model._get_feat_extract_output_lengths(samples)
    return found.to(torch.long).clamp_min(0)


def lengths(task: TaskData, split: str, extractor: Any) -> np.ndarray:
    """Returns the samples of each row at the model's rate. Raises `ConfigError`, which names the row."""
    found = []
    for row, content in enumerate(task.splits[split]["audio"][:]):
        try:
            rate, samples = sounds.decoded(content)
        except ValueError as error:
            raise ConfigError(f"task: {agreement.row_name(task, split, row)} {error}") from None
        found.append(sounds.length(len(samples), rate, extractor.sampling_rate))
    return np.array(found, np.int64)


def refuse_short(task: TaskData, split: str, lengths: np.ndarray, model: Any, extractor: Any) -> None:
    """Raises `ConfigError` for a sound of which the model makes no frame, or that is shorter than a span it masks."""
    config, least, why = model.config, 1, ""
    if split == "train" and getattr(config, "apply_spec_augment", False) and config.mask_time_prob > 0:
        least, why = (
            max(1, config.mask_time_length),
            ", a span that it masks in training (mask_time_length of its config)",
        )
    for row, made in enumerate(frames(model, torch.from_numpy(lengths)).tolist()):
        if made < least:
            raise ConfigError(
                f"task: {agreement.row_name(task, split, row)} has {lengths[row]} samples at {extractor.sampling_rate} "
                f"Hz, of which the model makes {made} frames; allowed: {least} or more{why}"
            )


def padded(extractor: Any, contents: Sequence[bytes]) -> dict[str, torch.Tensor]:
    """Returns `inputs` for WAV files, and beside them the samples that the model reads of each (rows,), `COUNTS`."""
    samples = [sounds.resampled(content, extractor.sampling_rate) for content in contents]
    counts = torch.tensor([window(extractor) or len(row) for row in samples])
    return inputs(extractor, samples) | {COUNTS: counts}


def inputs(extractor: Any, samples: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """Returns a model's inputs for sounds at its rate: samples (rows, longest) with a mask or nan, or windows."""
    options: dict[str, Any] = {"sampling_rate": extractor.sampling_rate, "return_tensors": "pt"}
    if window(extractor) is not None:
        name = extractor.model_input_names[0]
        return {name: extractor(list(samples), **options)[name]}
    found = extractor(list(samples), padding=True, return_attention_mask=True, **options)
    values, mask = found[SAMPLES], found["attention_mask"]
    if extractor.return_attention_mask:
        return {SAMPLES: values, "attention_mask": mask}
    return {SAMPLES: values.masked_fill(mask == 0, torch.nan)}


def size(batch: Mapping[str, torch.Tensor]) -> int:
    """Returns the samples of a batch from `padded`, padding included where the model reads it behind a mask."""
    return batch[SAMPLES].numel() if "attention_mask" in batch else int(batch[COUNTS].sum())


def size_of(lengths: Sequence[int], extractor: Any) -> int:
    """Returns `size` for rows of these lengths."""
    behind_mask = window(extractor) is None and extractor.return_attention_mask
    return len(lengths) * max(lengths) if behind_mask else sum(lengths)


def logits(model: Callable[..., Any], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Computes a model's logits (rows, …) for `inputs`; of rows that are read by length, frames after the end are 0."""
    batch = {name: tensor for name, tensor in batch.items() if name != COUNTS}
    values = batch.get(SAMPLES)
    if values is None or not bool((padding := values.isnan()).any()):
        found: torch.Tensor = model(**batch).logits
        return found
    parts, order, sizes = [], [], (~padding).sum(1)
    for size in sizes.unique().tolist():
        rows = (sizes == size).nonzero()[:, 0]
        parts.append(model(**{SAMPLES: values[rows, :size]}).logits)
        order.append(rows)
    if parts[0].ndim == 3:  # frames
        longest = max(part.shape[1] for part in parts)
        parts = [F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts]
    return torch.cat(parts)[torch.cat(order).argsort()]


def samples(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the samples of each row (rows,) of `inputs`, without padding."""
    mask = batch.get("attention_mask")
    return (~batch[SAMPLES].isnan() if mask is None else mask).sum(1)


def places(batch: Mapping[str, torch.Tensor], model: Any) -> torch.Tensor | None:
    """Returns which frames (rows, frames) of a padded batch are of a row's sound; None for all."""
    mask = batch.get("attention_mask")
    if mask is None:
        return None
    made = frames(model, mask.sum(1))
    return torch.arange(int(frames(model, torch.tensor(mask.shape[1]))), device=mask.device) < made[:, None]


@torch.no_grad()
def settle(model: Any, extractor: Any, outputs: Callable[..., torch.Tensor]) -> None:
    """Finds whether a model reads padding despite its mask, and sets `return_attention_mask` of its extractor so.

    The outputs of a noise are computed alone and beside a longer one. model: with weights in float32. outputs: see
    `Objective.outputs_of`. Raises `ConfigError` for a model that can't take sounds as its extractor makes them.
    """
    rate, draw = extractor.sampling_rate, np.random.default_rng(0)
    short, long = (draw.standard_normal(size).astype(np.float32) / 10 for size in (rate, rate * 3 // 2))
    extractor.return_attention_mask = True
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            alone, beside = (outputs(model, inputs(extractor, rows))[0] for rows in ([short], [short, long]))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"model: it can't take sounds as its preprocessor_config.json makes them: {one_line(error)}"
        ) from error
    change = float((alone - beside).abs().max() / alone.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
    if not change <= TOLERANCE:
        extractor.return_attention_mask = False
        log.info(
            "the model reads padding despite its mask (outputs change by %.2g of the largest), so the rows of a batch "
            "are read by length, without padding",
            change,
        )


class OfSounds(Objective):
    """What kinds of task on sounds share. Rows have `audio`, a WAV file."""

    unit: ClassVar[str] = "sample"
    example: ClassVar[str] = "sound"
    tokens: ClassVar[bool] = False

    def texts(self, split: str) -> list[Sequence[str]]:
        return [[hashlib.sha256(file).hexdigest() for file in self.content.splits[split]["audio"][:]]]

    def sounds(self, split: str, folder: Path) -> tuple[dict[str, Column], np.ndarray]:
        """Returns the columns of a split's rows, and whether each is cut by a window. Raises as `refuse_short` does."""
        extractor = models.feature_extractor(folder)
        most, counts = window(extractor), lengths(self.content, split, extractor)
        contents = np.empty(len(counts), dtype=object)
        contents[:] = self.content.splits[split]["audio"][:]
        if most is not None:
            if _frames(extractor) is not None and len(short := np.flatnonzero(counts < FRAME)):
                name, size = agreement.row_name(self.content, split, int(short[0])), counts[short[0]]
                raise ConfigError(
                    f"task: {name} has {size} samples at {FRAME_RATE} Hz, allowed: {FRAME} or more, a frame"
                )
            return {"audio": contents, "units": np.full_like(counts, most)}, counts > most
        refuse_short(self.content, split, counts, models.skeleton(folder, self.architecture), extractor)
        return {"audio": contents, "units": counts}, np.zeros(len(counts), dtype=bool)

    def size(self, batch: Batch) -> int:
        return size(batch.inputs)

    def size_of(self, lengths: Sequence[int], folder: Path) -> int:
        return size_of(lengths, models.feature_extractor(folder))

    def units(self, batch: Batch) -> torch.Tensor:
        """Samples at the model's rate, without padding."""
        return batch.inputs[COUNTS].sum() * (batch.weight > 0)

    def places(self, batch: Batch, folder: Path) -> torch.Tensor | None:
        """Frames, which are what the model makes of samples."""
        if not batch.weight:
            return super().places(batch, folder)
        return places(batch.inputs, models.skeleton(folder, self.architecture))
