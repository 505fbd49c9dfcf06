"""Promises about the adapted model: its start, its counts, merging and export."""

from __future__ import annotations

import torch

from variants.core.target_modules import inside
from variants.testing.case import Case, adapters, decay_astray, loose_ends
from variants.testing.promise import promise
from variants.testing.toys import HEAD, Toy, Trained, base_output, data


@promise
def starts_at_the_base_model(case: Case) -> str | None:
    """After `attach` and before training, the model computes what the base model computes."""
    if not case.cls.exact_at_start:
        return "exact_at_start is False"
    equal = torch.equal(case.attached().output(), base_output(case.kind, case.dtype))
    assert equal, "the first output differs from the base model's; set exact_at_start = False if it must"
    return None


@promise
def leaves_the_base_weights(case: Case) -> None:
    """Frozen parameters keep every bit."""
    after = dict(case.straight.model.named_parameters())
    frozen = case.start.frozen
    moved = [name for name, tensor in frozen.items() if name in after and not torch.equal(tensor, after[name])]
    assert not moved, f"frozen weights moved: {moved}"


@promise
def trains_the_head(case: Case) -> None:
    """The head is trained."""
    weight = _head(case.straight)["weight"]
    assert not torch.equal(Toy(case.dtype, case.kind).head.weight, weight), "the head does not move"


@promise
def counts_by_formula(case: Case) -> None:
    """At the start and at the end the formula gives the number of trainable parameters outside the head."""
    start = case.start
    matches = start.formula is None or start.formula == start.trainable
    assert matches, f"closed_form() says {start.formula}, trainable are {start.trainable}"
    for name, adapter in adapters(case.straight):
        count = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
        said = adapter.closed_form()
        assert said == count, f"{name}: closed_form() says {said} at the end, trainable are {count}"


@promise
def holds_its_budget(case: Case) -> None:
    """Parameters in use never exceed the trainable ones, the formula at start and end, or a budget.

    With `budget` they end less than one rank below it, and the last step's model is final.
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
    """After every step the optimizer has exactly the trainable parameters, with moments of the right shapes."""
    for number, moment in enumerate(case.moments, 1):
        assert moment.loose is None, f"after step {number} {moment.loose}"
    loose = loose_ends(case.straight)
    assert loose is None, f"after on_train_end {loose}"


@promise
def says_what_decays(case: Case) -> None:
    """`decays()` decides for every adapter parameter; resized and added ones are in groups accordingly."""
    for number, moment in enumerate(case.moments, 1):
        assert moment.decay is None, f"after step {number} {moment.decay}"
    astray = decay_astray(case.straight)
    assert astray is None, f"after on_train_end {astray}"


@promise
def reports_the_rank_of_the_update(case: Case) -> None:
    """After training the reported rank of every layer is the numerical rank of its ΔW.

    After every step `ranks()` equals the adapters' `rank`.
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
    """Within `disabled()` the model computes what the base model computes; afterwards, what it did before."""
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
    """Merged and unmerged models agree up to rounding; unmerging restores every bit."""
    run = case.exact
    wrapped = [adapter for _, adapter in adapters(run)]
    if not wrapped:
        return "it has no adapters"
    unmerged, weights = run.output(), [adapter.weight.detach().clone() for adapter in wrapped]
    for adapter in wrapped:
        adapter.merge()
    torch.testing.assert_close(run.output(), unmerged, rtol=1e-10, atol=1e-12, msg="merged output differs")
    for adapter in wrapped:
        adapter.unmerge()
    back = all(torch.equal(a.weight, weight) for a, weight in zip(wrapped, weights, strict=True))
    assert back, "unmerge() does not restore the weight"
    assert torch.equal(run.output(), unmerged), "the output after unmerge() is not what it was before"
    return None


@promise
def goes_out_as_factors(case: Case) -> str | None:
    """After training the exported factors give ΔW and have at least as many components as its rank."""
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


def _head(run: Trained) -> dict[str, torch.Tensor]:
    """Return the trained head's parameters by the last parts of their names."""
    parameters = {name: p for name, p in run.model.named_parameters() if inside(name, HEAD) and p.requires_grad}
    return {name.rpartition(".")[2]: p.detach() for name, p in parameters.items()}
