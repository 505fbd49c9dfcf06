"""Any source in any scope by any schedule: which triples there are, what they are equal to, what they end with."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.variants.pairwise import covering
from variants.core.masks.schedules import SCHEDULES
from variants.core.masks.scopes import SCOPES
from variants.core.masks.sources import SOURCES, Source
from variants.core.variant import Variant
from variants.fish import FISH
from variants.lift import LIFT
from variants.lt_sft import LTSFT
from variants.masked import Masked
from variants.neuroada import NeuroAda
from variants.shira import SHiRA
from variants.testing.contract import HEAD, STEPS, Toy, attach, train
from variants.testing.toys import data

SIDES, ROWS, SIZE = 4 * 20, 4 * 10, 4 * 96  # of the toy's four layers

NAMED: dict[str, tuple[type[Variant], dict[str, Any], dict[str, Any]]] = {
    "shira": (SHiRA, {"rank": 2, "seed": 3}, {"source": "random", "seed": 3, "share": "sides", "budget": 2 * SIDES}),
    "shira, by magnitude": (SHiRA, {"rank": 1, "mask": "magnitude"}, {"share": "sides", "budget": SIDES}),
    "shira, of a budget": (SHiRA, {"budget": 101}, {"source": "random", "share": "sides", "budget": 101}),
    "lift": (
        LIFT,
        {"rank": 1, "filter_rank": 2, "interval": 4},
        {"source": "low_rank", "filter_rank": 2, "share": "sides", "budget": SIDES, "schedule": "refresh"}
        | {"initial_steps": 3, "interval": 4},
    ),
    "neuroada": (NeuroAda, {"per_row": 2}, {"scope": "row", "share": "rows", "budget": 2 * ROWS}),
    "gps": (
        NeuroAda,
        {"per_row": 3, "score": "gradient", "batches": 2},
        {"source": "gradient", "collect": 2, "scope": "row", "share": "rows", "budget": 3 * ROWS},
    ),
    "fish": (
        FISH,
        {"density": 0.2, "samples": 10, "biases": False},
        {"source": "fisher", "samples": 10, "scope": "global", "density": 0.2},
    ),
    "fish, true": (
        FISH,
        {"density": 0.1, "samples": 3, "biases": False, "fisher": "true"},
        {"source": "true_fisher", "samples": 3, "scope": "global", "density": 0.1},
    ),
    "lt_sft": (
        LTSFT,
        {"density": 0.3, "full_steps": 4, "l1": 0.0, "biases": False},
        {"source": "change", "scope": "global", "density": 0.3, "initial_steps": 4},
    ),
}


@pytest.mark.parametrize(("method", "settings", "triple"), NAMED.values(), ids=NAMED)
def test_a_named_methods_triple_is_that_method_to_the_bit(method, settings, triple) -> None:
    theirs, ours = attach(method, settings), attach(Masked, triple)
    for step in range(1, STEPS + 1):
        train(theirs, step), train(ours, step)
        assert torch.equal(theirs.output(), ours.output()), f"after step {step}"
    for name, adapter in theirs.variant.adapters.items():
        assert torch.equal(ours.variant.adapters[name].indices, adapter.indices)
        assert torch.equal(ours.variant.adapters[name].delta(), adapter.delta()) and adapter.delta().any()
    assert ours.variant.effective_parameters() == theirs.variant.effective_parameters()


# -- triples ---------------------------------------------------------------------------------------

FITTING = {"density": 0.3, "interval": 3, "initial_steps": 3, "filter_rank": 2, "samples": 4, "block": 2}


def refused(settings: dict[str, Any]) -> str:
    """The error of these settings; empty if there is none."""
    try:
        Masked(**settings)
    except ValueError as error:
        return str(error)
    return ""


def composed(source: str, scope: str, schedule: str) -> dict[str, Any] | str:
    """The settings of a triple with those of `FITTING` that have an effect there, or why there is none."""
    settings = {"source": source, "scope": scope, "schedule": schedule, "density": 0.3}
    if why := refused(settings):
        return why
    return settings | {name: value for name, value in FITTING.items() if not refused(settings | {name: value})}


TRIPLES = {(a, b, c): composed(a, b, c) for a in SOURCES for b in SCOPES for c in SCHEDULES}


def test_every_triple_composes_or_says_why_it_has_no_meaning() -> None:
    refused = {triple: text for triple, text in TRIPLES.items() if isinstance(text, str)}
    assert all(len(text.splitlines()) == 1 for text in refused.values())
    for source, scope, schedule in TRIPLES:
        text = refused.pop((source, scope, schedule), None)
        moves = schedule in ("rigl", "refresh", "localise")
        if source in ("true_fisher", "activation") and moves:
            assert text and "it is measured before training alone; allowed: fixed, gradual" in text
        elif source == "change" and moves:
            assert text and "an entry that is not trained has not changed" in text
        elif (source, schedule) == ("magnitude", "rigl"):
            assert text and "the order of entries that are not trained never changes" in text
        elif (scope, schedule) == ("subnet", "rigl"):
            why = "a part of rows × columns can't be exchanged; allowed: tensor, global, row, block, channel"
            assert text == f"scope: subnet with schedule: rigl, where {why}"
        elif scope in ("global", "block") and schedule == "localise":
            assert text and "it compares entries of all layers, and these choose one at a time" in text
        else:
            assert text is None
    assert not refused and len(TRIPLES) == 270


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
def test_triples_that_compose_train_and_meet_their_budget(scope: str) -> None:
    parts = {"source": list(SOURCES), "scope": list(SCOPES), "schedule": list(SCHEDULES)}
    for number, triple in enumerate(covering(parts)):
        settings = TRIPLES[triple]
        if triple[1] != scope or isinstance(settings, str):
            continue
        run = train(attach(Masked, settings, kind=("Linear", "Conv2d in groups")[number % 2]))
        total = int(0.3 * sum(a.out_features * a.in_features for a in run.variant.adapters.values()))
        unit = {"block": 4, "channel": 12, "subnet": 12}.get(scope, 1)
        entries = sum(len(a.values) for a in run.variant.adapters.values())
        assert total - unit < entries <= total, triple
        assert run.variant.effective_parameters() == run.variant.closed_form() == entries
        if triple[2] not in ("refresh", "localise"):
            changed = sum(int(torch.count_nonzero(a.delta())) for a in run.variant.adapters.values())
            assert 0 < changed <= entries, triple
        run.variant.on_train_end(run.step(STEPS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "magnitud"}, "source: 'magnitud', allowed: random, magnitude, "),
        ({"source": "no.such.Source"}, "source: 'no.such.Source', allowed: .*No module named 'no'"),
        (
            {"source": "variants.lora.LoRA"},
            "source: 'variants.lora.LoRA', allowed: .*a subclass of variants.core.masks",
        ),
        ({"scope": "layer"}, "scope: 'layer', allowed: tensor, global, row, block, subnet, channel"),
        ({"schedule": "cyclic"}, "schedule: 'cyclic', allowed: fixed, gradual, rigl, refresh, localise"),
        ({"share": "columns"}, "share: 'columns', allowed: entries, sides, rows"),
        ({"axis": "rows"}, "axis: 'rows', allowed: output, input"),
        ({"density": 1.5}, "density: 1.5, allowed: 0 < density ≤ 1"),
        ({"density": 0.1, "budget": 30}, "density: 0.1 with budget: 30"),
        ({"seed": 1}, "seed: 1 with source: magnitude, allowed: 0; it has no effect there"),
        ({"samples": 8, "source": "gradient"}, "samples: 8 with source: gradient"),
        ({"samples": 8, "source": "fisher", "schedule": "rigl"}, "samples: 8 with schedule: rigl"),
        ({"collect": 2, "source": "fisher"}, "collect: 2 with schedule: fixed"),
        ({"collect": 2, "source": "gradient", "schedule": "rigl"}, "collect: 2 with initial_steps: 1 .* at most 1"),
        ({"share": "sides", "scope": "global"}, "share: 'sides' with scope: global"),
        ({"block": 2}, "block: 2 with scope: tensor"),
        ({"group": 2, "scope": "row"}, "group: 2 with scope: row"),
        ({"initial_steps": 5}, "initial_steps: 5 with schedule: fixed"),
        ({"regrow": 0.5, "schedule": "refresh"}, "regrow: 0.5 with schedule: refresh"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Masked(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "change", "initial_steps": 12}, "initial_steps: 12, allowed: fewer than the run's 12 steps"),
        ({"schedule": "refresh", "interval": 11}, "interval: 11, allowed: at most the 10 steps from 1"),
        ({"schedule": "gradual", "final_steps": 11}, "schedule: 1 initial and 11 final steps do not fit into 12"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Masked(**settings).plan(12)


def test_a_source_of_ones_own_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(kw_only=True)
    class LastColumn(Source):
        def of_weight(self, name, weight, choice=0):
            return torch.arange(weight.shape[1]).expand(weight.shape).float()

    module = ModuleType("somebody")
    module.LastColumn = LastColumn
    monkeypatch.setitem(sys.modules, "somebody", module)
    run = attach(Masked, {"source": "somebody.LastColumn", "scope": "row", "share": "rows", "budget": ROWS})
    for adapter in run.variant.adapters.values():
        assert set((adapter.indices % adapter.in_features).tolist()) == {adapter.in_features - 1}


# -- in training -----------------------------------------------------------------------------------


def test_an_exchange_is_rigls() -> None:
    settings = {
        "source": "gradient",
        "schedule": "rigl",
        "density": 0.3,
        "initial_steps": 3,
        "interval": 4,
        "regrow": 0.5,
    }
    run = train(attach(Masked, settings, torch.float64), 2)
    toy, seen = Toy(torch.float64), {}

    def watch(event: str, run) -> None:
        """The dense gradients at the weights of step 3."""
        if event == "begun":
            toy.load_state_dict(
                {n.replace(".base", ""): p for n, p in run.toy.state_dict().items() if "values" not in n}
            )
            for name, adapter in run.variant.adapters.items():
                toy.get_submodule(name).weight.data += adapter.delta()
            x, y = data(torch.float64)
            torch.nn.functional.mse_loss(toy(x), y.double()).backward()
            seen.update({name: adapter.indices.clone() for name, adapter in run.variant.adapters.items()})

    train(run, 3, watch=watch)
    fraction = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 3 / 11))) / 2
    for name, adapter in run.variant.adapters.items():
        before, after = set(seen[name].tolist()), set(adapter.indices.tolist())
        new, gone = after - before, before - after
        assert len(new) == len(gone) == round(float(fraction) * len(before)) > 0
        gradient = toy.get_submodule(name).weight.grad.flatten().abs()
        outside = set(range(96)) - after - before
        assert min(gradient[list(new)]) >= max(gradient[list(outside)])
        delta = adapter.delta().flatten()
        assert not delta[list(new | gone)].any() and delta[list(before & after)].all()
        slots = [i for i, at in enumerate(adapter.indices.tolist()) if at in new]
        assert not run.optimizer.state[adapter.values]["exp_avg"][slots].any()


def test_a_rewind_takes_back_the_head_and_all_entries() -> None:
    run = attach(Masked, {"source": "change", "scope": "row", "density": 0.3, "initial_steps": 4})
    head = run.toy.head.weight.detach().clone()
    train(run, 3)
    assert not torch.equal(run.toy.head.weight, head) and not run.variant.is_final_form(run.step(3))
    train(run, 4)
    assert torch.equal(run.toy.head.weight, head) and not run.optimizer.state and run.variant.is_final_form(run.step(4))
    assert not any(adapter.delta().any() for adapter in run.variant.adapters.values())


def test_localised_layers_choose_in_turn() -> None:
    settings = {"source": "random", "schedule": "localise", "density": 0.2, "initial_steps": 1, "interval": 2}
    run, moved = attach(Masked, settings), []
    for step in range(1, 10):
        before = {name: adapter.indices for name, adapter in run.variant.adapters.items()}
        train(run, step)
        moved.append([n for n, a in run.variant.adapters.items() if not torch.equal(a.indices, before[n])])
    names = list(run.variant.adapters)
    assert moved == [[names[0]], [], [names[1]], [], [names[2]], [], [names[3]], [], [names[0]]]
    assert run.variant.report()["changed_entries"] > run.variant.effective_parameters()


def test_a_finished_run_is_taken_up_with_its_mask() -> None:
    settings = {"source": "fisher", "schedule": "gradual", "density": 0.3, "interval": 2}
    run = train(attach(Masked, settings))
    other = Masked(**settings)
    other.attach(Toy(), HEAD)
    other.start_from(run.variant.state_dict())
    for name, adapter in run.variant.adapters.items():
        assert torch.equal(other.adapters[name].indices, adapter.indices)
    assert other.is_final_form(run.step(1)) and not other._sums
