"""What every variant promises, one check a promise; `variants.testing.check` asks for all of them.

`CHECKS` lists the promises: each is a function of a `Case`, or of a class, its settings and a kind of layer. It raises
`AssertionError` where the promise is broken, and returns in words why it does not apply, or None where it is kept.
They train on the toys of `variants.testing.toys`; what can't depend on the kind of layer is checked on Linear alone.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from variants.core import training_state
from variants.core.target_modules import inside
from variants.core.variant import AdapterVariant, Step, Variant, field_names
from variants.testing.case import Case, adapters, decay_astray, finite, loose_ends, same
from variants.testing.toys import (
    HEAD,
    KINDS,
    STEPS,
    Toy,
    Trained,
    attach,
    base_output,
    data,
    prepared,
    through_disk,
    train,
)

HOOKS = ("on_step_begin", "penalty", "on_gradients", "on_update", "on_train_end")
SKIPPED = 5  # the step that is left out in `forgets_a_step_that_is_left_out`


def promise(check: Callable[[Case], str | None]) -> Callable[..., str | None]:
    """Makes a check of a `Case` one that takes a class, its settings and a kind of layer as well."""

    @functools.wraps(check)
    def of(case: Case | type[Variant], params: Mapping[str, Any] | None = None, kind: str = "Linear") -> str | None:
        return check(case if isinstance(case, Case) else Case(case, params or {}, kind))

    return of


# -- what it is ------------------------------------------------------------------------------


@promise
def says_what_it_is(case: Case) -> None:
    """The file has a method card with cost and source, the class a docstring and test_params of its own."""
    card, cls = _card(case.cls), case.cls
    assert len(card.splitlines()) >= 4, "the module's docstring is no method card"
    assert re.search(r"^(Cost|Library)\b", card, re.MULTILINE), "the card names no cost"
    source = re.search(r"arXiv:? ?\d{4}\.\d{4,5}|\bdoi\b|^Library\b|\breference\b", card, re.MULTILINE)
    assert source, "the card names no source: an arXiv number, a doi, a Library, or that it is a reference"
    # What @dataclass writes where there is none begins like a call.
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), "the class has no docstring"
    own = sorted(set(inspect.get_annotations(cls)) & set(field_names(cls)) - {"name"})
    assert not own or "test_params" in vars(cls), f"test_params() is not its own, and says nothing of {', '.join(own)}"
    assert cls.test_params(), "test_params() is empty"


@promise
def is_set_by_its_fields(case: Case) -> None:
    """Its settings are dataclass fields that keep what they are given; a misspelt one is a TypeError."""
    cls, variant = case.cls, case.cls(**case.params)
    own = [name for name, kind in inspect.get_annotations(cls).items() if "ClassVar" not in str(kind)]
    decorated = "__dataclass_params__" in vars(cls)
    assert decorated or not own, f"{', '.join(own)}: no field, for the class lacks @dataclass(kw_only=True)"
    for name, value in case.params.items():
        assert getattr(variant, name) == value, f"{name} was set to {value!r} and is {getattr(variant, name)!r}"
    for name in field_names(cls):
        try:
            cls(**case.params, **{f"{name}_": getattr(variant, name)})
        except TypeError:
            continue
        raise AssertionError(f"{name}_, which is no field, is accepted")


@promise
def acts_in_its_hooks_alone(case: Case) -> None:
    """The card lists under Hooks what is overridden and nothing else; forward and backward passes change nothing."""
    listed = re.search(r"^Hooks\b.*(?:\n[ \t]+\S.*)*", _card(case.cls), re.MULTILINE)
    assert listed, "the card has no Hooks"
    named = {hook for hook in HOOKS if re.search(rf"\b{hook}\b", listed[0])}
    missing = _overridden(case.cls) - named
    assert not missing, f"the card's Hooks leave out {', '.join(sorted(missing))}"
    module = inspect.getmodule(case.cls)
    in_file = [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, Variant)]
    extra = named - _overridden(case.cls).union(*(_overridden(c) for c in in_file if inspect.getmodule(c) is module))
    assert not extra, f"the card's Hooks name {', '.join(sorted(extra))}, which does nothing"
    for number, moment in enumerate(case.moments, 1):
        assert moment.changed is None, f"the passes of step {number} changed {moment.changed}, outside of every hook"


# -- the model that it makes -----------------------------------------------------------------


@promise
def starts_at_the_base_model(case: Case) -> str | None:
    """Attached and not yet trained, the model computes what the base model computes."""
    if not case.cls.exact_at_start:
        return "exact_at_start is False"
    equal = torch.equal(case.attached().output(), base_output(case.kind, case.dtype))
    assert equal, "the first output differs from the base model's; set exact_at_start = False if it must"
    return None


@promise
def leaves_the_base_weights(case: Case) -> None:
    """What is not trained keeps every bit."""
    after = dict(case.straight.model.named_parameters())
    frozen = case.start.frozen
    moved = [name for name, tensor in frozen.items() if name in after and not torch.equal(tensor, after[name])]
    assert not moved, f"frozen weights moved: {moved}"


@promise
def trains_the_head(case: Case) -> None:
    """The head is trainable and moves."""
    weight = _head(case.straight)["weight"]
    assert not torch.equal(Toy(case.dtype, case.kind).head.weight, weight), "the head does not move"


@promise
def counts_by_formula(case: Case) -> None:
    """At the start and at the end the trainable parameters outside the head are as many as the formula says."""
    start = case.start
    matches = start.formula is None or start.formula == start.trainable
    assert matches, f"closed_form() says {start.formula}, trainable are {start.trainable}"
    for name, adapter in adapters(case.straight):
        count = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
        said = adapter.closed_form()
        assert said == count, f"{name}: closed_form() says {said} at the end, trainable are {count}"


@promise
def holds_its_budget(case: Case) -> None:
    """Parameters in use never exceed the trainable ones, what start and end have by formula, or a budget.

    With `budget` they come to within one rank of it, and the last step's model may be handed over.
    """
    variant, moments = case.straight.variant, case.moments
    budget = getattr(variant, "budget", None)
    formulas = [case.start.formula, variant.closed_form()]
    for number, moment in enumerate(moments, 1):
        used, after = moment.effective, f"after step {number}"
        assert 0 <= used <= moment.trainable, f"effective_parameters() says {used} of {moment.trainable} {after}"
        if None not in formulas:
            most = max(filter(None, formulas), default=0)
            assert used <= most, f"{used} parameters are in use {after}, at the start and at the end at most {most}"
        if budget is not None and moment.final:
            assert used <= budget, f"budget: {used} parameters are in use {after}, allowed: {budget}"
    assert moments[-1].final, "is_final_form() is False after the last step, so that no model may be handed over"
    if budget is not None:
        left = variant.effective_parameters()
        assert left is not None and left <= budget, f"budget: {left} parameters are in use at the end, {budget} allowed"
        rank = max(adapter.in_features + adapter.out_features + 1 for _, adapter in adapters(case.straight))
        assert left > budget - rank, f"budget: {left} parameters at the end, {budget} allowed: a rank more would fit"


@promise
def keeps_the_optimizer_in_step(case: Case) -> None:
    """After every step the optimizer has what trains, nothing that has gone, and moments of the right shapes."""
    for number, moment in enumerate(case.moments, 1):
        assert moment.loose is None, f"after step {number} {moment.loose}"
    loose = loose_ends(case.straight)
    assert loose is None, f"after on_train_end {loose}"


@promise
def says_what_decays(case: Case) -> None:
    """It says of an adapter's every parameter whether weight decay acts on it; what is resized or joins keeps to it."""
    for number, moment in enumerate(case.moments, 1):
        assert moment.decay is None, f"after step {number} {moment.decay}"
    astray = decay_astray(case.straight)
    assert astray is None, f"after on_train_end {astray}"


