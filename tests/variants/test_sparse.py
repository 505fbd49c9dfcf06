"""Sparse-masked LoRA: how many entries there are when, which they are, and that nothing dense is kept."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from variants.core import training_state as state
from variants.core.adapters.masked_factors import MaskedFactors
from variants.core.allocation.budget import apportion
from variants.lora import LoRA
from variants.sparse import SparseLoRA
from variants.testing import contract
from variants.testing.contract import STEPS, Step

DENSE = 4 * 20 * 4  # rank 4 in four layers of 8×12


def attached(**params) -> contract.Trained:
    return contract.attach(SparseLoRA, {"rank": 4, **params}, torch.float64)


def entries(run: contract.Trained) -> int:
    return run.variant.effective_parameters()


def history(**params) -> list[int]:
    """Entries after each step."""
    run = attached(**params)
    found = []
    for step in range(1, STEPS + 1):
        contract.train(run, step)
        found.append(entries(run))
    return found


def test_one_shot_keeps_all_entries_up_to_its_step_and_the_share_from_there_on():
    assert history(schedule="one_shot", initial_steps=4, density=0.25) == [DENSE] * 3 + [DENSE // 4] * 9


def test_gradual_follows_the_cubic_curve_to_the_share():
    found = history(initial_steps=2, final_steps=4, density=0.5)
    expected = [int(DENSE / 2 + DENSE / 2 * (1 - (t - 2) / 6) ** 3) for t in range(2, 8)]
    assert found == [DENSE, *expected, *[DENSE // 2] * 5]


def test_gradual_reaches_the_share_in_time_where_the_interval_does_not_divide_the_steps():
    found = history(initial_steps=2, final_steps=3, interval=4, density=0.5)
    assert found[7] > DENSE // 2 and found[8:] == [DENSE // 2] * 4


def test_rigl_has_the_share_at_every_step_and_exchanges_less_and_less():
    assert set(history(schedule="rigl", density=0.3, interval=2)) == {round(0.3 * DENSE)}
    run = attached(schedule="rigl", density=0.5, regrow=0.8, initial_steps=1, final_steps=2)
    moved = []
    for step in range(1, STEPS - 1):
        before = run.variant.state_dict()["moved"]
        contract.train(run, step)
        moved.append(run.variant.state_dict()["moved"] - before)
    assert moved == sorted(moved, reverse=True) and moved[0] > moved[5] > 0


@pytest.mark.parametrize("budget", [1, 33, 150, 319, 320])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_budget_is_met_to_the_entry(budget: int, scope: str):
    assert history(budget=budget, scope=scope)[-1] == budget


def test_values_and_moments_have_as_many_entries_as_the_mask_at_every_step():
    run = attached(initial_steps=2, final_steps=2, density=0.2)
    for step in range(1, STEPS + 1):
        contract.train(run, step)
        for adapter in run.variant.adapters.values():
            for part in ("A", "B"):
                value = adapter.get_parameter(part)
                shapes = {tuple(t.shape) for t in run.optimizer.state[value].values() if t.ndim}
                assert shapes == {(len(adapter.indices[part]),)} == {tuple(value.shape)}


def test_magnitude_keeps_the_largest_of_each_factor():
    run = attached(schedule="one_shot", initial_steps=3, final_steps=1, density=0.25)
    contract.train(run, 2)
    twin = attached(schedule="one_shot", initial_steps=4, final_steps=1, density=0.25)
    contract.train(twin, 3)
    contract.train(run, 3)
    for name, adapter in run.variant.adapters.items():
        dense = twin.variant.adapters[name]
        for part in ("A", "B"):
            score = dense.get_parameter(part).detach().abs()
            expected = score.argsort(descending=True, stable=True)[: len(score) // 4].sort().values
            assert torch.equal(adapter.indices[part], expected)
            assert torch.equal(adapter.get_parameter(part), dense.get_parameter(part)[expected])


def test_sensitivity_smooths_weight_times_gradient():
    run = attached(score="sensitivity", initial_steps=8, beta=0.5)
    expected: dict[str, torch.Tensor] = {}
    on_gradients = run.variant.on_gradients

    def spy(step: Step) -> None:
        for name, adapter in run.variant.adapters.items():
            found = (adapter.A * adapter.A.grad).abs().detach()
            expected[name] = 0.5 * expected.get(name, 0) + 0.5 * found
        on_gradients(step)

    run.variant.on_gradients = spy
    contract.train(run, 5)
    for name, score in expected.items():
        torch.testing.assert_close(run.variant.state_dict()["scores"][f"{name}.A"], score)


def test_rigl_grows_where_the_gradient_is_largest_and_starts_there_at_zero():
    run = attached(schedule="rigl", density=0.5, initial_steps=2, interval=9, regrow=0.5)
    contract.train(run, 1)
    before = {name: adapter.indices["A"].clone() for name, adapter in run.variant.adapters.items()}
    gradients: dict[str, torch.Tensor] = {}
    on_update = run.variant.on_update

    def spy(step: Step) -> None:
        gradients.update({name: adapter.gradients["A"].clone() for name, adapter in run.variant.adapters.items()})
        on_update(step)

    run.variant.on_update = spy
    contract.train(run, 2)
    for name, adapter in run.variant.adapters.items():
        gone = torch.ones(len(gradients[name]), dtype=torch.bool)
        gone[before[name]] = False
        new = [i for i, place in enumerate(adapter.indices["A"].tolist()) if gone[place]]
        assert new and not adapter.A[new].any()
        moments = run.optimizer.state[adapter.A]["exp_avg"]
        assert not moments[new].any() and moments.any()
        outside = gradients[name].abs() * gone
        taken = adapter.indices["A"][new]
        assert outside[taken].min() >= outside.index_fill(0, taken, 0.0).max()


def test_density_one_is_lora():
    lora = contract.train(contract.attach(LoRA, {"rank": 4}, torch.float64))
    assert torch.equal(contract.train(attached(density=1.0)).output(), lora.output())


def test_an_empty_layer_trains_saves_loads_and_merges():
    run = attached(score="random", scope="global", schedule="one_shot", budget=2, initial_steps=2)
    contract.train(run)
    empty = [adapter for adapter in run.variant.adapters.values() if adapter.is_empty]
    assert empty and all(adapter.rank == 0 and not adapter.delta().any() for adapter in empty)
    again = attached(score="random", scope="global", schedule="one_shot", budget=2, initial_steps=2)
    saved = contract.through_disk(state.weights(run.model, run.variant, run.optimizer))
    state.restore_weights(again.model, again.variant, saved)
    output = run.output()
    assert torch.equal(again.output(), output)
    for adapter in again.variant.adapters.values():
        adapter.merge()
    torch.testing.assert_close(again.output(), output)


def test_two_accumulated_batches_make_the_masks_of_one():
    runs = []
    for parts in ([slice(0, 64)], [slice(0, 32), slice(32, 64)]):
        run = attached(schedule="rigl", score="sensitivity", density=0.5)
        x, y = contract.data(torch.float64)
        for index in range(1, 6):
            step = Step(index, STEPS, run.optimizer, run.scheduler)
            run.variant.on_step_begin(step)
            for part in parts:
                (F.mse_loss(run.model(x[part]), y[part]) / len(parts)).backward()
            run.variant.on_gradients(step)
            run.optimizer.step()
            run.variant.on_update(step)
            run.model.zero_grad()
        runs.append(run.variant)
    for name, adapter in runs[0].adapters.items():
        other = runs[1].adapters[name]
        assert all(torch.equal(adapter.indices[part], other.indices[part]) for part in ("A", "B"))
        torch.testing.assert_close(adapter.delta(), other.delta(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_average_with_a_gradient_that_is_not_finite_is_never_saved_and_makes_no_mask(bad):
    run = attached(score="gradient", initial_steps=4)
    contract.train(run, 2)
    next(iter(run.variant.adapters.values())).A.grad = torch.full((32,), bad, dtype=torch.float64)
    run.variant.on_gradients(run.step(3))
    message = r"importance: a gradient of layer.0.fc1.A was not finite"
    with pytest.raises(ValueError, match=message):
        run.variant.state_dict()
    run.variant.on_update(run.step(3))
    with pytest.raises(ValueError, match=message):
        run.variant.on_update(run.step(4))


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [({"schedule": "one_shot", "initial_steps": 4}, 4), ({"interval": 5, "density": 0.1, "final_steps": 2}, 10)],
    ids=["one_shot", "gradual"],
)
def test_a_change_whose_step_was_left_out_is_made_at_the_next(settings, left_out):
    run = contract.train(attached(**settings), left_out - 1)
    target = run.variant.target
    assert entries(run) > target
    run.variant.on_step_begin(run.step(left_out))  # and then its gradients were not finite
    run.steps_done = left_out
    assert entries(contract.train(run, left_out + 1)) == target
    contract.train(run)


def test_only_the_final_number_of_entries_may_be_handed_over():
    run = attached(initial_steps=2, final_steps=4)
    forms = []
    for step in range(1, STEPS + 1):
        contract.train(run, step)
        forms.append(run.variant.is_final_form(Step(step, STEPS, run.optimizer, run.scheduler)))
    assert forms == [False] * 6 + [True] * 6  # the curve is below one entry more at step 7


def test_the_rank_is_that_of_disjoint_ways_and_not_the_smaller_of_the_factors():
    adapter = MaskedFactors(torch.nn.Linear(4, 4), 2, 1.0, 0.0)
    # Both components read the same column, so that BA has rank 1 though B has rank 2.
    adapter.load_indices({"A": torch.tensor([0, 4]), "B": torch.arange(8)})
    assert adapter.rank == 1
    adapter.load_indices({"A": torch.tensor([0, 5]), "B": torch.arange(8)})
    assert adapter.rank == 2


@pytest.mark.parametrize("density", [0.1, 0.2, 0.4, 1.0])
def test_the_rank_is_the_largest_number_of_disjoint_ways_from_a_column_through_a_component_to_a_row(density: float):
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        adapter = MaskedFactors(torch.nn.Linear(7, 6), 4, 1.0, 0.0)
        a, b = (torch.nonzero(torch.rand(n, generator=generator) < density).flatten() for n in (4 * 7, 6 * 4))
        adapter.load_indices({"A": a, "B": b})
        assert adapter.rank == linked_components(a, b, columns=7, components=4)


def linked_components(a: torch.Tensor, b: torch.Tensor, columns: int, components: int) -> int:
    """The most components that have a column and a row each of their own; a (n,), b (m,): indices of entries."""
    most = 0
    for subset in range(1 << components):  # the components that are used: Hall's condition on either side
        used = [i for i in range(components) if subset >> i & 1]
        readers = {i: {int(k) % columns for k in a if int(k) // columns == i} for i in used}
        writers = {i: {int(k) // components for k in b if int(k) % components == i} for i in used}
        if all(has_matching(sides) for sides in (readers, writers)):
            most = max(most, len(used))
    return most


def has_matching(neighbours: dict[int, set[int]]) -> bool:
    """Whether every key can have a neighbour of its own, by Hall's theorem."""
    keys = list(neighbours)
    subsets = ([k for n, k in enumerate(keys) if mask >> n & 1] for mask in range(1, 1 << len(keys)))
    return all(len(set.union(*(neighbours[k] for k in some))) >= len(some) for some in subsets)


