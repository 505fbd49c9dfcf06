"""What a language model forgets: its perplexity on general texts before and after training (`task.retention`)."""

from __future__ import annotations

import time

import torch

from trainer.data import rows as data
from trainer.loop.batches import Batches, Collator
from trainer.loop.evaluation import Evaluator
from trainer.loop.network import Network
from trainer.model import padding
from trainer.record import Retention
from trainer.runs.assemble import RunContext


class Retained:
    """Measures a run's model twice. record: what was found, for the run's record; seconds: that it took."""

    def __init__(self, context: RunContext, device: torch.device) -> None:
        self.record, self.seconds = Retention(), 0.0
        self._context, self._device = context, device

    def before(self) -> None:
        """Measures the model without the method, if the task asks for it; nothing of it stays in memory."""
        if self._context.objective.general is not None:
            model, context = self._context.base(), self._context
            padding.settle(model, context.tokenizer, context.rows, context.objective.outputs_of, "model")
            model = model.to(self._device)
            network = Network(model, self._context.source, self._device, self._context.config.train.autocast)
            self.record.before = self._perplexity(network)

    def after(self, network: Network) -> None:
        """Measures the reported model, if the task asks for it."""
        if self._context.objective.general is not None:
            self.record.after = self._perplexity(network)

    def _perplexity(self, network: Network) -> float:
        context, general = self._context, self._context.objective.general
        assert general is not None
        config, begun = context.config, time.perf_counter()
        rows = data.general(general, config.data.eval_limit, context.source, context.max_length)
        collate = Collator(general.pad(context.source), general.weigh)
        batches = Batches(rows, config.train, config.seed, collate, config.machine.workers, self._device)
        network.model.eval()
        found = Evaluator(network, general, batches, config.train.eval_batch_size)(rows, 0)
        self.record.texts = len(found.predictions)
        self.seconds += time.perf_counter() - begun
        return found.metrics[general.asked[0]]