@promise
def reports_the_rank_of_the_update(case: Case) -> None:
    """After training the reported rank of every layer is the numerical rank of its ΔW.

    After every step `ranks()` gives each adapter's `rank`.
    """
    for number, moment in enumerate(case.moments, 1):
        for name, rank in moment.ranks_of_adapters.items():
            said = moment.ranks.get(name)
            assert said == rank, f"{name}: ranks() says {said} after step {number}, its adapter's rank is {rank}"
    for name, adapter in adapters(case.exact):
        delta = adapter.delta().detach()
        assert adapter.delta_weight().shape == adapter.weight.shape, f"{name}: delta_weight() has another shape than W"
        numerical = int(torch.linalg.matrix_rank(delta))
        assert adapter.rank == numerical, f"{name}: rank {adapter.rank} reported, ΔW has {numerical}"


@promise
def can_be_disabled(case: Case) -> str | None:
    """Within `disabled()` the backbone computes what the base model computes; after it, what it did."""
    run = case.straight
    trained = run.output()
    try:
        with run.variant.disabled():
            without = run.output()
    except ValueError:
        assert not list(adapters(run)), "a method with adapters must be able to disable them"
        return "it has no adapters"
    toy = Toy(run.dtype, case.kind)
    toy.head.load_state_dict(_head(run))
    with torch.no_grad():
        base = toy.eval()(data(run.dtype, case.kind)[0])
    assert torch.equal(without, base), "disabled() does not give the base model"
    assert torch.equal(run.output(), trained), "the output after disabled() is not what it was before"
    return None


