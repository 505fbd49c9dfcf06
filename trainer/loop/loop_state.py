"""What a checkpoint holds of a run: everything that a resumed run needs except the backbone.

trained parameters, the variant's state     `variants.core.training_state.weights`
optimizer, scheduler, ranks                 the same in all processes
random, counters                            of each process
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.loop import checkpoints
from trainer.machine import processes
from variants.core import training_state

if TYPE_CHECKING:
    from trainer.loop.loop import Loop


def gathered(loop: Loop) -> dict[str, Any] | None:
    """Returns the state after the last step, with that of all processes; None in all but the first process.

    Raises `RunFailed` if the processes differ in what they share.
    """
    weights = loop.weights()
    processes.compare(weights, loop.model, loop.done)
    own = {"random": checkpoints.random_state(), "counters": loop.counters.saved()}
    first, *others = processes.gathered(own)
    if not processes.is_first():
        return None
    return weights | {
        "optimizer": training_state.optimizer_state(loop.model, loop.optimizer),
        "scheduler": training_state.schedule_state(loop.scheduler),
        "ranks": loop.rank_log.ranks,
        **first,
        **{f"process {number}": other for number, other in enumerate(others, 1)},
    }


def restore(loop: Loop, state: dict[str, Any]) -> None:
    """Restores the state that `gathered` returned."""
    training_state.restore_weights(loop.model, loop.variant, state)
    # Both are built for the restored parameters, and before either is restored: a new schedule sets the rates.
    optimizer, scheduler = loop.optimizer, loop.scheduler
    training_state.restore_optimizer(loop.model, optimizer, state["optimizer"])
    training_state.restore_schedule(scheduler, state["scheduler"])
    loop.rank_log.ranks = state["ranks"]
    own = state if processes.is_first() else state[f"process {processes.rank()}"]
    loop.counters.restore(own["counters"])
    checkpoints.restore_random(own["random"])
