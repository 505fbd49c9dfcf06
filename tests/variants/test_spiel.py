"""SpIEL: what moves when, what a moved entry starts with, its whole trajectory in plain tensors."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.variants.kinds import OF_EVERY_KIND
from tests.variants.oracles import LAYERS, Toy
from tests.variants.plain import SHAPES, ElementAdam, Loop, batch, close, dense_gradients, toy
from variants.core import training_state
from variants.core.adapters.moving_delta import MovingDelta
from variants.core.layers import matrix
from variants.spiel import SpIEL, _adam_step
from variants.testing import contract
from variants.testing.contract import HEAD, STEPS

TOTAL = 75  # selections after steps 5, 25, 45 and 65


def looped(total: int = TOTAL, **options) -> Loop:
    """A loop over SpIEL on the plain network, at its first step."""
    of_loop = ("micro", "clip", "skipped", "forward", "data", "betas", "eps", "decay")
    known = {key: options.pop(key) for key in of_loop if key in options}
    variant = SpIEL(**{"density": 0.3, **options})
    variant.plan(total)
    return Loop(variant, variant.attach(toy()), total, **known)


def places(loop: Loop) -> dict[str, set[int]]:
    """The places of every layer's entries."""
    return {name: set(adapter.indices.tolist()) for name, adapter in loop.variant.adapters.items()}


def plain_run(
    model: Toy, start: dict[str, list[int]], loop: Loop, profile: str, schedule: str
) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, set[int]], dict[str, ElementAdam]]]:
    """The method again with dense tensors: (ΔW, places, Adam) by layer after every step. R = 20, a = 5, rate 0.2."""
    b1, b2 = loop.betas
    delta = {n: torch.zeros(SHAPES[n], dtype=torch.float64) for n in LAYERS}
    active = {n: list(start[n]) for n in LAYERS}
    adam = {n: ElementAdam(SHAPES[n], loop.betas, loop.eps, eps_inside=profile == "released") for n in LAYERS}
    seen: dict[str, list[torch.Tensor]] = {}
    candidates: dict[str, list[int]] = {}
    collected = 0
    for t in range(1, loop.total + 1):
        x, y = loop.data(t)
        weights = {n: getattr(model, n).weight + delta[n] for n in LAYERS}
        parts = [
            {n: g / loop.micro for n, g in dense_gradients(model, weights, a, b).items()}
            for a, b in zip(x.chunk(loop.micro), y.chunk(loop.micro), strict=True)
        ]
        whole = {n: sum(part[n] for part in parts) for n in LAYERS}
        norm = math.sqrt(sum(float(whole[n].view(-1)[i]) ** 2 for n in LAYERS for i in active[n]))
        c = 1.0 if loop.clip is None else min(1.0, loop.clip / (norm + 1e-6))

        place = t % 20
        if (place == 0 and profile == "released") or (t < 20 and place == 1) or (place == 1 and profile == "paper"):
            seen, candidates, collected = {n: [] for n in LAYERS}, {}, 0
        if (place == 0 and profile == "released") or 1 <= place <= 5:
            for n in LAYERS:
                if n not in candidates:
                    size = parts[0][n].abs().flatten().tolist()
                    candidates[n] = sorted(range(len(size)), key=lambda i: -size[i])[: len(active[n])]
                seen[n] += [c * whole[n].flatten()] if profile == "paper" else [part[n].flatten() for part in parts]
            collected += 1

        for n in LAYERS:
            mask = torch.zeros(SHAPES[n], dtype=torch.bool)
            mask.view(-1)[active[n]] = True
            rate = loop.lr * loop.rate(t - 1)
            delta[n] *= 1 - rate * loop.decay * (profile == "paper")
            adam[n].step(delta[n], c * whole[n], mask, rate)
            delta[n] *= 1 - rate * loop.decay * (profile == "released")
        if place == 5:
            if t == 5 and (schedule == "linear" or profile == "paper"):
                p = 1.0
            elif schedule == "linear":
                p = 0.2 * (1 - t / loop.total)
            else:
                p = 0.2 * (1 + math.cos(math.pi * t / loop.total)) / 2
            for n in LAYERS:
                flat = delta[n].view(-1)
                number = int(p * len(active[n]))
                out = sorted(active[n], key=lambda i: abs(float(flat[i])))[:number]
                total = torch.stack(seen[n]).sum(0)
                allowed = [i for i in candidates[n] if i not in set(active[n]) - set(out)]
                into = sorted(allowed, key=lambda i: -abs(float(total[i])))[:number]
                out, into = [i for i in out if i not in into], [i for i in into if i not in out]
                for gone, new in zip(out, into, strict=False):
                    active[n][active[n].index(gone)] = new
                    flat[gone] = flat[new] = 0.0
                    g = torch.stack([gradient[new] for gradient in seen[n]])
                    adam[n].m.view(-1)[new] = g.mean() * (1 - b1**collected)
                    adam[n].v.view(-1)[new] = (g**2).mean() * (1 - b2**collected)
                    adam[n].age.view(-1)[new] = collected if profile == "paper" else collected - 1
        yield delta, {n: set(active[n]) for n in LAYERS}, adam


