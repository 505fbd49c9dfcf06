"""A text made of another by an encoder and a decoder: translation, summaries.

Learned are the tokens of `target`, with those that the tokenizer puts around a target; each is predicted from those
before it, the first one from the decoder's start token. A source that is too long is cut at its end, a target never.
What the model writes of a source, the likeliest token each time, is scored against the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from trainer.data import tokens
from trainer.data.rows import Rows
from trainer.errors import ConfigError
from trainer.model import agreement
from trainer.model import backbone as models
from trainer.objectives import generated, language_models, likelihood, placed, prompts
from trainer.objectives.metrics import METRICS, Metric
from trainer.objectives.objective import IGNORED, Encoded, NotFinite, Objective, Predictions, Prompt
from variants.core.step import Loss

if TYPE_CHECKING:
    from trainer.data.sources import TaskData
    from trainer.loop.batches import Batch
    from trainer.loop.network import Network

ENTRIES = 2**26  # of the logits that an evaluation holds at a time
COMPARED = 4  # tokens of a row that its decoder reads where two models are compared


@dataclass(eq=False)
class Seq2Seq(Objective):
    """Rows have `source` and `target`. max_new_tokens: at most so many are written of a source."""

    max_new_tokens: int = 64

    kind: ClassVar[str] = "seq2seq"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    peft_task: ClassVar[str] = "SEQ_2_SEQ_LM"
    metrics: ClassVar[Mapping[str, Metric]] = {
        name: METRICS[name] for name in (*generated.METRICS, "loss", "perplexity")
    }
    smooth: ClassVar[tuple[str, ...]] = ("nll",)

    # -- before a run ---------------------------------------------------------------------------

    @property
    def title(self) -> str:
        return "task of sources and targets"

    @property
    def generates(self) -> bool:
        """Whether a metric is of texts that the model writes."""
        return not set(self.asked).isdisjoint(generated.METRICS)

    def check(self) -> None:
        there = self.content.column_names
        if not {"source", "target"} <= set(there):
            columns = ", ".join(name for name in there if name != "id")
            raise ConfigError(f"task: columns {columns} for a {self.title}; allowed: source, target")
        if self.max_new_tokens < 1:
            raise ConfigError(f"task.max_new_tokens: {self.max_new_tokens}, allowed: a whole number ≥ 1")
        language_models.check_rows(self.content, "target", "numeric_match" in self.asked)

    @staticmethod
    def head(model: Any) -> tuple[str, ...]:
        """None: what makes words of hidden states is the model's own, often its embeddings."""
        return ()

    def check_model(self, model: Any, tokenizer: Any) -> None:
        start = model.config.decoder_start_token_id
        shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if start is None or shift is None or shift(labels=torch.tensor([[start, start]]))[0, 0] != start:
            raise ConfigError(
                f"model: {model.config.model_type}, whose decoder begins with no token of its own "
                f"(decoder_start_token_id: {start}); allowed: a model whose decoder does"
            )
        if tokenizer.eos_token_id is None:
            raise ConfigError("model: its tokenizer has no token for the end of a text; allowed: one with an eos_token")
        positions = agreement.longest_text(model)
        if self.generates and positions is not None and self.max_new_tokens >= positions:
            raise ConfigError(f"task.max_new_tokens: {self.max_new_tokens}, allowed: below {positions}, the model's")

    def predicting(self, content: TaskData, referenced: bool) -> Seq2Seq:
        """Texts are written, whether the run's metrics are of them or not."""
        return replace(self, content=content, asked=generated.to_write(self.asked, referenced))

    # -- rows -----------------------------------------------------------------------------------

    def texts(self, split: str) -> list[Sequence[str]]:
        return [self.content.splits[split]["source"][:]]

    def encode(self, split: str, folder: Path, max_length: int) -> Encoded:
        tokenizer = models.tokenizer(folder, self.architecture)
        sources = tokens.tokens(self.texts(split), folder, self.architecture, max_length)
        targets, letters = self._targets(split, tokenizer, max_length)
        letters = np.maximum(sources.letters, letters)
        columns = dict(sources.columns)
        rows = Rows(columns, placed.ragged(targets), np.arange(len(targets)), split=split)
        return Encoded(rows, sources.cut, letters)

    def _targets(self, split: str, tokenizer: Any, max_length: int) -> tuple[list[list[int]], np.ndarray]:
        """Of each row the tokens of its target, and what `trainer.data.tokens.Tokens` calls letters."""
        texts, found = self.content.splits[split]["target"][:], []
        plain = {"truncation": False, "verbose": False}
        usual = tokens.special_tokens(tokenizer, tokenizer(text_target=[""], **plain)["input_ids"])[0]
        for first in range(0, len(texts), prompts.AT_ONCE):
            found += tokenizer(text_target=list(texts[first : first + prompts.AT_ONCE]), **plain)["input_ids"]
        letters = (tokens.special_tokens(tokenizer, found) != usual).astype(np.int8)
        for row in np.flatnonzero(letters).tolist():
            again = tokenizer(text_target=[texts[row]], split_special_tokens=True, **plain)["input_ids"]
            letters[row] += tokens.special_tokens(tokenizer, again)[0] != usual
            found[row] = again[0]
        for row, ids in enumerate(found):
            if len(ids) > max_length:
                raise ConfigError(
                    f"data.max_length: {max_length}, and the target of {agreement.row_name(self.content, split, row)} "
                    f"has {len(ids)} tokens, of which none is cut; allowed: from {len(ids)} on"
                )
        return found, letters

    def pad(self, folder: Path) -> Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]:
        """Sources on the tokenizer's side, targets on the right, and what the decoder reads: these, moved by one."""
        tokenizer = models.tokenizer(folder, self.architecture)
        model: Any = models.skeleton(folder, self.architecture)
        shifted = model.prepare_decoder_input_ids_from_labels

        def padded(rows: list[dict[str, Any]]) -> Mapping[str, torch.Tensor]:
            names = [name for name in tokenizer.model_input_names if name in rows[0]]
            found = dict(tokenizer.pad([{name: row[name] for name in names} for row in rows], return_tensors="pt"))
            labels = language_models.padded([row["labels"] for row in rows], IGNORED)["input_ids"]
            return found | {"labels": labels, "decoder_input_ids": shifted(labels=labels)}

        return padded

    def weigh(self, labels: torch.Tensor, rows: Sequence[int]) -> int:
        """Tokens of targets; those of a row of weight 0 are taken out."""
        labels[torch.tensor(rows) == 0] = IGNORED
        return int((labels != IGNORED).sum())

    # -- steps and evaluation -------------------------------------------------------------------

    def size(self, batch: Batch) -> int:
        """Tokens of sources and targets."""
        return super().size(batch) + batch.labels.numel()

    def padded_apart(self, rows: Rows) -> list[Sequence[int]]:
        """Sources and targets."""
        targets: Any = rows.all_labels
        return [rows.lengths, targets.lengths[rows.indices].tolist()]

    def units(self, batch: Batch) -> torch.Tensor:
        """Tokens of sources and targets."""
        mask = batch.inputs.get("attention_mask")
        sources = torch.tensor(batch.inputs["input_ids"].numel()) if mask is None else mask.sum()
        return (sources + (batch.labels != IGNORED).sum()) * (batch.weight > 0)

    def loss(self, model: Network, batch: Batch) -> Loss:
        """Cross-entropy, summed over the tokens of the targets."""
        return Loss(self._nll(model, batch.inputs, batch.labels, batch.weight).sum(), batch.weight)

    def predict(self, model: Network, batch: Batch) -> list[Any]:
        """Of each row the sum of its target's negative log-likelihoods, how many these are, and what is written."""
        written = self.written(model, batch.inputs) if self.generates else [""] * len(batch.labels)
        step = len(batch.labels)
        if not likelihood.in_parts(model, self.architecture):
            step = max(1, ENTRIES // (batch.labels.shape[1] * model.model.config.get_text_config().vocab_size))
        nll: list[float] = []
        for first in range(0, len(batch.labels), step):
            rows = slice(first, first + step)
            inputs = {name: tensor[rows] for name, tensor in batch.inputs.items()}
            nll += self._nll(model, inputs, batch.labels[rows]).double().sum(1).tolist()
        return list(zip(nll, (batch.labels != IGNORED).sum(1).tolist(), written, strict=True))

    def evaluated(self, rows: Rows, found: Sequence[Any]) -> tuple[Predictions, float]:
        if not np.isfinite([nll for nll, *_ in found]).all():
            raise NotFinite
        targets = self.content.splits[rows.split]["target"]
        references = [targets[row] for row in rows.indices.tolist()]
        stats = [
            {"nll": nll, "tokens": size} | generated.statistics(self.asked, right, text)
            for right, (nll, size, text) in zip(references, found, strict=True)
        ]
        columns = {name: np.array([one[name] for one in stats], np.float64) for name in stats[0]}
        loss = float(columns["nll"].sum() / columns["tokens"].sum())
        return Predictions(references, [text for *_, text in found], columns), loss

    def outputs_of(self, model: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits of a decoder that reads the first tokens of its own source, (rows, tokens, vocabulary)."""
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        places = torch.arange(COMPARED, device=ids.device).minimum(mask.sum(1, keepdim=True) - 1)
        first = ids.gather(1, mask.argmax(1, keepdim=True) + places)
        found: torch.Tensor = model(**inputs, decoder_input_ids=first, use_cache=False).logits
        return found

    def _nll(
        self, model: Network, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor, count: int | None = None
    ) -> torch.Tensor:
        """Of each token of the targets the negative log-likelihood (rows, length), 0 where it does not count.

        count: how many count, if that is known.
        """
        return likelihood.of_tokens(model, self.architecture, labels, lambda: model(**inputs, use_cache=False), count)

    # -- texts that the model writes ------------------------------------------------------------

    @property
    def most_written(self) -> int:
        return self.max_new_tokens

    def writing_at_most(self, tokens: int) -> Seq2Seq:
        return replace(self, max_new_tokens=tokens)

    def prompted(self, text: str, folder: Path, max_length: int) -> Prompt:
        """A source, cut at its end."""
        found = tokens.tokens([[text]], folder, self.architecture, max_length)
        inputs = {name: torch.tensor([column[0]]) for name, column in found.columns.items()}
        cut = f"more, of which the first {max_length:,} are read" if found.cut[0] else ""
        return Prompt(inputs, int(found.letters[0]), cut)

    def begun(self, rows: Sequence[Mapping[str, Any]], folder: Path, max_length: int) -> Mapping[str, torch.Tensor]:
        return self.pad(folder)(list(map(dict, rows)))

    def written(self, model: Network, inputs: Mapping[str, torch.Tensor]) -> list[str]:
        tokenizer = models.tokenizer(model.source, self.architecture)
        config = language_models.greedy(tokenizer, self.max_new_tokens)
        config.decoder_start_token_id = model.model.config.decoder_start_token_id
        if tokenizer.pad_token_id != tokenizer.eos_token_id:
            config.suppress_tokens = [tokenizer.pad_token_id]  # Marian's is likely, for its decoder starts with it
        sources = {name: tensor for name, tensor in inputs.items() if name in tokenizer.model_input_names}
        with language_models.without_defaults(model.model):
            found = model.generate(**sources, generation_config=config)
        texts: list[str] = tokenizer.batch_decode(found[:, 1:], skip_special_tokens=True)
        return [text.strip() for text in texts]