def test_share_out_gives_parts_their_share():
    assert apportion({"A": 32, "B": 48}, 40, {"A": 32, "B": 48}) == {"A": 16, "B": 24}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"density": 0.0}, r"density: 0.0, allowed: a number > 0"),
        ({"density": 1.5}, r"density: 1.5, allowed: 0 < density ≤ 1"),
        ({"density": 0.3, "budget": 9}, r"density: 0.3 with budget: 9"),
        ({"regrow": 0.2}, r"regrow: 0.2 with schedule: gradual, allowed: 0.3"),
        ({"interval": 2, "schedule": "one_shot"}, r"interval: 2 with schedule: one_shot, allowed: 1"),
        ({"beta": 0.5}, r"beta: 0.5 with score: magnitude, allowed: 0.85"),
        ({"seed": 1}, r"seed: 1 with score: magnitude, allowed: 0"),
        ({"score": "random", "schedule": "rigl"}, r"score: 'random' with schedule: rigl"),
        ({"scope": "block"}, r"scope: 'block', allowed: layer, global"),
    ],
)
def test_what_it_refuses(params: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SparseLoRA(**params)


def test_a_schedule_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match=r"schedule: 8 initial and 4 final steps do not fit into 12"):
        SparseLoRA(initial_steps=8, final_steps=4).plan(12)


