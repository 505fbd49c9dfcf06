"""What is said in a sound, letter by letter (connectionist temporal classification): Wav2Vec2, HuBERT, WavLM.

A model gives each frame of a sound a letter or a blank. What it writes is the likeliest of each frame, repetitions
joined and blanks left out. Learned is the likelihood of all ways to write the transcript. Graves et al., "Connectionist
Temporal Classification", ICML 2006.

Letters are those of the checkpoint's tokenizer, and its blank is the padding token. A transcript is refused if the
tokenizer can't write it, or if its sound has too few frames for it: no way of writing would be left, and the loss would
be infinite. The outputs of a row don't depend on its batch, see `sound_inputs`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from trainer.data.rows import Rows
from trainer.errors import ConfigError
from trainer.model import agreement
from trainer.model import backbone as models
from trainer.objectives import language_models, metrics, placed, sound_inputs
from trainer.objectives.metrics import METRICS, Metric
from trainer.objectives.objective import IGNORED, Encoded, NotFinite, Predictions, refuse_headless
from variants.core.step import Loss

if TYPE_CHECKING:
    from trainer.loop.batches import Batch
    from trainer.loop.network import Network


@dataclass(frozen=True)
class Processor:
    """What makes a model's inputs of sounds, and letters of its outputs."""

    feature_extractor: Any
    tokenizer: Any

    @property
    def model_input_names(self) -> list[str]:
        names: list[str] = self.feature_extractor.model_input_names
        return names

    def save_pretrained(self, folder: Path) -> None:
        """Writes the files from which transformers' `AutoProcessor` makes one of both."""
        self.feature_extractor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@functools.cache
def _processor(folder: Path) -> Processor:
    from transformers import AutoTokenizer

    with models.reading("its tokenizer"):
        return Processor(models.feature_extractor(folder), AutoTokenizer.from_pretrained(folder, **models.NO_CODE))


