"""No option is a silent no-op: what does nothing is refused, and every field of every variant does something."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.variants.found import all_variants
from variants.adalora import AdaLoRA
from variants.core.variant import AdapterVariant, Variant, field_names
from variants.lora import LoRA
from variants.lora_xs import LoRAXS
from variants.peft import Peft
from variants.shira import SHiRA
from variants.sora import SoRA
from variants.sparse import SparseLoRA
from variants.svdiff import SVDiff
from variants.svft import SVFT
from variants.testing.case import same
from variants.testing.toys import STEPS, attach, train


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (AdaLoRA, {"score": "magnitude", "beta1": 0.5}, "beta1: 0.5 with score: magnitude, allowed: 0.85"),
        (AdaLoRA, {"score": "magnitude", "beta2": 0.5}, "beta2: 0.5 with score: magnitude, allowed: 0.85"),
        (AdaLoRA, {"score": "sensitivity", "beta2": 0.5}, "beta2: 0.5 with score: sensitivity, allowed: 0.85"),
        (AdaLoRA, {"hard": True, "profile": "released"}, "hard: true, allowed with profile=released: false"),
        (LoRA, {"init_iterations": 4}, "init_iterations: 4 with init: lora, allowed: null"),
        (LoRA, {"init": "milora", "init_iterations": 4}, "init_iterations: 4 with init: milora, allowed: null"),
        (LoRA, {"frozen_a": True, "lr_ratio": 4.0}, "lr_ratio: 4.0 with frozen_a: true, allowed: 1.0"),
        (LoRA, {"frozen_a": True, "init": "pissa"}, "frozen_a: true with init: pissa, allowed: false"),
        (LoRA, {"frozen_a": None}, "frozen_a: None, allowed: true, false"),
        (SHiRA, {"mask": "magnitude", "seed": 1}, "seed: 1 with mask: magnitude, allowed: 0"),
        (SHiRA, {"collect_steps": 2}, "collect_steps: 2 with mask: random, allowed: 1"),
        (SoRA, {"stages": 3}, "stages: 3, allowed with schedule=constant: null"),
        (SoRA, {"final_steps": 3}, "final_steps: 3, allowed without a budget: 0"),
        (SparseLoRA, {"schedule": "one_shot", "interval": 2}, "interval: 2 with schedule: one_shot, allowed: 1"),
        (SparseLoRA, {"schedule": "one_shot", "final_steps": 2}, "final_steps: 2 with schedule: one_shot, allowed: 1"),
        (SparseLoRA, {"regrow": 0.2}, "regrow: 0.2 with schedule: gradual, allowed: 0.3"),
        (SparseLoRA, {"beta": 0.5}, "beta: 0.5 with score: magnitude, allowed: 0.85"),
        (SparseLoRA, {"seed": 1}, "seed: 1 with score: magnitude, allowed: 0"),
        (SVDiff, {"seed": 1}, "seed: 1 with decomposition: svd, allowed: 0"),
        (SVDiff, {"iterations": 4}, "iterations: 4, allowed with decomposition=svd: null"),
        (LoRAXS, {"seed": 1}, "seed: 1 with decomposition: svd, allowed: 0"),
        (SVFT, {"seed": 1}, "seed: 1 with decomposition: svd, allowed: 0"),
        (SVFT, {"pattern": "banded", "off_diagonals": 1, "seed": 1}, "seed: 1 with decomposition: svd, allowed: 0"),
        (SVFT, {"off_diagonals": 1}, "off_diagonals: 1, allowed with pattern=plain: 0"),
    ],
    ids=str,
)
def test_an_option_without_effect_is_refused(cls: type[Variant], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        cls(**settings)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


FIELDS = [
    (cls, name)
    for cls in all_variants()
    if cls is not Peft  # whose options are PEFT's
    for name in field_names(cls)
    if name not in ("name", *field_names(AdapterVariant))  # which layers: tests/variants/test_targets.py
]


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_every_field_changes_what_is_trained(cls: type[Variant], name: str) -> None:
    assert makes_a_difference(cls, name), "in none of the settings in test_params() another value trains otherwise"


def test_a_field_that_does_nothing_is_noticed() -> None:
    @dataclasses.dataclass(kw_only=True)
    class WithATemperature(LoRA):
        """LoRA with a field that nothing reads."""

        temperature: float = 1.0

        @classmethod
        def test_params(cls) -> list[dict[str, Any]]:
            return LoRA.test_params()[:2]

    assert not makes_a_difference(WithATemperature, "temperature")
    assert makes_a_difference(WithATemperature, "alpha")


LOOKED_AT = (2, STEPS)  # after these steps: most fields matter from the start


def makes_a_difference(cls: type[Variant], name: str) -> bool:
    """Whether in some setting of `test_params` another value of the field trains otherwise, or all are refused."""
    taken = False
    # Where a setting has a value of its own, another one matters soonest.
    for params in sorted(cls.test_params(), key=lambda params: name not in params):
        plain = undisturbed(cls, repr(params))
        for value in others(cls, name, params):
            try:
                run = attach(cls, {**params, name: value})
                for step, (output, state) in zip(LOOKED_AT, plain, strict=True):
                    train(run, step)
                    # A smoothing constant may change the averages and, on a toy, not what follows from them.
                    if not torch.equal(run.output(), output) or not same(run.variant.state_dict(), state):
                        return True
            except (ValueError, RuntimeError):
                continue  # refused there: not silent
            taken = True
    return not taken


@functools.cache
def undisturbed(cls: type[Variant], params: str) -> list[tuple[torch.Tensor, Any]]:
    """Output and state after each of the steps `LOOKED_AT` with one of the class's `test_params()`, for all fields."""
    run = attach(cls, next(entry for entry in cls.test_params() if repr(entry) == params))
    return [(train(run, step).output(), copy.deepcopy(run.variant.state_dict())) for step in LOOKED_AT]


def others(cls: type[Variant], name: str, params: dict[str, Any]) -> Iterator[Any]:
    """Values that the field might have instead."""
    now = getattr(cls(**params), name)
    if isinstance(now, bool):
        yield not now
    elif isinstance(now, int):
        yield from (now + 1, now - 1, now * 2, now // 2, now + 4)
    elif isinstance(now, float):
        yield from (now / 2, now * 2, 0.1, 0.0)
    elif isinstance(now, str):
        try:
            cls(**{**params, name: "?"})
        except ValueError as error:  # it says what is allowed
            yield from (word for word in str(error).rpartition("allowed: ")[2].split(", ") if word != now)
    elif isinstance(now, dict):
        yield {"fc1": 1}
    else:
        yield from (2, 100, 0.5)