@promise
def merges(case: Case) -> str | None:
    """Merged and unmerged models agree to rounding; unmerging gives every bit back."""
    run = case.exact
    found = [adapter for _, adapter in adapters(run)]
    if not found:
        return "it has no adapters"
    unmerged, weights = run.output(), [adapter.weight.detach().clone() for adapter in found]
    for adapter in found:
        adapter.merge()
    torch.testing.assert_close(run.output(), unmerged, rtol=1e-10, atol=1e-12, msg="merged output differs")
    for adapter in found:
        adapter.unmerge()
    back = all(torch.equal(a.weight, weight) for a, weight in zip(found, weights, strict=True))
    assert back, "unmerge() does not restore the weight"
    assert torch.equal(run.output(), unmerged), "the output after unmerge() is not what it was before"
    return None


@promise
def goes_out_as_factors(case: Case) -> str | None:
    """After training the factors that a hand-over writes are ΔW, with as many components as its rank or more."""
    run = case.exact
    run.model.eval()
    if not list(adapters(run)):
        return "it has no adapters"
    for name, adapter in adapters(run):
        delta, (a, b) = adapter.delta().detach(), adapter.as_product()
        equal = torch.allclose(b @ a, delta, rtol=0, atol=1e-12 * max(1.0, float(delta.abs().max())))
        assert equal, f"{name}: as_product() is not ΔW as delta() gives it"
        assert len(a) >= adapter.rank, f"{name}: as_product() has {len(a)} components, ΔW has rank {adapter.rank}"
    return None


# -- what it leaves behind, and takes up again -----------------------------------------------


@promise
def saves_and_loads(case: Case) -> None:
    """A fresh model that takes up the saved state gives the same output, bit for bit, and has the same state.

    The fresh one was drawn with another seed: what is drawn and not trained must be saved as well.
    """
    run, again = case.straight, case.attached(seed=1)
    saved = through_disk(training_state.weights(run.model, run.variant, run.optimizer))
    training_state.restore_weights(again.model, again.variant, saved)
    assert torch.equal(again.output(), run.output()), "the loaded model's output differs"
    assert again.variant.ranks() == run.variant.ranks(), "the loaded model's ranks differ"
    assert same(again.variant.state_dict(), saved["variant"]), "the loaded variant's state differs from the saved one"


