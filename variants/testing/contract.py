"""The contract: what every variant promises, with one check per promise; `variants.testing.check` runs them.

`CHECKS` lists the promises. Each is a function of a `Case`, or of a class, its settings and a kind of layer. It raises
`AssertionError` if the promise is broken, and returns None if it is kept, or in words why it does not apply. The checks
train on the toys of `variants.testing.toys`; promises that can't depend on the kind of layer are checked on Linear.
"""

from __future__ import annotations

from collections.abc import Callable

from variants.core.variant import Step
from variants.testing.card_promises import (
    HOOKS,
    acts_in_its_hooks_alone,
    is_set_by_its_fields,
    refuses_in_one_line,
    says_what_it_is,
)
from variants.testing.case import Case
from variants.testing.model_promises import (
    can_be_disabled,
    counts_by_formula,
    goes_out_as_factors,
    holds_its_budget,
    keeps_the_optimizer_in_step,
    leaves_the_base_weights,
    merges,
    reports_the_rank_of_the_update,
    says_what_decays,
    starts_at_the_base_model,
    trains_the_head,
)
from variants.testing.toys import HEAD, KINDS, STEPS, Toy, Trained, attach, base_output, data, through_disk, train
from variants.testing.training_promises import (
    accumulates,
    forgets_a_step_that_is_left_out,
    lowers_the_loss,
    repeats_with_a_seed,
    resumes_bit_for_bit,
    saves_and_loads,
    trains_above_bfloat16,
)

CHECKS: tuple[Callable[..., str | None], ...] = (
    says_what_it_is,
    is_set_by_its_fields,
    acts_in_its_hooks_alone,
    starts_at_the_base_model,
    leaves_the_base_weights,
    trains_the_head,
    counts_by_formula,
    holds_its_budget,
    keeps_the_optimizer_in_step,
    says_what_decays,
    reports_the_rank_of_the_update,
    can_be_disabled,
    merges,
    goes_out_as_factors,
    saves_and_loads,
    resumes_bit_for_bit,
    repeats_with_a_seed,
    accumulates,
    forgets_a_step_that_is_left_out,
    trains_above_bfloat16,
    lowers_the_loss,
)
# The promises that may depend on a weight's layout, or on how a kind applies its matrix.
ON_EVERY_KIND = (
    starts_at_the_base_model,
    leaves_the_base_weights,
    trains_the_head,
    counts_by_formula,
    holds_its_budget,
    keeps_the_optimizer_in_step,
    reports_the_rank_of_the_update,
    can_be_disabled,
    merges,
    goes_out_as_factors,
    saves_and_loads,
    accumulates,
    trains_above_bfloat16,
    lowers_the_loss,
)

__all__ = [
    "CHECKS",
    "HEAD",
    "HOOKS",
    "KINDS",
    "STEPS",
    "Case",
    "Step",
    "Toy",
    "Trained",
    "attach",
    "base_output",
    "data",
    "refuses_in_one_line",
    "through_disk",
    "train",
]