def test_a_budget_above_all_entries_is_refused():
    with pytest.raises(ValueError, match=r"budget: 321 parameters, allowed for these targets: 1 … 320"):
        attached(budget=321)


def test_entries_that_change_places_leave_the_parameter_and_its_optimizer_as_removal_and_growth_would():
    ends = []
    for one_by_one in (True, False):
        torch.manual_seed(0)
        adapter = MaskedFactors(torch.nn.Linear(6, 5), 3, 1.0, 0.0)
        optimizer = torch.optim.AdamW([adapter.A, adapter.B], 0.1)
        adapter.move("A", torch.arange(0, 18, 2), torch.arange(0), optimizer)
        adapter.A.grad, adapter.B.grad = torch.randn(9), torch.randn(15)
        optimizer.step()
        before, kept, new = adapter.A, torch.tensor([0, 3, 4, 8]), torch.tensor([1, 3, 5, 7, 9])
        if one_by_one:
            adapter.move("A", kept, torch.arange(0), optimizer)
            adapter.move("A", torch.arange(4), new, optimizer)
        else:
            adapter.move("A", kept, new, optimizer)
            assert adapter.A is before
        state = optimizer.state[adapter.A]
        assert optimizer.param_groups[0]["params"][0] is adapter.A and adapter.rank == 3
        moments = [state[name] for name in ("exp_avg", "exp_avg_sq")]
        ends.append([adapter.A.detach(), adapter.A.grad, adapter.indices["A"], *moments])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*ends, strict=True))


def test_saved_places_are_taken_up_with_the_rank_that_they_allow():
    adapter = MaskedFactors(torch.nn.Linear(6, 5), 3, 1.0, 0.0)
    b = torch.arange(15)
    adapter.move("A", torch.arange(3), torch.arange(0), None)
    adapter.load_indices({"A": torch.tensor([0, 1, 2]), "B": b})
    assert adapter.rank == 1
    adapter.load_indices({"A": torch.tensor([0, 7, 14]), "B": b})
    assert adapter.rank == 3
