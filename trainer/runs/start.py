"""How a run starts from the adapter of a finished one; see `trainer.origin`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch import nn

from trainer import origin
from trainer.errors import ConfigError, message
from trainer.record import ADAPTER, Record
from variants.core import state_files, training_state

if TYPE_CHECKING:
    from trainer.runs.assemble import Parts

log = logging.getLogger(__name__)


def take_up(parts: Parts, model: nn.Module) -> None:
    """Gives `model`, to which the variant has been attached, the adapter of the run that `init_from` names.

    The head is taken up where its classes are those of the task, and stays as it was drawn elsewhere. Raises
    `ConfigError` where the method can't take up what the other run left.
    """
    found = origin.find(parts.config.init_from)
    takes_head, why = _head(found.record, parts.rows.labels) if parts.head else (False, "the task has none")
    try:
        state = state_files.load(found.folder / ADAPTER)
        training_state.start_from(model, parts.variant, state, () if takes_head else parts.head)
    except (state_files.CorruptState, ValueError, KeyError) as error:
        text = message(error)
        raise ConfigError(f"init_from: {found.folder}: {parts.variant.name} can't start from it: {text}") from None
    row = found.record
    head = "its head" if takes_head else "a new head"
    log.info("starts from %s on %s, seed %d (%s), with %s: %s", row.variant, row.task, row.seed, row.run_id, head, why)


def _head(source: Record, labels: tuple[str, ...] | None) -> tuple[bool, str]:
    """Whether the head of `source` has a meaning for these classes, and why."""
    if labels is None:
        return False, "a regression has no classes"
    if source.data.classes is None:
        return False, "the classes of that run are not known"
    if source.data.classes == list(labels):
        return True, "the classes are the same"
    return False, f"the classes were {', '.join(source.data.classes)} and are {', '.join(labels)}"