@pytest.mark.parametrize(
    ("profile", "schedule", "options"),
    [
        ("paper", "linear", {}),
        ("paper", "linear", {"decay": 0.5}),
        ("paper", "cosine", {"clip": 0.2, "micro": 2}),
        ("released", "linear", {"decay": 0.5}),
        ("released", "linear", {"eps": 1e-3, "betas": (0.8, 0.95)}),
        ("released", "cosine", {"clip": 0.2, "micro": 2}),
    ],
)
def test_the_trajectory_is_that_of_the_method_in_dense_tensors(profile: str, schedule: str, options: dict):
    loop = looped(profile=profile, rate_schedule=schedule, **options)
    adapters = loop.variant.adapters
    start = {name: adapters[name].indices.tolist() for name in LAYERS}
    moved = 0
    for t, (delta, active, adam) in enumerate(plain_run(toy(), start, loop, profile, schedule), start=1):
        before = places(loop)
        loop.until(t)
        assert places(loop) == active, f"after step {t}"
        moved += sum(len(active[name] - before[name]) for name in LAYERS)
        for name, adapter in adapters.items():
            assert close(adapter.delta(), delta[name]) or not delta[name].any(), f"{name} after step {t}"
            held, moments = adapter.indices, loop.optimizer.state[adapter.values]
            assert close(moments["exp_avg"], adam[name].m.view(-1)[held])
            assert close(moments["exp_avg_sq"], adam[name].v.view(-1)[held])
            assert torch.equal(adapter.ages.double(), adam[name].age.view(-1)[held])
    assert t == TOTAL and moved == loop.variant.state_dict()["moved"] > 0


def test_all_move_at_the_first_selection_and_a_falling_share_at_those_that_follow():
    loop = looped()
    expected = {5: 1.0, **{t: 0.2 * (1 - t / TOTAL) for t in (25, 45, 65)}}
    before, counts = places(loop), {}
    drawn = before
    for t in range(1, TOTAL + 1):
        after = places(loop.until(t))
        counts[t] = {name: len(before[name] - after[name]) for name in LAYERS}
        before = after
        if t == 5:
            grown = {
                name: len(set(adapter.indices.tolist()) - drawn[name])
                for name, adapter in loop.variant.adapters.items()
            }
    assert counts[5] == grown and sum(grown.values()) > 20, "candidates that were drawn before stay"
    for t, found in counts.items():
        for name, count in found.items():
            assert count <= int(expected.get(t, 0.0) * len(before[name])), f"{name} after step {t}"
    assert sum(counts[25].values()) > 0 and loop.variant.state_dict()["selections"] == 4