@dataclass(eq=False)
class CTC(sound_inputs.OfSounds):
    """Rows have `audio`, a WAV file, and `text`, what is said in it."""

    kind: ClassVar[str] = "ctc"
    auto_class: ClassVar[str] = "AutoModelForCTC"
    peft_task: ClassVar[str | None] = None
    metrics: ClassVar[Mapping[str, Metric]] = {name: METRICS[name] for name in ("wer", "cer", "loss")}
    smooth: ClassVar[tuple[str, ...]] = ("nll",)

    # -- before a run ---------------------------------------------------------------------------

    @property
    def title(self) -> str:
        return "transcription of sounds"

    def check(self) -> None:
        there = self.content.column_names
        if not {"audio", "text"} <= set(there):
            columns = ", ".join(name for name in there if name != "id")
            raise ConfigError(f"task: columns {columns} for a {self.title}; allowed: audio, text")
        metrics.check(self.asked, self.metrics, self.title)
        for split, table in self.content.splits.items():
            for row, text in enumerate(table["text"][:]):
                if not isinstance(text, str) or not text.strip():
                    name = agreement.row_name(self.content, split, row)
                    raise ConfigError(f"task: {name} has the transcript {text!r}; allowed: a text")

    def processor(self, folder: Path) -> Any:
        return _processor(folder)

    @staticmethod
    def head(model: Any) -> tuple[str, ...]:
        """What makes letters of hidden states. One that the checkpoint has stays: its letters are the tokenizer's."""
        return refuse_headless(model, models.head_modules(model))

    def check_model(self, model: Any, processor: Any) -> None:
        sound_inputs.check_extractor(model, processor.feature_extractor, windows=False)
        blank, padding = model.config.pad_token_id, processor.tokenizer.pad_token_id
        if blank is None or blank != padding:
            raise ConfigError(
                f"model: its blank is {blank} (pad_token_id of its config.json), and its tokenizer's padding, which is "
                f"left out of what is written, is {padding}; allowed: the same number"
            )

    def check_loaded(self, model: Any, processor: Any, rows: Rows) -> None:
        """Whether it takes inputs as its feature extractor makes them, and whether it reads padding."""
        sound_inputs.settle(model, processor.feature_extractor, self.outputs_of)

    def refuse_sharding(self, model: Any, processor: Any) -> None:
        sound_inputs.refuse_sharding(model, processor.feature_extractor)

    # -- rows -----------------------------------------------------------------------------------

    def encode(self, split: str, folder: Path, max_length: int) -> Encoded:
        columns, _ = self.sounds(split, folder)
        model: Any = models.skeleton(folder, self.architecture)
        lengths = np.asarray(columns["units"])
        made, targets = sound_inputs.frames(model, torch.from_numpy(lengths)).tolist(), []
        for row, text in enumerate(self.content.splits[split]["text"][:]):
            name = agreement.row_name(self.content, split, row)
            targets.append(_letters(self.processor(folder).tokenizer, model.config.vocab_size, text, name))
            # Between two equal letters stands a blank, without which they would be joined.
            needed = len(targets[-1]) + sum(a == b for a, b in zip(targets[-1], targets[-1][1:], strict=False))
            if made[row] < needed:
                raise ConfigError(
                    f"task: {name}: the model makes {made[row]} frames of it, and its transcript needs {needed}; "
                    "allowed: as many frames or more"
                )
        rows = Rows(columns, placed.ragged(targets), np.arange(len(targets)), split=split)
        return Encoded(rows, np.zeros(len(targets), dtype=bool), np.zeros(len(targets), dtype=np.int8))

    def pad(self, folder: Path) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        extractor = models.feature_extractor(folder)

        def padded(rows: list[dict[str, Any]]) -> Mapping[str, torch.Tensor]:
            found = sound_inputs.padded(extractor, [row["audio"] for row in rows])
            return found | {"labels": language_models.padded([row["labels"] for row in rows], IGNORED)["input_ids"]}

        return padded

    def weigh(self, labels: torch.Tensor, rows: Sequence[int]) -> int:
        """Letters of transcripts; those of a row of weight 0 are taken out."""
        labels[torch.tensor(rows) == 0] = IGNORED
        return int((labels != IGNORED).sum())

    # -- steps and evaluation -------------------------------------------------------------------

    def loss(self, model: Network, batch: Batch) -> Loss:
        """Negative log-likelihood of the transcripts, summed over the rows; its divisor is the number of letters."""
        return Loss(self._nll(model, batch)[0].sum(), batch.weight)

    def predict(self, model: Network, batch: Batch) -> list[Any]:
        """Returns for each row its negative log-likelihood, its number of letters, its transcript, and what is heard.

        The transcript is as the tokenizer writes it.
        """
        tokenizer = self.processor(model.source).tokenizer
        nll, likeliest, frames = self._nll(model, batch)
        found = []
        rows = zip(nll.double().tolist(), likeliest.cpu(), frames.tolist(), batch.labels.cpu(), strict=True)
        for loss, letters, count, labels in rows:
            target = labels[labels != IGNORED].tolist()
            heard = tokenizer.decode(letters[:count].tolist(), clean_up_tokenization_spaces=False)
            found.append((loss, len(target), _written(tokenizer, target), " ".join(heard.split())))
        return found

    def evaluated(self, rows: Rows, found: Sequence[Any]) -> tuple[Predictions, float]:
        if not np.isfinite([nll for nll, *_ in found]).all():
            raise NotFinite
        stats = [{"nll": nll, "tokens": size} | _errors(right, heard) for nll, size, right, heard in found]
        columns = {name: np.array([one[name] for one in stats], np.float64) for name in stats[0]}
        loss = float(columns["nll"].sum() / columns["tokens"].sum())
        return Predictions([right for _, _, right, _ in found], [heard for *_, heard in found], columns), loss

    def outputs_of(self, model: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits of the first and the last frame of each row, (rows, 2, letters)."""
        logits = sound_inputs.logits(model, inputs)
        last = sound_inputs.frames(model, sound_inputs.samples(inputs)) - 1
        return torch.stack([logits[:, 0], logits[torch.arange(len(logits)), last]], dim=1)

    def _nll(self, model: Network, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the negative log-likelihood of each row (rows,), the letter of each frame, and the number of frames.

        A row that does not count has the likelihood 1.
        """
        logits = sound_inputs.logits(model, batch.inputs)
        logits = logits if logits.dtype.itemsize >= 4 else logits.float()
        frames = sound_inputs.frames(model.model, sound_inputs.samples(batch.inputs))
        sizes = (batch.labels != IGNORED).sum(1)
        with torch.backends.cudnn.flags(enabled=False):  # which can't be repeated to the bit
            nll = F.ctc_loss(
                logits.log_softmax(-1).transpose(0, 1),
                batch.labels.clamp_min(0),
                frames,
                sizes,
                blank=model.model.config.pad_token_id,
                reduction="none",
            )
        return torch.where(sizes > 0, nll, torch.zeros_like(nll)), logits.argmax(-1), frames


def _letters(tokenizer: Any, outputs: int, text: str, name: str) -> list[int]:
    """Returns the tokenizer's numbers for a transcript. Raises `ConfigError` for one that it can't write."""
    text = " ".join(text.split())

    def numbers(part: str) -> list[int]:
        found: list[int] = tokenizer(part, add_special_tokens=False)["input_ids"]
        return found

    found = numbers(text)
    if set(found) & {None, tokenizer.unk_token_id}:
        outside = [letter for letter in dict.fromkeys(text) if set(numbers(letter)) & {None, tokenizer.unk_token_id}]
        listing = ", ".join(map(repr, outside[:10]))
        raise ConfigError(
            f"task: {name}: its transcript has {listing}, which the model's tokenizer has no letters for; allowed: "
            "letters of its vocabulary, in its case"
        )
    written = _written(tokenizer, found)
    if written.casefold() != text.casefold():
        raise ConfigError(
            f"task: {name}: its transcript {text[:40]!r} is {written[:40]!r} with the model's tokenizer; allowed: a "
            "text without special tokens and without the letter between its words"
        )
    if max(found) >= outputs:
        raise ConfigError(
            f"task: {name}: its transcript has the letter {tokenizer.convert_ids_to_tokens(max(found))!r}, number "
            f"{max(found)}, and the model has {outputs} outputs (vocab_size of its config.json); allowed: more outputs"
        )
    return found


def _written(tokenizer: Any, numbers: Sequence[int]) -> str:
    """Returns the text of these letters, of which none is joined."""
    text = tokenizer.decode(list(numbers), group_tokens=False, clean_up_tokenization_spaces=False)
    return " ".join(text.split())


def _errors(right: str, heard: str) -> dict[str, float]:
    """Counts words and letters of a transcript, and how many are put in, left out or replaced in what was heard."""
    import jiwer

    found: dict[str, float] = {}
    for what, compared in (
        ("word", jiwer.process_words(right, heard)),
        ("character", jiwer.process_characters(right, heard)),
    ):
        found[f"{what}_errors"] = compared.substitutions + compared.deletions + compared.insertions
        found[f"{what}s"] = compared.hits + compared.substitutions + compared.deletions
    return found
