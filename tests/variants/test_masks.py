"""Parts of masks: what each source scores, what each scope chooses, when each schedule changes."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.variants.kinds import OF_EVERY_KIND
from variants.core.adapters.drifting_delta import DriftingDelta
from variants.core.masks.schedules import Gradual, Localise, Refresh, RigL
from variants.core.masks.scopes import Block, Channel, Global, Row, Scope, Subnet, Tensor, best_subnet
from variants.core.masks.sources import SOURCES, Activation, Fisher, Gradient, LowRankPart, Random, TrueFisher
from variants.core.passes import Passes
from variants.core.step import Loss
from variants.testing.toys import HEAD, Toy, data, passes

SIZES = {"a": (6, 4), "b": (4, 8)}


def scores(seed: int = 0, values: int = 5) -> dict[str, torch.Tensor]:
    """Whole numbers, of which many are equal."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randint(0, values, size, generator=generator).double() for name, size in SIZES.items()}


def first(numbers: torch.Tensor, count: int) -> list[int]:
    """The places of the `count` largest; of equal ones the first."""
    return sorted(numbers.flatten().argsort(descending=True, stable=True)[:count].tolist())


# -- scopes ----------------------------------------------------------------------------------------


def expected(scope: Scope, found: dict[str, torch.Tensor], counts: dict) -> dict[str, list[int]]:
    """What a sort chooses."""
    if isinstance(scope, Row):
        chosen = {}
        for name, score in found.items():
            each, more = divmod(counts[name][0], len(score))
            orders = score.argsort(descending=True, stable=True)
            following = score.gather(1, orders[:, each : each + 1]).flatten() if more else torch.zeros(len(score))
            extra = first(following, more)
            rows = [orders[i, : each + (i in extra)] + i * score.shape[1] for i in range(len(score))]
            chosen[name] = sorted(torch.cat(rows).tolist())
        return chosen
    if isinstance(scope, Global):
        whole = torch.cat([score.flatten() for score in found.values()])
        at = first(whole, sum(n for n, _ in counts.values()))
        return {"a": [i for i in at if i < 24], "b": [i - 24 for i in at if i >= 24]}
    return {name: first(score, counts[name][0]) for name, score in found.items()}


@pytest.mark.parametrize("scope", [Tensor(), Tensor(share="sides"), Global(), Row(), Row(share="rows")], ids=str)
@pytest.mark.parametrize("total", [1, 9, 10, 31, 55, 56])
def test_each_scope_chooses_what_a_sort_would(scope: Scope, total: int) -> None:
    found, counts = scores(total), scope.counts(SIZES, total)
    chosen = scope.choose(found, counts)
    assert {name: at.tolist() for name, at in chosen.items()} == expected(scope, found, counts)
    assert sum(map(len, chosen.values())) == total


