"""RoSA: when which part is trained, where the sparse one lies, its whole trajectory in plain tensors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.variants.kinds import OF_EVERY_KIND
from tests.variants.oracles import LAYERS, Toy
from tests.variants.plain import SHAPES, ElementAdam, Loop, batch, close, dense_gradients, toy
from variants.core import training_state
from variants.core.layers import matrix, size
from variants.rosa import LowRankAndSparse, RoSA
from variants.testing import contract
from variants.testing.contract import HEAD, STEPS

TOTAL = 64


def looped(total: int = TOTAL, **options) -> Loop:
    """A loop over RoSA on the plain network, at its first step."""
    known = {key: options.pop(key) for key in ("micro", "clip", "skipped", "forward", "data") if key in options}
    torch.manual_seed(3)
    variant = RoSA(**{"rank": 2, "density": 0.2, "warmup_steps": 4, "collect_steps": 3, **options})
    variant.plan(total)
    return Loop(variant, variant.attach(toy()), total, **known)


def attached(**params) -> contract.Trained:
    return contract.attach(RoSA, {"rank": 2, "density": 0.2, "warmup_steps": 2, "collect_steps": 3, **params})


def plain_run(model: Toy, a0: dict[str, torch.Tensor], statistic: str, restart: bool, clip: float | None):
    """The method again, with dense tensors: (ΔW by layer, support by layer) after every step."""
    scale, lr = 16.0 / 2, 0.01
    a, b = ({n: t.clone() for n, t in a0.items()}, {n: torch.zeros(SHAPES[n][0], 2).double() for n in LAYERS})
    s, support, total = {}, {}, {}
    every = {n: (torch.ones_like(a[n]).bool(), torch.ones_like(b[n]).bool()) for n in LAYERS}
    adam = {(n, p): ElementAdam(tuple(t[n].shape)) for p, t in (("a", a), ("b", b)) for n in LAYERS}
    for n in LAYERS:
        s[n], total[n] = (torch.zeros(SHAPES[n], dtype=torch.float64) for _ in range(2))
        support[n] = torch.zeros(SHAPES[n], dtype=torch.bool)
        adam[n, "s"] = ElementAdam(SHAPES[n])
    for t in range(1, TOTAL + 1):
        weights = {n: getattr(model, n).weight + scale * b[n] @ a[n] + s[n] for n in LAYERS}
        g = dense_gradients(model, weights, *batch(t))
        ga, gb = ({n: scale * b[n].T @ g[n] for n in LAYERS}, {n: scale * g[n] @ a[n].T for n in LAYERS})
        gs = {n: g[n] * support[n] for n in LAYERS}
        norm = math.sqrt(sum(float(x.square().sum()) for part in (ga, gb, gs) for x in part.values()))
        c = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
        rate = lr * (1 - 0.5 * (t - 1) / TOTAL)
        for n in LAYERS:
            adam[n, "a"].step(a[n], c * ga[n], every[n][0], rate)
            adam[n, "b"].step(b[n], c * gb[n], every[n][1], rate)
            adam[n, "s"].step(s[n], c * gs[n], support[n], rate)
            if 5 <= t <= 7:
                total[n] += g[n] ** 2 if statistic == "squared_mean" else g[n]
            if t == 7:
                score = total[n].abs().flatten().tolist()
                for place in sorted(range(len(score)), key=lambda i: -score[i])[: int(0.2 * len(score))]:
                    support[n].view(-1)[place] = True
                if restart:
                    a[n], b[n] = a0[n].clone(), torch.zeros_like(b[n])
                    adam[n, "a"], adam[n, "b"] = ElementAdam(tuple(a[n].shape)), ElementAdam(tuple(b[n].shape))
        yield {n: scale * b[n] @ a[n] + s[n] for n in LAYERS}, support


@pytest.mark.parametrize(
    ("statistic", "restart", "clip"),
    [("squared_mean", False, None), ("mean", False, 0.3), ("squared_mean", True, 0.3), ("mean", True, None)],
)
def test_the_trajectory_is_that_of_the_method_in_dense_tensors(statistic: str, restart: bool, clip: float | None):
    loop = looped(statistic=statistic, restart=restart, clip=clip)
    adapters = loop.variant.adapters
    start = {name: adapters[name].A.detach().clone() for name in LAYERS}
    for t, (delta, support) in enumerate(plain_run(toy(), start, statistic, restart, clip), start=1):
        loop.until(t)
        for name, adapter in adapters.items():
            assert close(adapter.delta_weight(), delta[name]) or not delta[name].any(), f"{name} after step {t}"
            if t >= 7:
                chosen = torch.zeros(support[name].numel(), dtype=torch.bool)
                chosen[adapter.indices] = True
                assert torch.equal(chosen.view_as(support[name]), support[name])
    assert t == TOTAL


def test_a_layer_has_as_many_entries_as_density_says_and_no_other_entry_changes():
    loop = looped(density=0.11).until(20)
    for name, adapter in loop.variant.adapters.items():
        entries = int(0.11 * math.prod(SHAPES[name]))
        rest = adapter.delta() - adapter.scale * adapter.B @ adapter.A
        assert len(adapter.values) == entries == int(torch.count_nonzero(rest.abs() > 1e-12))
        assert adapter.closed_form() == 2 * sum(SHAPES[name]) + entries


def test_before_the_support_is_there_the_run_is_that_of_lora_and_counts_as_it():
    loop = looped().until(7)
    with_sparse, never = copy.deepcopy(loop), looped(warmup_steps=40).until(7)
    for name, adapter in never.variant.adapters.items():
        assert torch.equal(adapter.delta(), with_sparse.variant.adapters[name].delta())
        assert adapter.rank == 2 and adapter.effective_parameters() == 2 * sum(SHAPES[name])
        assert adapter.values not in never.optimizer.state and adapter.values.grad is None
    assert not never.variant.is_final_form(never.step(7)) and loop.variant.is_final_form(loop.step(7))
    loop.until(8)
    for adapter in loop.variant.adapters.values():
        assert adapter.values.all() and adapter.effective_parameters() == adapter.closed_form()
        assert adapter.rank == int(torch.linalg.matrix_rank(adapter.delta())) > 2


def test_while_gradients_are_collected_they_are_no_part_of_the_norm_that_clips():
    loop = looped().until(4)
    loop.variant.on_step_begin(loop.step(5))
    x, y = batch(5)
    (loop.model(x) - y).square().mean().backward()
    assert all(a.gradient is not None and a.values.grad is None for a in loop.variant.adapters.values())
    assert all(adapter.weight.grad is None for adapter in loop.variant.adapters.values())


def test_values_gradients_and_moments_have_as_many_entries_as_the_support():
    loop = looped().until(30)
    for adapter in loop.variant.adapters.values():
        moments = [tensor for tensor in loop.optimizer.state[adapter.values].values() if tensor.ndim]
        assert [tuple(tensor.shape) for tensor in moments] == [(len(adapter.indices),)] * 2
        assert sum(tensor.nbytes for tensor in moments) == 2 * 8 * len(adapter.indices)
    assert loop.variant.state_dict()["sums"] == {} and all(a.gradient is None for a in loop.variant.adapters.values())


def test_a_restart_begins_anew_with_the_support():
    loop = looped(restart=True)
    adapters = loop.variant.adapters
    start = {name: adapter.A.detach().clone() for name, adapter in adapters.items()}
    loop.until(7)
    for name, adapter in adapters.items():
        assert torch.equal(adapter.A, start[name]) and not adapter.B.any() and not adapter.values.any()
        assert adapter.settled and not {adapter.A, adapter.B, adapter.values} & loop.optimizer.state.keys()
    assert loop.variant.state_dict()["start"] == {}
    loop.until(8)
    assert all(float(loop.optimizer.state[adapter.B]["step"]) == 1 for adapter in adapters.values())


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpointing_it_ends_where_it_does_without(reentrant: bool):
    def recomputed(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)

    plain, run = looped(statistic="mean").until(20), looped(statistic="mean", forward=recomputed).until(20)
    for name, adapter in plain.variant.adapters.items():
        assert torch.equal(adapter.indices, run.variant.adapters[name].indices)
        assert close(run.variant.adapters[name].delta(), adapter.delta())


def test_a_step_split_into_batches_chooses_and_trains_as_a_whole_one():
    plain, run = looped().until(20), looped(micro=4).until(20)
    for name, adapter in plain.variant.adapters.items():
        assert torch.equal(adapter.indices, run.variant.adapters[name].indices)
        assert close(run.variant.adapters[name].delta(), adapter.delta())


def test_a_skipped_step_leaves_nothing_in_the_statistic_and_the_next_one_takes_its_place():
    def poisoned(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = batch(step)
        return (x * math.nan, y) if step == 6 else (x, y)

    plain, run = looped().until(5), looped(data=poisoned, skipped=[6]).until(6)
    for name, sums in plain.variant.state_dict()["sums"].items():
        assert torch.equal(run.variant.state_dict()["sums"][name], sums)
    run.until(7)
    assert run.variant.state_dict()["collected"] == 2 and not run.variant.state_dict()["chosen"]
    assert all(bool(sums.isfinite().all()) for sums in run.variant.state_dict()["sums"].values())
    run.until(8)
    assert run.variant.state_dict()["chosen"]


def test_a_run_of_skipped_steps_ends_with_an_error():
    loop = looped(total=20, skipped=range(5, 21)).until(20)
    with pytest.raises(RuntimeError, match="mask: none was chosen, because too few steps had finite gradients"):
        loop.variant.on_train_end(loop.step(20))


def test_a_gradient_that_is_not_finite_chooses_nothing():
    loop = looped(warmup_steps=0, collect_steps=1)
    loop.variant.on_step_begin(loop.step(1))
    (loop.model(batch(1)[0]).sum() * math.nan).backward()
    loop.variant.on_gradients(loop.step(1))
    with pytest.raises(ValueError, match="mask: a score is not finite"):
        loop.variant.on_update(loop.step(1))


def test_what_is_saved_in_the_middle_of_the_collection_goes_on_to_the_same_support():
    straight, first, second = (attached(restart=True) for _ in range(3))
    contract.train(straight, 8)
    contract.train(first, 4)
    saved = contract.through_disk(training_state.weights(first.model, first.variant, first.optimizer))
    assert saved["variant"]["collected"] == 2 and len(saved["variant"]["sums"]) == len(saved["variant"]["start"]) == 4
    training_state.restore_weights(second.model, second.variant, saved)
    optimizer = contract.through_disk(training_state.optimizer_state(first.model, first.optimizer))
    training_state.restore_optimizer(second.model, second.optimizer, optimizer)
    training_state.restore_schedule(second.scheduler, training_state.schedule_state(first.scheduler))
    second.steps_done = 4
    contract.train(second, 8)
    for name, adapter in straight.variant.adapters.items():
        assert torch.equal(adapter.indices, second.variant.adapters[name].indices)
    assert torch.equal(straight.output(), second.output())


@pytest.mark.parametrize(("layer", "x"), OF_EVERY_KIND)
def test_on_every_kind_of_layer_output_and_gradients_are_those_of_the_dense_matrix(layer: nn.Module, x: torch.Tensor):
    base = copy.deepcopy(layer).double()
    x = x.double() if x.is_floating_point() else x
    adapter = LowRankAndSparse(copy.deepcopy(base), 2, 0.5, 0.0, 20)
    assert torch.equal(adapter(x), base(x))
    for settled in (False, True):
        nn.init.normal_(adapter.B)
        if settled:
            adapter.set_indices(torch.randperm(base.weight.numel(), generator=torch.Generator().manual_seed(0))[:20])
            adapter.settled = True
            nn.init.normal_(adapter.values)
        adapter.watched, adapter.gradient = True, None
        dense = copy.deepcopy(base)
        dense.weight.data += adapter.delta_weight()
        torch.testing.assert_close(adapter(x), dense(x), rtol=1e-11, atol=1e-12)
        adapter(x).square().sum().backward()
        dense(x).square().sum().backward()
        dense.weight.data = dense.weight.grad
        torch.testing.assert_close(adapter.gradient, matrix(dense), rtol=1e-9, atol=1e-11)
        if settled:
            torch.testing.assert_close(adapter.values.grad, adapter.gradient.flatten()[adapter.indices])
        else:
            assert adapter.values.grad is None
    unmerged = adapter(x)
    adapter.merge()
    torch.testing.assert_close(adapter(x), unmerged, rtol=1e-11, atol=1e-12)


def test_above_half_precision_a_small_value_is_not_rounded_away_and_the_gradient_is_float32():
    adapter = LowRankAndSparse(nn.Linear(8, 6, bias=False, dtype=torch.bfloat16), 1, 1.0, 0.0, 1)
    x = torch.ones(1, 8, dtype=torch.bfloat16)
    adapter.watched = True
    adapter(x).sum().backward()
    assert adapter.gradient is not None and adapter.gradient.dtype == torch.float32
    adapter.settled = True
    adapter.values.data.fill_(1e-3)
    torch.testing.assert_close(adapter.update(x)[0, 0], torch.tensor(1e-3))


def test_dropout_acts_on_the_low_rank_part_alone():
    adapter = LowRankAndSparse(nn.Linear(8, 6), 2, 1.0, 0.9, 5).train()
    adapter.settled = True
    nn.init.normal_(adapter.values)
    x = torch.randn(3, 8)
    assert torch.equal(adapter(x), adapter(x)), "with B = 0 nothing is random"
    nn.init.normal_(adapter.B)
    assert not torch.equal(adapter(x), adapter(x))


def test_the_rank_is_that_of_both_parts_up_to_the_size():
    adapter = LowRankAndSparse(nn.Linear(6, 5, dtype=torch.float64), 2, 1.0, 0.0, 3)
    adapter.settled = True
    for parameter in (adapter.A, adapter.B, adapter.values):
        nn.init.normal_(parameter)
    for places, rank in (([0, 1, 2], 3), ([0, 7, 8], 4), ([0, 7, 14], 5)):  # one row; two rows; three of each
        adapter.set_indices(torch.tensor(places))
        assert adapter.rank == rank == int(torch.linalg.matrix_rank(adapter.delta()))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("budget", [820, 901])
def test_a_budget_is_met_to_the_entry_and_shared_as_asked(budget: int, share: float):
    model = nn.ModuleDict({"a": nn.Linear(40, 30), "b": nn.Linear(20, 10)})  # 70 and 30 parameters a rank
    if budget * (1 - share) < 100:
        with pytest.raises(ValueError, match=rf"budget: {budget} parameters, allowed for these targets: 1000 … 3800"):
            RoSA(budget=budget, sparse_share=share).check(model)
        return
    variant = RoSA(budget=budget, sparse_share=share)
    variant.check(model)
    low_rank = sum(variant._ranks[name] * sum(size(layer)) for name, layer in model.items())
    entries = sum(variant._entries.values())
    assert low_rank + entries == budget
    assert 0 <= entries - budget * share < 71, "what no rank fits into goes to the entries"
    # 1200 and 200 entries
    assert variant._entries["a"] == pytest.approx(entries * 6 / 7, abs=1)


def test_a_budget_is_what_is_left_at_the_end():
    run = contract.train(contract.attach(RoSA, {"budget": 163, "warmup_steps": 2}))
    parameters = [p for n, p in run.model.named_parameters() if p.requires_grad and not n.startswith(HEAD)]
    assert run.variant.effective_parameters() == 163 == sum(p.numel() for p in parameters)
    assert len(set(run.variant._ranks.values())) <= 2


def test_a_layer_that_gets_no_entry_stays_lora():
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 60)).double()
    variant = RoSA(budget=65, sparse_share=0.01, warmup_steps=0, alpha=1.0)
    data = torch.ones(2, 2, dtype=torch.float64), torch.zeros(2, 60, dtype=torch.float64)
    Loop(variant, variant.attach(model), 4, data=lambda step: data).until(3)
    assert [len(adapter.values) for adapter in variant.adapters.values()] == [0, 1]
    assert variant.effective_parameters() == 65 and variant.ranks() == {"0": 1, "1": 1}


def test_dropout_on_row_numbers_is_refused():
    with pytest.raises(ValueError, match=r"dropout: 0.1 on a Embedding, allowed: 0"):
        LowRankAndSparse(nn.Embedding(10, 6), 2, 1.0, 0.1, 3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"rank": 0}, r"rank: 0, allowed: a whole number ≥ 1"),
        ({"alpha": 0.0}, r"alpha: 0.0, allowed: a number > 0"),
        ({"dropout": 1.0}, r"dropout: 1.0, allowed: 0 ≤ dropout < 1"),
        ({"density": 0.0}, r"density: 0.0, allowed: a number > 0"),
        ({"density": 1.5}, r"density: 1.5, allowed: 0 < density ≤ 1"),
        ({"warmup_steps": -1}, r"warmup_steps: -1, allowed: a whole number ≥ 0"),
        ({"collect_steps": 0}, r"collect_steps: 0, allowed: a whole number ≥ 1"),
        ({"statistic": "max"}, r"statistic: 'max', allowed: squared_mean, mean"),
        ({"rank": 4, "budget": 500}, r"rank: 4 with budget: 500"),
        ({"density": 0.1, "budget": 500}, r"density: 0.1 with budget: 500"),
        ({"sparse_share": 0.3}, r"sparse_share: 0.3 without a budget, allowed: 0.5"),
        ({"sparse_share": 0.0, "budget": 500}, r"sparse_share: 0.0, allowed: a number > 0"),
        ({"sparse_share": 1.0, "budget": 500}, r"sparse_share: 1.0, allowed: 0 ≤ sparse_share < 1"),
    ],
)
def test_what_it_refuses(params: dict, message: str):
    with pytest.raises(ValueError, match=message):
        RoSA(**params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"rank": 9}, r"rank: 9 for a layer of size 12×8, allowed: 1 … 8"),
        ({"density": 0.01}, r"density: 0.01 leaves no entry in layer.0.fc1 of size 12×8, allowed: at least 0.01"),
        ({"budget": 159}, r"budget: 159 parameters, allowed for these targets: 160 … 1024"),
        ({"budget": 1025}, r"budget: 1025 parameters, allowed for these targets: 160 … 1024"),
        ({"budget": 900, "sparse_share": 0.9}, r"sparse_share: 0.9 of budget: 900 makes 820 entries, allowed: .* 384"),
    ],
)
def test_what_the_layers_do_not_allow(params: dict, message: str):
    with pytest.raises(ValueError, match=message):
        RoSA(**params).check(contract.Toy(), HEAD)


def test_a_collection_that_does_not_end_before_the_run_does_is_refused():
    with pytest.raises(ValueError, match=r"warmup_steps: 9 and collect_steps: 3, allowed: together fewer than .* 12"):
        RoSA(warmup_steps=9, collect_steps=3).plan(STEPS)
    RoSA(warmup_steps=8, collect_steps=3).plan(STEPS)


def test_a_layer_that_takes_no_part_is_named():
    loop = looped(warmup_steps=0)
    loop.variant.on_step_begin(loop.step(1))
    with pytest.raises(ValueError, match=r"mask: fc1 is not part of the loss; exclude it"):
        loop.variant.on_gradients(loop.step(1))
