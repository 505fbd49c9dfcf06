"""Every method of conf/variant in the loop: cut off, evaluated, checkpointed, accumulated, it trains as it would have.

The contract checks the same of a method on toys; here it is the trainer that calls the hooks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import get_class

from tests.conftest import folder_of
from tests.trainer.test_resume import outcome
from tests.variants.found import CONF
from trainer import model as models
from trainer.saving import Checkpoints
from variants.core import checkpoint
from variants.core.variant import Variant, field_names
from variants.peft import Peft
from variants.testing.case import same
from variants.testing.contract import HOOKS
from variants.testing.toys import STEPS

OWN = {  # settings of files whose class has none that fit; the others train with their test_params
    "peft": [],
    "peft_lora": [],
    "peft_adalora": ["variant.options.tinit=2", "variant.options.tfinal=3"],
}
FURTHER = [
    ("adalora", ["variant.rank=4", "variant.target_rank=2", "variant.budget=1500", "variant.final_steps=3"]),
    ("adalora", ["variant.rank=4", "variant.target_rank=2", "variant.profile=released", "variant.interval=3"]),
    ("increlora", ["variant.target_rank=2", "variant.top=6", "variant.warmup=3", "optim.schedule=cosine"]),
    ("increlora", ["variant.target_rank=2", "variant.top=6", "variant.profile=released", "variant.interval=2"]),
    ("lora", ["variant.init=pissa", "variant.alpha=8"]),
    ("shira", ["variant.rank=2", "variant.mask=gradient", "variant.collect_steps=3"]),
    ("sora", ["variant.rank=4", "variant.budget=900", "variant.final_steps=3"]),
    ("sparse", ["variant.rank=4", "variant.schedule=rigl", "variant.score=gradient", "variant.interval=2"]),
]


def class_of(name: str) -> type[Variant]:
    """The class that a file in conf/variant is for."""
    if name in OWN:
        return Peft
    node = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    if "defaults" in node:  # a preset of another file
        return class_of(node["defaults"][0])
    return get_class(node.get("variant", node)["_target_"])


def methods() -> list[tuple[str, list[str]]]:
    """(file in conf/variant, overrides): the first settings of every class, and further ones where it has hooks."""
    found = []
    for path in sorted(CONF.glob("*.yaml")):
        if path.stem in OWN:
            found.append((path.stem, OWN[path.stem]))
            continue
        cls = class_of(path.stem)
        has_hooks = any(getattr(cls, hook) is not getattr(Variant, hook) for hook in HOOKS)
        # Budgets and patterns mean the layers of a toy.
        fitting = [p for p in cls.test_params() if "budget" not in p and not any("pattern" in name for name in p)]
        four = {"targets": ["query", "value"]} if "targets" in field_names(cls) else {}  # layers, as a toy has
        for params in fitting[: 2 if has_hooks else 1]:
            settings = {**four, **params}
            found.append((path.stem, [f"variant.{name}={json.dumps(value)}" for name, value in settings.items()]))
    return found + FURTHER


METHODS = {" ".join([name, *overrides]): (name, [f"variant={name}", *overrides]) for name, overrides in methods()}
every_method = pytest.mark.parametrize("method", [run for _, run in METHODS.values()], ids=METHODS)
SAME = {key: run for key, (name, run) in METHODS.items() if class_of(name).same_in_batches}
LOOP = [f"train.max_steps={STEPS}", "train.checkpoint=last", "train.group_by_length=false"]
STRAIGHT: dict[tuple[str, ...], dict[str, Any]] = {}  # what runs that nothing disturbed ended with


@pytest.fixture
def ends_with(carry_out, tmp_path) -> Callable[..., dict[str, Any]]:
    """Carries out a run; what it ended with, and the `whole` of what it left behind."""

    def carried_out(*overrides: str) -> dict[str, Any]:
        record = carry_out(*LOOP, *overrides)
        folder = folder_of(record, tmp_path)
        ranks = folder / "ranks.jsonl"
        return {
            "state": checkpoint.load(folder / "adapter" / "state"),
            "ranks": ranks.read_text() if ranks.exists() else "",
            "value": record.metric.value,
            "effective": record.params.effective,
            "whole": outcome(record, tmp_path),
        }

    return carried_out


@pytest.fixture
def straight(ends_with) -> Callable[[list[str]], dict[str, Any]]:
    """What a run ends with that nothing disturbs; carried out once for all tests."""

    def found(method: list[str]) -> dict[str, Any]:
        key = tuple(method)
        if key not in STRAIGHT:
            STRAIGHT[key] = ends_with(*method)
        return STRAIGHT[key]

    return found


@every_method
def test_cut_off_in_the_middle_and_taken_up_it_ends_with_the_same_bits(method, straight, ends_with, monkeypatch):
    expected = straight(method)
    write, stops = Checkpoints.write, [4, 8]

    def write_and_die(self, step, state, trainer_state):
        write(self, step, state, trainer_state)
        if step in stops:
            stops.remove(step)
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "write", write_and_die)
    overrides = [*method, "machine.save_every=4", "study=cut"]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ends_with(*overrides)
    found = ends_with(*overrides)
    assert not stops and same(found, expected)


@every_method
def test_evaluations_and_recomputed_activations_change_no_bit(method, straight, ends_with):
    found = ends_with(*method, "train.eval_every=1", "train.gradient_checkpointing=true", "study=disturbed")
    expected = straight(method)
    assert found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in found.keys() - {"whole"})


@pytest.mark.parametrize("method", SAME.values(), ids=SAME)
def test_accumulated_batches_make_the_steps_and_the_ranks_of_large_ones(method, ends_with, monkeypatch):
    fresh = models.fresh

    def without_dropout(*arguments):
        model = fresh(*arguments)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return model

    monkeypatch.setattr(models, "fresh", without_dropout)
    settings = [o if "variant.dropout" not in o else "variant.dropout=0.0" for o in method] + ["model.dtype=float64"]
    large = ends_with(*settings, "train.batch_size=8", "study=large")
    small = ends_with(*settings, "train.batch_size=4", "train.accumulate=2", "study=small")
    assert small["ranks"] == large["ranks"] and small["effective"] == large["effective"]
    parameters, expected = (run["state"]["parameters"] for run in (small, large))
    assert parameters.keys() == expected.keys()
    for name, tensor in parameters.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-9, msg=name)
