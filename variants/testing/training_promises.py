"""Promises about training: saving, resuming and repeating bit for bit, and a decreasing loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from variants.core import training_state
from variants.testing.case import Case, adapters, finite, interrupted, same
from variants.testing.promise import promise
from variants.testing.toys import STEPS, data, through_disk, train

SKIPPED = 5  # the step that `forgets_a_step_that_is_left_out` skips


@promise
def saves_and_loads(case: Case) -> None:
    """A new model with the restored state gives the same output bit for bit, and has the same state.

    The new model has another seed, so random values that are not trained must be saved as well.
    """
    run, again = case.straight, case.attached(seed=1, resumed=True)
    saved = through_disk(training_state.weights(run.model, run.variant, run.optimizer))
    training_state.restore_weights(again.model, again.variant, saved)
    assert torch.equal(again.output(), run.output()), "the loaded model's output differs"
    assert again.variant.ranks() == run.variant.ranks(), "the loaded model's ranks differ"
    assert same(again.variant.state_dict(), saved["variant"]), "the loaded variant's state differs from the saved one"


@promise
def resumes_bit_for_bit(case: Case) -> None:
    """Stopped after any step and resumed, training ends with the same bits."""
    if case.withstands_interruptions:
        return
    run, losses = interrupted(case)
    pairs = enumerate(zip(losses, case.straight.losses, strict=True), 1)
    first = next((number for number, (resumed, straight) in pairs if resumed != straight), None)
    assert first is None, f"resumed after step after step, the loss of step {first} differs"
    assert case.ends_as(run), "resumed after step after step, it ends elsewhere"


@promise
def repeats_with_a_seed(case: Case) -> None:
    """Two runs with one seed are equal; evaluation between steps and gradient checkpointing change no bit."""

    def repeats(*, evaluated: bool, checkpointed: bool) -> bool:
        return case.ends_as(interrupted(case, evaluated=evaluated, checkpointed=checkpointed, resumed=False)[0])

    if case.withstands_interruptions or repeats(evaluated=True, checkpointed=True):
        return
    assert repeats(evaluated=False, checkpointed=False), "two runs with the same seed differ"
    assert repeats(evaluated=True, checkpointed=False), "evaluation between steps changes training"
    assert repeats(evaluated=False, checkpointed=True), "gradient checkpointing changes training"
    raise AssertionError("evaluation and gradient checkpointing together change training")


@promise
def accumulates(case: Case) -> str | None:
    """Two half batches make the same step as the whole batch, in float64 up to 1e-9, with the same ranks.

    Skipped if the forward pass draws random numbers, as with dropout, because half batches draw others.
    """
    if not case.cls.same_in_batches:
        return "same_in_batches is False"
    run = case.attached(torch.float64)
    before = torch.get_rng_state()
    run.model.train()(data(run.dtype, case.kind)[0])
    if not torch.equal(before, torch.get_rng_state()):
        return "its forward passes draw random numbers"
    train(run, parts=2)
    assert run.variant.ranks() == case.exact.variant.ranks(), (
        "two half batches give other ranks than the whole one; set same_in_batches = False if they must"
    )
    differ = "two half batches give another model than the whole one"
    torch.testing.assert_close(run.output(), case.exact.output(), rtol=1e-9, atol=1e-9, msg=differ)
    return None


@promise
def forgets_a_step_that_is_left_out(case: Case) -> None:
    """A skipped step, whose gradients are not finite, has no effect."""
    run = train(case.attached(), SKIPPED - 1)
    x, y = data(run.dtype, case.kind)
    run.model.train()
    run.variant.on_step_begin(run.step(SKIPPED))
    before = run.snapshot()
    loss, penalty = F.mse_loss(run.model(x), y.to(run.dtype)), run.variant.penalty()
    ((loss if penalty is None else loss + penalty) * float("nan")).backward()
    run.model.zero_grad()
    run.optimizer.step()
    now = run.snapshot()
    for part in ("weights", "optimizer"):
        assert same(before[part], now[part]), f"a step that was left out changed the {part}"
    run.scheduler.step()
    run.steps_done = SKIPPED
    left = train(run).snapshot()
    assert torch.isfinite(run.output()).all() and finite(left), "a number that is not finite stayed behind"


@promise
def trains_above_bfloat16(case: Case) -> str | None:
    """Above a bfloat16 backbone all adapter parameters are float32, and training lowers the loss."""
    run = case.attached(torch.bfloat16)
    if not list(adapters(run)):
        return "it has no adapters"
    dtypes = {name: p.dtype for name, p in run.trainable().items()}
    assert set(dtypes.values()) == {torch.float32}, f"parameters in half precision: {dtypes}"
    losses = train(run, STEPS if case.kind == "Linear" else 4).losses
    assert losses[-1] < losses[0], f"the loss does not fall in bfloat16: {losses[0]} to {losses[-1]}"
    return None


@promise
def lowers_the_loss(case: Case) -> None:
    """Training lowers the loss on a task that a small change can fit."""
    losses = case.straight.losses
    assert losses[-1] < 0.9 * losses[0], f"the loss does not fall: {losses[0]:.4f} to {losses[-1]:.4f}"