def test_the_number_of_entries_is_the_same_at_every_step_and_in_proportion_to_the_layers_sizes():
    loop = looped(density=0.25)
    for t in range(1, 31):
        loop.until(t)
        assert {n: len(a.values) for n, a in loop.variant.adapters.items()} == {"fc1": 12, "fc2": 16, "fc3": 8}
        assert all(len(found) == len(loop.variant.adapters[name].values) for name, found in places(loop).items())
    assert loop.variant.effective_parameters() == loop.variant.closed_form() == 36


def test_only_places_of_entries_change():
    loop = looped().until(30)
    for name, adapter in loop.variant.adapters.items():
        delta = adapter.delta_weight()
        assert int(torch.count_nonzero(delta)) == len(adapter.values)
        x = torch.randn(3, SHAPES[name][1], dtype=torch.float64)
        torch.testing.assert_close(adapter(x), adapter.base(x) + x @ delta.T)


def test_a_new_value_starts_at_zero_with_moments_that_are_unbiased_and_an_age_of_its_own():
    loop = looped(micro=2).until(4)
    estimates = {name: copy.deepcopy(adapter.estimate) for name, adapter in loop.variant.adapters.items()}
    before = places(loop)
    on_gradients, gradients = loop.variant.on_gradients, {}

    def spy(step: contract.Step) -> None:
        gradients.update({name: adapter.fresh.total.clone() for name, adapter in loop.variant.adapters.items()})
        on_gradients(step)

    loop.variant.on_gradients = spy
    loop.until(5)
    for name, adapter in loop.variant.adapters.items():
        known = {
            place: (float(estimates[name].total[i] + gradients[name][i]), float(estimates[name].squares[i]))
            for i, place in enumerate(estimates[name].indices.tolist())
        }
        moments = loop.optimizer.state[adapter.values]
        for slot, place in enumerate(adapter.indices.tolist()):
            if place in before[name]:
                continue
            assert adapter.values[slot] == 0 and adapter.ages[slot] == 5
            corrected = float(moments["exp_avg"][slot]) / (1 - 0.9**5)
            assert corrected == pytest.approx(known[place][0] / 5)
            assert float(moments["exp_avg_sq"][slot]) / (1 - 0.999**5) >= known[place][1] / 5
    loop.variant.on_gradients = on_gradients
    loop.until(25)
    assert all(len(set(adapter.ages.tolist())) == 2 for adapter in loop.variant.adapters.values())


def test_values_gradients_and_moments_have_as_many_entries_as_there_are():
    loop = looped().until(30)
    for adapter in loop.variant.adapters.values():
        moments = [tensor for tensor in loop.optimizer.state[adapter.values].values() if tensor.ndim]
        assert [tuple(tensor.shape) for tensor in moments] == [(len(adapter.indices),)] * 2
        assert sum(tensor.nbytes for tensor in moments) == 2 * 8 * len(adapter.indices)
        assert len(adapter.ages) == len(adapter.indices) and adapter.estimate is None and adapter.gradient is None