def pattern(indices: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    assert indices.tolist() == sorted(set(indices.tolist()))
    return torch.zeros(math.prod(size)).index_fill(0, indices, 1.0).view(size)


def test_blocks_of_all_layers_compete_by_their_means() -> None:
    found, scope = scores(1, 100), Block(block=2)
    chosen = scope.choose(found, scope.counts(SIZES, 23))  # five blocks of four; three entries are left
    means = torch.cat([F.avg_pool2d(score[None], 2).flatten() for score in found.values()])
    assert sum(map(len, chosen.values())) == 20
    taken = [F.avg_pool2d(pattern(chosen[name], SIZES[name])[None], 2).flatten() for name in SIZES]
    assert torch.cat(taken).nonzero().flatten().tolist() == first(means, 5) and set(torch.cat(taken).tolist()) == {0, 1}


@pytest.mark.parametrize("axis", ["output", "input"])
@pytest.mark.parametrize("group", [1, 2])
def test_channels_and_heads_come_whole(axis: str, group: int) -> None:
    found, scope = scores(2, 100), Channel(axis=axis, group=group)
    counts = scope.counts(SIZES, 29)
    chosen = scope.choose(found, counts)
    assert 29 - max(cost for _, cost in counts.values()) < sum(map(len, chosen.values())) <= 29
    for name, size in SIZES.items():
        mask, score = pattern(chosen[name], size), found[name]
        if axis == "input":
            mask, score = mask.T, score.T
        lines = mask.reshape(-1, group * mask.shape[1]).mean(1)
        best = first(score.reshape(len(lines), -1).mean(1), counts[name][0])
        assert lines.nonzero().flatten().tolist() == best and set(lines.tolist()) <= {0.0, 1.0}


def test_a_subnet_is_the_best_of_three_guesses_and_meets_its_budget_to_a_row_or_column() -> None:
    scope, found = Subnet(), scores(3, 100)
    for total in (2, 11, 30, 55, 56):
        counts = scope.counts(SIZES, total)
        left = total - sum(a * b for a, b in counts.values())
        assert left >= 0 and all(
            left < (counts[n][1] if counts[n][0] < rows else 99)
            and left < (counts[n][0] if counts[n][1] < columns else 99)
            for n, (rows, columns) in SIZES.items()
        )
        chosen = scope.choose(found, counts)
        assert {n: len(at) for n, at in chosen.items()} == {n: a * b for n, (a, b) in counts.items()}
    score = torch.tensor([[9.0, 0, 0], [0, 6, 5], [0, 5, 6]])
    rows, columns = best_subnet(score, 2, 2)
    assert (rows.tolist(), columns.tolist()) == ([1, 2], [1, 2])
    rows, columns = best_subnet(torch.ones(3, 3), 2, 1)
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [0])


ALL = [Tensor(), Global(), Row(), Block(block=2), Channel(), Channel(axis="input", group=2), Subnet()]


@pytest.mark.parametrize("scope", ALL, ids=str)
def test_a_smaller_mask_is_chosen_from_within_a_larger(scope: Scope) -> None:
    within = None
    for number, total in enumerate((56, 40, 33, 20, 13)):
        counts = scope.counts(SIZES, total)
        chosen = scope.choose(scores(number), counts, within)
        assert sum(map(len, chosen.values())) == sum(a * b for a, b in counts.values())
        if within is not None:
            assert all(set(chosen[name].tolist()) <= set(within[name].tolist()) for name in SIZES)
        within = chosen


@pytest.mark.parametrize("scope", ALL, ids=str)
def test_a_layer_gets_nothing_back_as_the_mask_shrinks_entry_by_entry(scope: Scope) -> None:
    sizes = {"a": (6, 4), "b": (4, 8), "c": (2, 6), "d": (2, 6), "e": (2, 2)}
    draw = torch.Generator().manual_seed(1)
    numbers = {name: torch.rand(size, generator=draw) for name, size in sizes.items()}
    final = scope.counts(sizes, 17)
    there = {name: torch.arange(rows * columns) for name, (rows, columns) in sizes.items()}
    for total in range(sum(map(len, there.values())) - 1, 17, -1):
        chosen = scope.choose(numbers, scope.fewer(sizes, total, there, final), there)
        assert all(set(chosen[name].tolist()) <= set(there[name].tolist()) for name in sizes), total
        there = chosen
    chosen = scope.choose(numbers, final, there)
    assert all(set(chosen[name].tolist()) <= set(there[name].tolist()) for name in sizes)
    assert sum(map(len, chosen.values())) == sum(a * b for a, b in final.values())