@promise
def resumes_bit_for_bit(case: Case) -> None:
    """Stopped after any step and taken up again, training ends with the same bits."""
    run, losses = case.attached(), list[float]()
    for stop in range(1, STEPS):
        left = train(run, stop).snapshot()
        losses += run.losses
        run = case.attached().restore(through_disk(left) if stop == 7 else left)
    train(run)
    losses += run.losses
    pairs = enumerate(zip(losses, case.straight.losses, strict=True), 1)
    first = next((number for number, (resumed, straight) in pairs if resumed != straight), None)
    assert first is None, f"resumed after step after step, the loss of step {first} differs"
    assert case.ends_as(run), "resumed after step after step, it ends elsewhere"


@promise
def repeats_with_a_seed(case: Case) -> None:
    """Two runs with one seed are equal; evaluation between steps and gradient checkpointing change no bit."""

    def repeats(*, evaluated: bool, checkpointed: bool) -> bool:
        run = case.attached()
        run.toy.checkpointing = checkpointed

        def evaluate(event: str, run: Trained) -> None:
            if event == "updated":
                run.output()

        return case.ends_as(train(run, watch=evaluate if evaluated else None))

    if repeats(evaluated=True, checkpointed=True):
        return
    assert repeats(evaluated=False, checkpointed=False), "two runs with the same seed differ"
    assert repeats(evaluated=True, checkpointed=False), "evaluation between steps changes training"
    assert repeats(evaluated=False, checkpointed=True), "gradient checkpointing changes training"
    raise AssertionError("evaluation and gradient checkpointing together change training")


@promise
def accumulates(case: Case) -> str | None:
    """Two half batches make the step of the whole batch, in float64 to 1e-9, with the same ranks.

    Left out where a forward pass draws random numbers, as with dropout: halves draw others.
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
    """A step whose gradients are not finite is left out as the trainer does it, and leaves no trace."""
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


# -- what it learns --------------------------------------------------------------------------


@promise
def trains_above_bfloat16(case: Case) -> str | None:
    """Above a bfloat16 backbone every adapter's parameter is float32, and training lowers the loss."""
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
# What the layout of a weight, or how a kind applies its matrix, can break.
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


@promise
def refuses_in_one_line(case: Case) -> None:
    """A kind that a method does not take is refused before weights are there, in one line that names it.

    The card names it too, unless it is the dropout that is refused, or a library that decides.
    """
    text, card = case.refusal, _card(case.cls)
    assert text is not None, f"{case.kind} is not refused"
    assert "\n" not in text and case.kind in text, f"the refusal is not one line that names {case.kind}: {text}"
    known = text.startswith("dropout: ") or case.kind in card or re.search(r"^Library\b", card, re.MULTILINE)
    assert known, f"the card does not say that {case.kind} is refused: {text}"
    try:
        prepared(case.cls, case.params, case.kind)
    except ValueError:
        return
    assert not issubclass(case.cls, AdapterVariant), (
        "it is refused by attach() and not by check(), before weights are there"
    )


def _card(cls: type[Variant]) -> str:
    return inspect.getdoc(inspect.getmodule(cls)) or ""


def _overridden(cls: type[Variant]) -> set[str]:
    return {hook for hook in HOOKS if getattr(cls, hook) is not getattr(Variant, hook)}


def _head(run: Trained) -> dict[str, torch.Tensor]:
    """The trained head's parameters by their last names."""
    found = {name: p for name, p in run.model.named_parameters() if inside(name, HEAD) and p.requires_grad}
    return {name.rpartition(".")[2]: p.detach() for name, p in found.items()}


__all__ = [
    "CHECKS",
    "HEAD",
    "KINDS",
    "STEPS",
    "Case",
    "Step",
    "Toy",
    "Trained",
    "attach",
    "base_output",
    "data",
    "through_disk",
    "train",
]
