"""Any score with any allocator: which pairs there are, what they are equal to, and what each part decides."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

from tests.variants.found import CONF
from trainer.instantiate import make
from variants.adalora import AdaLoRA
from variants.allocated import Allocated
from variants.core.adapters.svd_triplets import Triplets
from variants.core.allocation.allocators import ALLOCATORS, Before, Grow, Layers, Move
from variants.core.allocation.budget import Budget, fill
from variants.core.allocation.score import Score
from variants.core.allocation.scores import SCORES
from variants.testing.contract import STEPS, attach, train

ADALORA = {"rank": 4, "target_rank": 2, "orthogonality": 0.1, "initial_steps": 2, "final_steps": 4, "interval": 2}
AFTER = {"allocator": "after", "rank": 4, "target_rank": 2}
GROW = {"allocator": "grow", "rank": 1, "target_rank": 3, "final_steps": 3}


@pytest.mark.parametrize("score", ["sensitivity_uncertainty", "sensitivity", "magnitude"])
@pytest.mark.parametrize(
    "settings", [{}, {"interval": 3, "dropout": 0.1}, {"final_steps": 0}, {"budget": 150}], ids=str
)
def test_adaloras_score_and_allocator_are_adalora_to_the_bit(score, settings):
    ours, theirs = (history(cls, {"score": score, **ADALORA, **settings}) for cls in (Allocated, AdaLoRA))
    assert [ranks for ranks, _ in ours[0]] == [ranks for ranks, _ in theirs[0]]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(ours[0], theirs[0], strict=True))
    for name, adapter in ours[1].items():
        for part in ("A", "B", "e"):
            assert torch.equal(getattr(adapter, part), getattr(theirs[1][name], part))


def history(cls: type, settings: dict) -> tuple[list, dict]:
    """Ranks and outputs after every step of a run, and its adapters."""
    run, found = attach(cls, settings), []
    for step in range(1, STEPS + 1):
        train(run, step)
        found.append((run.variant.ranks(), run.output()))
    return found, run.variant.adapters


# -- pairs -----------------------------------------------------------------------------------------


def refused(score: str, allocator: str) -> str | None:
    """The error of a pair; None if there is none."""
    try:
        Allocated(score=score, allocator=allocator, **({"rank": 1} if allocator == "grow" else {}))
    except ValueError as error:
        return str(error)
    return None


def test_every_pair_composes_or_says_why_it_has_no_meaning():
    found = {(score, allocator): refused(score, allocator) for score in SCORES for allocator in ALLOCATORS}
    # Of one layer a number can't order the components; before training most measure zero.
    for score in ("weight_gradient", "spectral_entropy"):
        for allocator in ("prune", "move", "after"):
            assert "it gives one number to a layer and orders none of its components" in found.pop((score, allocator))
    for score in SCORES:
        if score not in ("gradient_norm", "weight_gradient", "random", "uniform"):
            text = found.pop((score, "before"))
            assert text.endswith("allowed: gradient_norm, weight_gradient, random, uniform")
    for allocator in ("prune", "grow", "move"):
        assert "it rewrites the components, which ends" in found.pop(("singular_value", allocator))
    assert "it prefers no layer, so no rank would move" in found.pop(("uniform", "move"))
    assert set(found.values()) == {None} and len(found) > 40


@pytest.mark.slow
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_every_pair_that_composes_trains_and_meets_its_budget(allocator):
    ranks = {"grow": {"rank": 1, "target_rank": 3}, "prune": {"rank": 4, "target_rank": 2}, "after": AFTER}
    for score in SCORES:
        for form in ("triplets", "lora"):
            if refused(score, allocator) or (form == "lora" and SCORES[score].diagonal):
                continue
            settings = {"score": score, "allocator": allocator, "form": form, "target_rank": 3}
            run = train(attach(Allocated, {**settings, **ranks.get(allocator, {})}))
            expected = 4 * ranks.get(allocator, {"target_rank": 3})["target_rank"]
            assert sum(run.variant.ranks().values()) == expected, (score, form)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "magnitud"}, "score: 'magnitud', allowed: ablation_loss, sensitivity, "),
        ({"score": "no.such.Score"}, "score: 'no.such.Score', allowed: .*No module named 'no'"),
        ({"score": "variants.lora.LoRA"}, "score: 'variants.lora.LoRA', allowed: .*a subclass of variants.core"),
        ({"allocator": "shrink"}, "allocator: 'shrink', allowed: prune, grow, move, before, after"),
        ({"score": "magnitude", "form": "lora"}, "score: magnitude with form: lora, which has no e"),
        ({"form": "lora", "orthogonality": 0.1}, "orthogonality: 0.1 with form: lora, allowed: 0.0"),
        ({"allocator": "grow"}, "rank: 12 with allocator: grow, allowed: at most target_rank, 8"),
        ({"rank": 2}, "target_rank: 8, allowed: at most rank, which is 2"),
        ({"allocator": "move", "rank": 9}, "rank: 9 with allocator: move, allowed: 12; it has no effect there"),
        ({"exchange": 2}, "exchange: 2 with score: .* and allocator: prune, allowed: 4"),
        ({"score": "random", "beta1": 0.5}, "beta1: 0.5 with score: random and allocator: prune, allowed: None"),
        ({"score": "sensitivity", "beta2": 0.5}, "beta2: 0.5 with score: sensitivity"),
        ({"allocator": "after", "interval": 2}, "interval: 2 with score: .* and allocator: after, allowed: 1"),
        ({**GROW, "final_steps": 0}, "final_steps: 0 with allocator: grow, allowed: ≥ 1"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Allocated(**settings)


def test_a_score_of_ones_own_is_one_class(monkeypatch):
    @dataclass(kw_only=True)
    class Backwards(Score):
        """The last component of a layer matters most."""

        def scores(self, adapters):
            return {name: torch.arange(len(a.A), dtype=torch.float64) for name, a in adapters.items()}

    module = ModuleType("somebody")
    module.Backwards = Backwards
    monkeypatch.setitem(sys.modules, "somebody", module)
    run = attach(Allocated, {"score": "somebody.Backwards", **AFTER, "form": "lora"})
    train(run, STEPS - 1)
    before = {name: adapter.A.detach().clone() for name, adapter in run.variant.adapters.items()}
    train(run)
    for name, adapter in run.variant.adapters.items():
        torch.testing.assert_close(adapter.A, before[name][2:], atol=0.2, rtol=0)
        assert adapter.rank == 2


# -- scores ----------------------------------------------------------------------------------------


def toy_with(score: Score, **numbers: float) -> tuple[Score, dict[str, Triplets]]:
    """A layer of two components whose entries are all one number each: A 1, B 2, e 3, and their gradients."""
    adapter = Triplets(torch.nn.Linear(2, 2, bias=False), 2, 1.0, 0.0)
    for part, value in (("A", 1.0), ("B", 2.0), ("e", 3.0)):
        parameter = getattr(adapter, part)
        parameter.data.fill_(value)
        parameter.grad = torch.full_like(parameter, numbers.get(part, 0.0))
    return score, {"layer": adapter}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sensitivity", 0.15 * (3 * 7 + 1 * 5 + 2 * 6)),
        ("sensitivity_uncertainty", 0.15 * 0.15 * 0.85 * (21**2 + 5**2 + 12**2)),
        ("sensitivity_ratio", 3 / 0.85),
        ("gradient_norm", 0.15 * (2 * 25 + 2 * 36 + 49) ** 0.5),
        ("fisher", 0.15 * (2 * 25 + 2 * 144 + 441)),
        ("frobenius_share", 0.1 * 0.5),
        ("magnitude", 3.0),
        ("component_norm", 3 * 2**0.5 * 8**0.5),
    ],
)
def test_worked_scores_of_components(name, expected):
    score, adapters = toy_with(SCORES[name](), A=5.0, B=6.0, e=7.0)
    score.update(adapters)
    torch.testing.assert_close(score.scores(adapters)["layer"], torch.full((2,), expected), rtol=2e-5, atol=0)


def test_worked_spectral_entropies():
    score, adapters = toy_with(SCORES["spectral_entropy"]())
    assert score.scores(adapters)["layer"].item() == pytest.approx(1.0)
    adapters["layer"].e.data = torch.tensor([3.0, 0.0])
    assert score.scores(adapters)["layer"].item() == 0.0
    adapters["layer"].e.data = torch.tensor([2.0])
    assert score.scores(adapters)["layer"].item() == 1.0, "FlexLoRA's code has no number for a layer of rank 1"


def test_the_gradient_of_a_weight_is_autograds():
    run = attach(Allocated, {"score": "weight_gradient", "allocator": "before", "target_rank": 2})
    weights = {name: adapter.base.weight for name, adapter in run.variant.adapters.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    expected = {}

    def watch(event, run):
        if event == "gradients":
            expected.update({name: 0.15 * (w * w.grad).abs().mean() for name, w in weights.items()})

    train(run, 1, watch=watch)
    for name, found in run.variant._score.scores(run.variant.adapters).items():
        torch.testing.assert_close(found[0], expected[name])


def test_a_random_allocation_is_that_of_its_seed():
    settings = {"score": "random", **AFTER}
    ranks = [train(attach(Allocated, settings, seed=seed)).variant.ranks() for seed in (0, 0, 1, 2)]
    assert ranks[0] == ranks[1] and len({str(found) for found in ranks}) > 1


@pytest.mark.parametrize("settings", [AFTER, ADALORA, GROW, {"allocator": "before", "target_rank": 3}], ids=str)
def test_a_uniform_score_keeps_ranks_even(settings):
    run = train(attach(Allocated, {"score": "uniform", **settings}))
    assert set(run.variant.ranks().values()) == {settings["target_rank"]}


# -- allocators ------------------------------------------------------------------------------------


def layers_of(ranks: dict[str, int], target: int, most: int = 9, **prices: int) -> Layers:
    own = {name: prices.get(name, 1) for name in ranks}
    start = sum(rank * own[name] for name, rank in ranks.items())
    return Layers(ranks, dict.fromkeys(ranks, most), own, start, Budget(target, bool(prices)))


def test_once_before_training_ranks_follow_the_scores():
    scores = {"a": torch.tensor([6.0]), "b": torch.tensor([3.0]), "c": torch.tensor([0.0])}
    now = layers_of({"a": 3, "b": 3, "c": 3}, 9)
    found = Before().decide(0, 10, scores, now)
    ranks = {name: len(found.kept[name]) + found.gained[name] for name in scores}
    assert ranks == {"a": 6, "b": 2, "c": 1}
    dear = Before().decide(0, 10, scores, layers_of({"a": 2, "b": 2, "c": 2}, 10, a=4))
    ranks = {name: len(dear.kept[name]) + dear.gained[name] for name in scores}
    assert ranks == {"a": 2, "b": 1, "c": 1}, "a's second rank costs 4 of the 4 that are left"


def test_growth_shares_what_is_missing_among_its_rounds():
    grow = Grow(initial_steps=1, final_steps=2, interval=2)
    assert grow.rounds(9) == [2, 4, 6]
    scores = {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}
    gained = [grow.decide(t, 9, scores, layers_of({"a": 1, "b": 1}, 9)).gained for t in grow.rounds(9)]
    assert [sum(found.values()) for found in gained] == [2, 4, 7]
    assert gained[0] == {"a": 1, "b": 1} and gained[2] == {"a": 3, "b": 4}


def test_ranks_fill_the_room_in_the_order_of_the_layers():
    assert fill(["a", "b"], {"a": 1, "b": 1}, {"a": 2, "b": 9}, {"a": 2, "b": 3}, 9) == {"a": 1, "b": 2}


def test_a_pool_is_exchanged_by_halves():
    scores = {"a": torch.tensor([1.0, 9.0]), "b": torch.tensor([5.0, 9.0])}
    found = Move(exchange=4, pool=1, interval=1).exchange_of(4, scores, layers_of({"a": 2, "b": 2}, 4))
    assert found.kept == {"a": [1], "b": [0, 1]} and found.gained == {"a": 0, "b": 1}


@pytest.mark.parametrize("form", ["triplets", "lora"])
def test_para_keeps_the_largest_singular_values_of_all_layers(form):
    settings = {"score": "singular_value", "form": form, **AFTER}
    run, peak = attach(Allocated, settings), attach(Allocated, settings | {"target_rank": 4})
    train(run), train(peak)
    full = {name: torch.linalg.svdvals(a.delta().double())[:4] for name, a in peak.variant.adapters.items()}
    threshold = torch.cat(list(full.values())).sort(descending=True).values[7]
    for name, adapter in run.variant.adapters.items():
        kept = full[name][full[name] >= threshold]
        assert adapter.rank == len(kept)
        torch.testing.assert_close(
            torch.linalg.svdvals(adapter.delta().double())[: len(kept)], kept, rtol=1e-3, atol=1e-6
        )


def test_what_is_cut_after_training_was_there_until_the_last_step():
    run = attach(Allocated, {"score": "magnitude", **AFTER})
    train(run, STEPS - 1)
    assert set(run.variant.ranks().values()) == {4} and not run.variant.is_final_form(run.step(STEPS - 1))
    train(run)
    assert sum(run.variant.ranks().values()) == 8 and run.variant.is_final_form(run.step(STEPS))


@pytest.mark.parametrize("form", ["triplets", "lora"])
def test_new_ranks_leave_the_function_as_it_is(form):
    run = attach(Allocated, {"form": form, "score": "gradient_norm", **GROW})
    train(run, 1)
    before, ranks = run.output(), run.variant.ranks()
    for adapter in run.variant.adapters.values():
        run.variant._append(adapter, 2, run.optimizer)
    assert run.variant.ranks() == {name: rank + 2 for name, rank in ranks.items()}
    torch.testing.assert_close(run.output(), before)


def test_the_yaml_of_para_is_such_a_composition():
    from omegaconf import OmegaConf

    variant = make("variant", OmegaConf.load(CONF / "para.yaml"))
    assert isinstance(variant, Allocated)
    assert (variant.score, variant.allocator, variant.form) == ("singular_value", "after", "lora")
