"""The configs that tests get quickly are those that Hydra composes."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from tests import composing

OVERRIDES = [
    [],
    ["seed=3", "study=a b"],
    ["variant=adalora", "variant.rank=4", "variant.budget=null", "optim.lr=1e-3", "train.checkpoint=last"],
    ["variant=peft", "+variant.options.r=2", "variant.targets=[query,value]", "variant.method=lora"],
    ["variant=pissa", "task=opinion", "variant.targets=[query]"],
    ["variant=full", "model=folder", "variant.name=all"],
    ["variant=peft", "+variant.options.r=3", "task=file"],
    ["variant=sora", "experiment=debug"],
    ["task=file", "task.metrics=[f1]", "task.name='1e3'", "machine.progress=false"],
    ["optim.optimizer._target_=torch.optim.SGD", "~optim.optimizer.betas", "~optim.optimizer.eps"],
    ["optim.schedule=cosine"],
    ["train.eval_every=epoch", "train.eval_every=3"],
]


WRONG = ["variant=haed", "optim.lrr=1", "seed=many", "seed=1,2", "variant=lora,head", "a=b=c[", "+seed=1"]


@pytest.mark.parametrize("overrides", [*OVERRIDES, *OVERRIDES[::-1]], ids=" ".join)
def test_a_config_is_hydra_s_whatever_was_composed_before(overrides):
    expected, config = composing.by_hydra(overrides), composing.composed(overrides)
    assert config == expected and OmegaConf.to_yaml(config) == OmegaConf.to_yaml(expected)
    assert OmegaConf.is_struct(config) == OmegaConf.is_struct(expected)


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_as_hydra_says_it(wrong):
    with pytest.raises(Exception) as expected:
        composing.by_hydra(["variant=lora", wrong])
    with pytest.raises(type(expected.value)) as found:
        composing.composed(["variant=lora", wrong])
    assert str(found.value) == str(expected.value)


def test_a_config_that_is_changed_changes_no_other():
    composing.composed(["seed=7"]).train.batch_size = 1
    assert composing.composed(["seed=7"]) == composing.by_hydra(["seed=7"])
