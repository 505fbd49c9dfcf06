"""Settings of another type than their annotation says: refused by one check for every class, before its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from variants.adalora import AdaLoRA
from variants.core import field_checks
from variants.core.variant import field_names
from variants.dora import DoRA
from variants.increlora import IncreLoRA
from variants.lora import LoRA
from variants.lora_xs import LoRAXS
from variants.peft import Peft
from variants.rosa import RoSA
from variants.shira import SHiRA
from variants.sora import SoRA
from variants.sparse import SparseLoRA
from variants.spiel import SpIEL
from variants.svdiff import SVDiff
from variants.svft import SVFT

CLASSES = [AdaLoRA, DoRA, IncreLoRA, LoRA, LoRAXS, Peft, RoSA, SHiRA, SoRA, SparseLoRA, SpIEL, SVDiff, SVFT]
NEVER = object()  # of no type that a setting has


@dataclass
class Settings:
    count: int = 1
    size: float | None = None
    on: bool = False
    names: Sequence[str] | str = "all"
    pair: tuple[float, float] = (0.0, 1.0)
    by_name: Mapping[str, int] = field(default_factory=dict)
    kind: Literal["a", "b"] = "a"
    anything: Any = None


@pytest.mark.parametrize(
    ("name", "good", "bad", "allowed"),
    [
        ("count", [1, -1], [True, 1.0, "1", None, [1]], "a whole number"),
        ("size", [1, 1.5, None], [True, "1", [1.0], float("nan"), float("inf")], "a number, null"),
        ("on", [True, False], [1, 0, "true", None], "true, false"),
        ("names", ["x", ["x", "y"], ("x",), []], [5, [5], {"x": 1}, None], "a list of: text, text"),
        ("pair", [[0.9, 0.99], (1, 2)], [0.9, [0.9], [0.9, 1.0, 1.0], [True, 0.9], "ab"], "[a number, a number]"),
        ("by_name", [{}, {"x": 1}], [{"x": True}, {"x": 1.5}, [1], None], "{name: a whole number}"),
        ("kind", ["a", "b"], ["c", None, ["a"]], "a, b"),
        ("anything", [None, 5, [1], {"a": 1}], [], ""),
        ("other", [None, 5], [], ""),
    ],
)
def test_a_value_is_of_the_type_that_the_annotation_names(name, good, bad, allowed):
    for value in good:
        field_checks.check_types(Settings, {name: value})
    for value in bad:
        with pytest.raises(ValueError) as caught:
            field_checks.check_types(Settings, {name: value}, "group.")
        assert str(caught.value) == f"group.{name}: {value!r}, allowed: {allowed}"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_setting_of_every_method_has_a_type_that_is_checked(cls):
    for name in field_names(cls):
        with pytest.raises(ValueError, match=rf"^{name}: .*, allowed: "):
            cls(**{name: NEVER})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_no_number_of_a_method_is_a_truth_value(cls):
    for name in field_names(cls):
        if isinstance(cls.__dataclass_fields__[name].default, int | float):
            wrong = 1 if isinstance(cls.__dataclass_fields__[name].default, bool) else True
            with pytest.raises(ValueError, match=rf"^{name}: {wrong}, allowed: "):
                cls(**{name: wrong})


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (LoRA, {"rank_pattern": None}, "rank_pattern: None, allowed: {name: a whole number}"),
        (LoRA, {"alpha_pattern": {"query": True}}, "alpha_pattern: {'query': True}, allowed: {name: a number}"),
        (LoRA, {"init": "pissa", "init_iterations": -1}, "init_iterations: -1, allowed: a whole number ≥ 1"),
        (AdaLoRA, {"target_rank": "x"}, "target_rank: 'x', allowed: a whole number"),
        (IncreLoRA, {"warmup": "x"}, "warmup: 'x', allowed: a whole number, null"),
        (LoRAXS, {"rank": True}, "rank: True, allowed: "),
        (Peft, {"options": {"r": "x"}}, "options.r: 'x', allowed: a whole number"),
        (Peft, {"options": {"use_rslora": 5}}, "options.use_rslora: 5, allowed: true, false"),
        (Peft, {"options": 5}, "options: 5, allowed: {name: anything}"),
    ],
)
def test_the_field_is_named(cls, settings, message):
    with pytest.raises(ValueError) as caught:
        cls(**settings)
    assert str(caught.value).startswith(message)