def test_the_step_by_own_age_is_torchs_own_where_the_ages_are_its_count():
    parameter = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=0.1, betas=(0.7, 0.9), eps=1e-3)
    for count in range(1, 6):
        before = parameter.detach().clone()
        parameter.grad = torch.randn(5, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
        optimizer.step()
        moments = optimizer.state[parameter]
        ages = torch.full((5,), float(count), dtype=torch.float64)
        taken = _adam_step(moments["exp_avg"], moments["exp_avg_sq"], ages, 0.1, (0.7, 0.9), 1e-3)
        torch.testing.assert_close(before - taken, parameter.detach(), rtol=1e-12, atol=1e-14)
    none = _adam_step(torch.ones(2), torch.ones(2), torch.ones(2), 0.1, (0.0, 0.0), 0.0)
    assert torch.equal(none, torch.full((2,), 0.1)), "β = 0 corrects nothing"


def test_until_the_first_selection_the_values_are_those_of_plain_adamw():
    loop = looped().until(4)
    plain = looped()
    plain.variant.on_update = lambda step: None
    plain.until(4)
    for name, adapter in loop.variant.adapters.items():
        assert torch.equal(adapter.values, plain.variant.adapters[name].values)


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpointing_every_gradient_is_counted_once(reentrant: bool):
    def recomputed(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)

    plain, run = (looped(profile="released", micro=2, **way).until(30) for way in ({}, {"forward": recomputed}))
    assert places(run) == places(plain)
    for name, adapter in plain.variant.adapters.items():
        assert close(run.variant.adapters[name].delta(), adapter.delta())
    plain, run = (looped(profile="released", micro=2, **way).until(3) for way in ({}, {"forward": recomputed}))
    for name, adapter in run.variant.adapters.items():
        assert (adapter.estimate.samples, adapter.estimate.steps) == (6, 3)
        assert close(adapter.estimate.squares, plain.variant.adapters[name].estimate.squares)


def test_a_step_split_into_batches_with_the_same_rows_is_a_whole_one():
    def twice(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.cat([part, part]) for part in batch(step, 8))

    whole, split = looped(data=twice, clip=0.2).until(50), looped(data=twice, clip=0.2, micro=2).until(50)
    assert places(whole) == places(split)
    for name, adapter in whole.variant.adapters.items():
        assert close(split.variant.adapters[name].delta(), adapter.delta())


def test_a_skipped_step_leaves_no_gradient_behind():
    def poisoned(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = batch(step)
        return (x * math.nan, y) if step in (1, 3) else (x, y)

    loop = looped(data=poisoned, skipped=(1, 3)).until(5)
    clean = looped(skipped=(1, 3)).until(5)
    assert loop.variant.state_dict()["selections"] == 1 and places(loop) == places(clean)
    for name, adapter in loop.variant.adapters.items():
        assert torch.equal(adapter.delta(), clean.variant.adapters[name].delta())
        assert set(adapter.ages.tolist()) == {3}, "three of the five steps had gradients"


def test_a_selection_whose_step_is_skipped_is_made_after_the_next():
    loop = looped(skipped=(5, 6))
    assert loop.until(6).variant.state_dict()["selections"] == 0
    assert loop.until(7).variant.state_dict()["selections"] == 1
    assert {age for adapter in loop.variant.adapters.values() for age in adapter.ages.tolist()} == {4, 5}
    # 4 collected; those that were candidates and there before have made the steps 1 to 4 and 7


def test_a_collection_that_came_to_no_selection_is_no_part_of_the_next():
    loop = looped(skipped=range(5, 21)).until(21)
    assert loop.variant.state_dict()["selections"] == 0
    assert {(a.estimate.steps, a.estimate.samples) for a in loop.variant.adapters.values()} == {(1, 1)}


def test_a_run_whose_steps_are_all_skipped_ends_with_an_error():
    loop = looped(total=8, skipped=range(1, 9)).until(8)
    assert not loop.variant.is_final_form(loop.step(8))
    with pytest.raises(RuntimeError, match="selection: none was made, because too few steps had finite gradients"):
        loop.variant.on_train_end(loop.step(8))


def test_a_share_that_never_reaches_one_entry_is_an_error_at_the_end():
    loop = looped(profile="released", rate_schedule="cosine", reselection_rate=0.01).until(TOTAL)
    with pytest.raises(RuntimeError, match="selection: no entry has ever moved; increase reselection_rate or density"):
        loop.variant.on_train_end(loop.step(TOTAL))


def test_a_model_whose_places_are_still_the_draw_is_not_handed_over():
    loop = looped()
    forms = [loop.variant.is_final_form(loop.until(t).step(t)) for t in range(1, 8)]
    assert forms == [False] * 4 + [True] * 3


def test_what_is_saved_in_the_middle_of_a_collection_goes_on_to_the_same_places():
    params = {"density": 0.2, "reselection_steps": 6, "accumulation_steps": 4, "profile": "released"}
    straight, first, second = (contract.attach(SpIEL, params) for _ in range(3))
    contract.train(straight)
    contract.train(first, 8)
    saved = contract.through_disk(training_state.weights(first.model, first.variant, first.optimizer))
    layer = saved["variant"]["layers"]["layer.0.fc1"]
    assert layer["estimate"]["steps"] == 3 and len(layer["ages"]) == len(layer["indices"]) == 20
    training_state.restore_weights(second.model, second.variant, saved)
    optimizer = contract.through_disk(training_state.optimizer_state(first.model, first.optimizer))
    training_state.restore_optimizer(second.model, second.optimizer, optimizer)
    training_state.restore_schedule(second.scheduler, training_state.schedule_state(first.scheduler))
    second.steps_done = 8
    contract.train(second)
    for name, adapter in straight.variant.adapters.items():
        other = second.variant.adapters[name]
        assert torch.equal(adapter.indices, other.indices) and torch.equal(adapter.ages, other.ages)
    assert torch.equal(straight.output(), second.output())


@pytest.mark.parametrize(("layer", "x"), OF_EVERY_KIND)
def test_on_every_kind_of_layer_candidates_are_the_largest_of_the_dense_gradient(layer: nn.Module, x: torch.Tensor):
    base = copy.deepcopy(layer).double()
    x = x.double() if x.is_floating_point() else x
    adapter = MovingDelta(copy.deepcopy(base), torch.arange(0, 40, 2))
    nn.init.normal_(adapter.values)
    dense = copy.deepcopy(base)
    dense.weight.data += adapter.delta_weight()
    dense(x).square().sum().backward()
    dense.weight.data = dense.weight.grad
    gradient = matrix(dense).flatten()
    adapter.begin_step(watched=True)
    adapter(x).square().sum().backward()
    estimate = adapter.fresh
    assert len(set(estimate.indices.tolist())) == 20 and estimate.samples == 1
    assert gradient.abs()[estimate.indices].min() >= gradient.abs().sort().values[-20] * (1 - 1e-9)
    torch.testing.assert_close(estimate.total, gradient[estimate.indices], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(adapter.present, adapter.values.grad)
    assert adapter.gradient is None, "nothing dense is kept"


def test_above_half_precision_gradients_are_collected_in_float32():
    run = contract.attach(SpIEL, {"density": 0.2, "reselection_steps": 6}, torch.bfloat16)
    contract.train(run, 3)
    for adapter in run.variant.adapters.values():
        assert adapter.estimate.total.dtype == adapter.values.dtype == torch.float32
    contract.train(run, 8)
    assert run.variant.state_dict()["moved"] > 0


@pytest.mark.parametrize("budget", [1, 7, 101, 383])
def test_a_budget_is_met_to_the_entry_also_where_a_layer_gets_none(budget: int):
    run = contract.attach(SpIEL, {"budget": budget, "reselection_steps": 4, "accumulation_steps": 2})
    contract.train(run, STEPS - 1)
    assert run.variant.effective_parameters() == budget == run.variant.closed_form()
    assert sum(run.variant.ranks().values()) <= budget


def test_density_is_of_all_layers_together():
    run = contract.attach(SpIEL, {"density": 0.033})
    assert run.variant.closed_form() == round(0.033 * 4 * 96) == 13


def test_the_first_places_are_drawn_with_the_seed_and_sorted():
    one, two, other = (contract.attach(SpIEL, {"density": 0.2, "seed": seed}) for seed in (0, 0, 1))
    for name, adapter in one.variant.adapters.items():
        assert torch.equal(adapter.indices, two.variant.adapters[name].indices)
        assert not torch.equal(adapter.indices, other.variant.adapters[name].indices)
        assert torch.equal(adapter.indices, adapter.indices.sort().values)
    first, second = (one.variant.adapters[f"layer.{i}.fc1"].indices for i in (0, 1))
    assert not torch.equal(first, second), "layers of one size have places of their own"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"density": 0.0}, r"density: 0.0, allowed: a number > 0"),
        ({"density": 1.0}, r"density: 1.0, allowed: 0 ≤ density < 1"),
        ({"density": 0.2, "budget": 50}, r"density: 0.2 with budget: 50"),
        ({"reselection_rate": 0.0}, r"reselection_rate: 0.0, allowed: a number > 0"),
        ({"reselection_rate": 1.1}, r"reselection_rate: 1.1, allowed: 0 < reselection_rate ≤ 1"),
        ({"reselection_steps": 0}, r"reselection_steps: 0, allowed: a whole number ≥ 1"),
        ({"accumulation_steps": 0}, r"accumulation_steps: 0, allowed: a whole number ≥ 1"),
        (
            {"accumulation_steps": 20},
            r"accumulation_steps: 20, allowed: at most 19 with reselection_steps: 20 and .* paper",
        ),
        (
            {"accumulation_steps": 19, "profile": "released"},
            r"accumulation_steps: 19, allowed: at most 18 with .* released",
        ),
        ({"rate_schedule": "cubic"}, r"rate_schedule: 'cubic', allowed: linear, cosine"),
        ({"profile": "code"}, r"profile: 'code', allowed: paper, released"),
        ({"seed": -1}, r"seed: -1, allowed: a whole number ≥ 0"),
    ],
)
def test_what_it_refuses(params: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SpIEL(**params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"budget": 384}, r"budget: 384 parameters, allowed for these targets: 1 … 383"),
        ({"density": 0.001}, r"density: 0.001 of 384 entries is none, allowed: at least 0.0026"),
    ],
)
def test_what_the_layers_do_not_allow(params: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SpIEL(**params).check(contract.Toy(), HEAD)


def test_a_run_that_ends_before_the_first_selection_is_refused():
    with pytest.raises(ValueError, match=r"accumulation_steps: 12, allowed: fewer than the run's 12 steps"):
        SpIEL(accumulation_steps=12).plan(STEPS)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda p: torch.optim.SGD(p, 0.1), r"optim.optimizer: SGD, allowed: Adam, AdamW"),
        (lambda p: torch.optim.NAdam(p, 0.1), r"optim.optimizer: NAdam, allowed: Adam, AdamW"),
        (lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True), r"optim.optimizer: amsgrad, allowed: false"),
    ],
)
def test_an_optimizer_without_these_moments_is_refused_at_the_first_step(optimizer, message: str):
    loop = looped()
    loop.optimizer = optimizer([adapter.values for adapter in loop.variant.adapters.values()])
    with pytest.raises(ValueError, match=message):
        loop.variant.on_step_begin(loop.step(1))


def test_adam_takes_its_place_as_well_as_adamw():
    loop = looped()
    loop.optimizer = torch.optim.Adam([adapter.values for adapter in loop.variant.adapters.values()], 0.01)
    loop.scheduler = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, loop.rate)
    same = looped().until(30)
    loop.until(30)
    for name, adapter in loop.variant.adapters.items():
        assert close(adapter.delta(), same.variant.adapters[name].delta())


def test_a_layer_that_takes_no_part_and_a_gradient_that_is_not_finite_are_named():
    loop = looped()
    loop.variant.on_step_begin(loop.step(1))
    with pytest.raises(ValueError, match=r"selection: fc1 is not part of the loss; exclude it"):
        loop.variant.on_gradients(loop.step(1))
    (loop.model(batch(1)[0]).sum() * math.inf).backward()
    loop.variant.on_gradients(loop.step(1))
    message = r"selection: a gradient of fc1 was not finite"
    with pytest.raises(ValueError, match=message):
        loop.variant.state_dict()
    with pytest.raises(ValueError, match=message):
        loop.until(20)