@pytest.mark.parametrize("scope", ALL[:-1], ids=str)
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_an_exchange_drops_the_smallest_and_takes_the_best_of_the_others(scope: Scope, fraction: float) -> None:
    counts = scope.counts(SIZES, 24)
    before = scope.choose(scores(5), counts)
    values, new = scores(6, 1000), scores(7, 1000)
    after = scope.exchange(values, new, before, fraction)
    assert sum(map(len, after.values())) == sum(map(len, before.values()))
    masks = [{name: pattern(at[name], SIZES[name]).bool() for name in SIZES} for at in (before, after)]
    if isinstance(scope, Row):
        assert all(torch.equal(masks[0][name].sum(1), masks[1][name].sum(1)) for name in SIZES)
    if not fraction:
        assert all(torch.equal(masks[0][name], masks[1][name]) for name in SIZES)
    if isinstance(scope, Global):
        old, now = (torch.cat([m[n].flatten() for n in SIZES]) for m in masks)
        size, score = (torch.cat([s[n].flatten() for n in SIZES]) for s in (values, new))
        assert int((old & ~now).sum()) == round(fraction * 24) == int((now & ~old).sum())
        if fraction == 0.3:
            assert size[old & ~now].max() <= size[old & now].min()
            assert score[now & ~old].min() >= score[~now & ~old].max()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block(block=3).check(SIZES), "block: 3 does not divide a of size 6×4"),
        (lambda: Block(block=4).counts(SIZES, 15), "block: 4 makes 0 blocks of 15 entries, allowed .*: 1 … 3"),
        (lambda: Channel(group=4).check(SIZES), "group: 4 does not divide the 6 channels of a"),
        (lambda: Channel().counts(SIZES, 3), "scope: channel of 4 entries or more, allowed: more than 3"),
        (lambda: Subnet().counts(SIZES, 1), "scope: subnet of 1 entries, allowed for these targets: 2 … 56"),
        (lambda: Tensor().counts(SIZES, 57), "budget: 57 parameters, allowed for these targets: 1 … 56"),
        (lambda: LowRankPart(filter_rank=5).check(SIZES), "filter_rank: 5 for a of size 6×4, allowed: 1 … 4"),
    ],
)
def test_what_a_scope_or_a_source_refuses(make, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


# -- schedules -------------------------------------------------------------------------------------


def test_changes_come_at_even_distances_between_the_first_and_the_last_steps() -> None:
    schedule = Refresh(initial_steps=3, final_steps=4, interval=2)
    changing = [t for t in range(1, 13) if schedule.changes(t, 12)]
    assert changing == [3, 5, 7]
    assert [schedule.next(t, 12) for t in (1, 3, 4, 7, 8)] == [3, 3, 5, 7, None]
    turns = Localise(initial_steps=3, final_steps=4, interval=2)
    assert [turns.turn(t, ["a", "b"]) for t in changing] == [["a"], ["b"], ["a"]]


def test_gradual_ends_at_its_target_and_rigl_exchanges_ever_less() -> None:
    gradual = Gradual(initial_steps=2, final_steps=2, interval=2)
    assert [gradual.entries(t, 12, 100, 20) for t in (2, 6, 10, 12)] == [100, 30, 20, 20]
    rigl = RigL(final_steps=2, regrow=0.4)
    assert [round(rigl.fraction(t, 12), 6) for t in (0, 5, 10)] == [0.4, 0.2, 0.0]


# -- sources ---------------------------------------------------------------------------------------


def adapted(dtype: torch.dtype = torch.float64) -> tuple[Toy, dict[str, DriftingDelta]]:
    toy = Toy(dtype)
    found = {f"layer.{i}.fc1": DriftingDelta(toy.layer[i]["fc1"], torch.arange(1)) for i in range(2)}
    for i in range(2):
        toy.layer[i]["fc1"] = found[f"layer.{i}.fc1"]
    return toy, found


def gradients(toy: Toy, rows: slice) -> dict[str, torch.Tensor]:
    """The dense gradients of the mean loss of these rows."""
    x, y = data(torch.float64)
    plain = Toy(torch.float64)
    F.mse_loss(plain(x[rows]), y[rows].double()).backward()
    return {f"layer.{i}.fc1": plain.layer[i]["fc1"].weight.grad for i in range(2)}


def test_scores_are_their_formulas() -> None:
    toy, adapters = adapted()
    found = {
        name: (SOURCES[name](collect=2) if name != "fisher" else Fisher(samples=5)).before_training(
            adapters, passes(toy, torch.float64)
        )
        for name in ("gradient", "weight_gradient", "fisher")
    }
    steps = [gradients(toy, slice(16 * i, 16 * i + 16)) for i in range(2)]
    rows = [gradients(toy, slice(i, i + 1)) for i in range(5)]
    for name, adapter in adapters.items():
        total = steps[0][name] + steps[1][name]
        torch.testing.assert_close(found["gradient"][name], total.abs())
        torch.testing.assert_close(found["weight_gradient"][name], (adapter.weight * total).abs())
        torch.testing.assert_close(found["fisher"][name], sum(row[name].square() for row in rows))
        weight = adapter.weight.detach()
        u, s, vh = torch.linalg.svd(weight)
        torch.testing.assert_close(
            LowRankPart(filter_rank=1).of_weight(name, weight), (s[0] * torch.outer(u[:, 0], vh[0])).abs()
        )
    assert Gradient().measured(torch.tensor(-2.0)) == -2 and Fisher().measured(torch.tensor(-2.0)) == 4


def test_the_true_fisher_is_over_the_models_own_classes() -> None:
    toy, adapters = adapted()
    name, x = "layer.1.fc1", data(torch.float64)[0][:3]
    found = TrueFisher(samples=3).before_training(adapters, passes(toy, torch.float64))[name]
    plain, total = Toy(torch.float64), 0.0
    for row, number in itertools.product(x, range(3)):
        plain.zero_grad()
        logs = plain(row[None]).log_softmax(-1)[0]
        (-logs[number]).backward()
        total = total + logs[number].exp().detach() * plain.layer[1]["fc1"].weight.grad.square()
    torch.testing.assert_close(found, total)


def test_random_numbers_are_those_of_a_permutation_and_differ_between_layers_and_choices() -> None:
    source, weight = Random(seed=3), torch.zeros(20, 30)
    score = source.of_weight("a", weight)
    order = score.flatten().argsort(descending=True)
    assert torch.equal(order, source.permutation("a", 600))
    assert score.min() >= 0 and score.max() < 1 and abs(score.mean() - 0.5) < 0.05
    others = [source.of_weight("b", weight), source.of_weight("a", weight, 1), Random(seed=4).of_weight("a", weight)]
    assert all(not torch.equal(score, other) for other in others)


@pytest.mark.parametrize(("layer", "x"), OF_EVERY_KIND)
def test_squared_inputs_are_those_that_an_entry_reads(layer: nn.Module, x: torch.Tensor) -> None:
    """A weight of squares applied to squares: its gradient is the sum of what each entry reads."""
    adapter = DriftingDelta(copy.deepcopy(layer).double(), torch.arange(1))
    x = x.double() if x.is_floating_point() else x
    plan = Passes(adapter, lambda n: iter([[x]]), lambda n: iter([]), lambda b: Loss(adapter(b).sum(), 1), len)
    found = plan.squared_inputs({"layer": adapter}, [x, x])["layer"]
    weight = adapter.layer_kind.matrix.detach().clone().requires_grad_()
    squares = x.square() if x.is_floating_point() else x
    (2 * adapter.layer_kind.apply(squares, weight).sum()).backward()
    torch.testing.assert_close(found, weight.grad)
    score = Activation().before_training({"layer": adapter}, plan)["layer"]
    torch.testing.assert_close(score, adapter.layer_kind.matrix.detach().abs() * (weight.grad / 2).sqrt())


def test_inputs_of_padding_do_not_count() -> None:
    adapter = DriftingDelta(nn.Linear(3, 2).double(), torch.arange(1))
    x, real = torch.randn(2, 4, 3, dtype=torch.float64), torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    plan = Passes(
        adapter, lambda n: iter([[x]]), lambda n: iter([]), lambda b: Loss(adapter(b).sum(), 1), len, lambda b: real
    )
    found = plan.squared_inputs({"layer": adapter}, [x])["layer"]
    torch.testing.assert_close(found, x[real].square().sum(0).expand(2, 3))


def test_every_source_has_a_formula_in_the_table() -> None:
    import variants.core.masks.sources as module

    assert all(f"\n| {name} |" in module.__doc__ for name in SOURCES) and HEAD
