"""Every method of conf/variant with settings that a tiny run can train with."""

from __future__ import annotations

import functools
import json

import yaml
from hydra.utils import get_class

from tests.variants.found import CONF
from variants.core.variant import Variant, field_names
from variants.peft import Peft
from variants.testing.contract import HOOKS
from variants.testing.toys import STEPS, TARGETS

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
    ("lora_fa", ['variant.targets=["query", "value"]', "variant.rank=2"]),
    ("shira", ["variant.rank=2", "variant.mask=gradient", "variant.collect_steps=3"]),
    ("sora", ["variant.rank=4", "variant.budget=900", "variant.final_steps=3"]),
    ("sparse", ["variant.rank=4", "variant.schedule=rigl", "variant.score=gradient", "variant.interval=2"]),
]


IN_STEPS = ("on_step_begin", "penalty", "on_gradients", "on_update")


def acts_in_steps(cls: type[Variant]) -> bool:
    """Whether a method does anything between two steps; to any other all steps are alike."""
    return any(getattr(cls, hook) is not getattr(Variant, hook) for hook in IN_STEPS)


@functools.cache
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
        if path.stem.startswith("peft_"):  # the bridge with other options, see tests/variants/test_peft_presets.py
            continue
        cls = class_of(path.stem)
        if not cls.trains:
            continue
        has_hooks = any(getattr(cls, hook) is not getattr(Variant, hook) for hook in HOOKS)
        if not has_hooks and "defaults" in yaml.safe_load(path.read_text()):
            continue  # a preset of values that a test of the class compares
        # Budgets and names mean the layers of a toy.
        named = [params for params in cls.test_params() if any(layer in json.dumps(params) for layer in TARGETS)]
        fitting = [params for params in cls.test_params() if "budget" not in params and params not in named]
        four = {"targets": ["query", "value"]} if "targets" in field_names(cls) else {}  # layers, as a toy has
        for params in fitting[: 2 if has_hooks else 1]:
            settings = {**four, **params}
            found.append((path.stem, [f"variant.{name}={json.dumps(value)}" for name, value in settings.items()]))
    return found + FURTHER


FURTHER_KEYS = [" ".join([name, *overrides]) for name, overrides in FURTHER]
METHODS = {" ".join([name, *overrides]): (name, [f"variant={name}", *overrides]) for name, overrides in methods()}
FIRST = {run[0]: run for run in reversed(METHODS.values())}  # the first settings of every file in conf/variant
# The last settings of every class (its presets differ in values alone), of every file for PEFT, and all further ones.
OWN_KEYS = {key: run for key, run in METHODS.items() if key not in FURTHER_KEYS}
ONE_A_CLASS = {name if name in OWN else class_of(name): key for key, (name, _) in OWN_KEYS.items()}
LAST = {key: METHODS[key] for key in [*ONE_A_CLASS.values(), *FURTHER_KEYS]}
LOOP = [f"train.max_steps={STEPS}", "train.checkpoint=last", "train.group_by_length=false"]
