"""Starts a run from the adapter of a finished run; see `trainer.origin`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch import nn

from trainer import origin
from trainer.errors import ConfigError, message
from trainer.record import ADAPTER, Record
from variants.core import state_files, training_state

if TYPE_CHECKING:
    from trainer.runs.assemble import RunContext

log = logging.getLogger(__name__)


def take_up(context: RunContext, model: nn.Module) -> None:
    """Loads the adapter of the run `init_from` into `model`, to which the variant is already attached.

    The head is loaded only if its classes are those of the task. Raises `ConfigError` if the method can't start from
    the other run's adapter.
    """
    source = origin.find(context.config.init_from)
    takes_head, why = _head(source.record, context.rows.labels) if context.head else (False, "the task has none")
    try:
        state = state_files.load(source.folder / ADAPTER)
        training_state.start_from(model, context.variant, state, () if takes_head else context.head)
    except (state_files.CorruptState, ValueError, KeyError) as error:
        text = message(error)
        raise ConfigError(f"init_from: {source.folder}: {context.variant.name} can't start from it: {text}") from None
    row = source.record
    head = "its head" if takes_head else "a new head"
    log.info("starts from %s on %s, seed %d (%s), with %s: %s", row.variant, row.task, row.seed, row.run_id, head, why)


def _head(source: Record, labels: tuple[str, ...] | None) -> tuple[bool, str]:
    """Whether the head of `source` fits these classes, and why."""
    if labels is None:
        return False, "a regression has no classes"
    if source.data.classes is None:
        return False, "the classes of that run are not known"
    if source.data.classes == list(labels):
        return True, "the classes are the same"
    return False, f"the classes were {', '.join(source.data.classes)} and are {', '.join(labels)}"
