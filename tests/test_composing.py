"""The configs that tests get quickly are those that Hydra composes."""

from __future__ import annotations

import functools

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from tests import composing

FOLDERS = ["variant", "variant/zoo", "variant/families", "variant/language", "variant/study", "task", "model"]
OVERRIDES = [
    [],
    ["seed=3", "study=a b"],
    ["variant=adalora", "variant.rank=4", "variant.budget=null", "optim.lr=1e-3", "train.checkpoint=last"],
    ["variant=peft", "+variant.options.r=2", "variant.targets=[query,value]", "variant.method=lora"],
    ["variant=pissa", "task=opinion", "variant.targets=[query]"],
    ["variant=full", "model=folder", "variant.name=all"],
    ["variant=peft", "+variant.options.r=3", "task=file"],
    ["variant=sora", "experiment=debug"],
    ["variant=full", "experiment=glue", "task=cola"],
    ["variant=zoo/adalora", "experiment=zoo"],
    ["experiment=families", "variant=families/svft", "task=opinion", "optim.lr=3"],
    ["variant=kinds/ctc", "experiment=kinds"],
    ["variant=kinds/ctc", "task=melodies"],
    ["variant=language/sora", "task=news", "model=smollm2", "experiment=language", "train.max_steps=3"],
    ["variant=study/adalora", "experiment=study/tune", "study=mine"],
    ["+paper=zhang_2023_adalora_r8_deberta_v3_base_qnli"],
    ["+paper=ding_2023_sora_deberta_v3_base_rte", "variant.rank=3", "task=cola"],
    ["experiment=search", "variant=lora"],
    ["task=file", "task.metrics=[f1]", "task.name='1e3'", "machine.progress=false"],
    ["optim.optimizer._target_=torch.optim.SGD", "~optim.optimizer.betas", "~optim.optimizer.eps"],
    ["optim.schedule=cosine"],
    ["train.eval_every=epoch", "train.eval_every=3"],
]


WRONG = ["variant=haed", "optim.lrr=1", "seed=many", "seed=1,2", "variant=lora,head", "a=b=c[", "+seed=1"]


@functools.cache
def by_hydra(*overrides: str) -> DictConfig:
    return composing.by_hydra(list(overrides))


@pytest.mark.parametrize("overrides", [*OVERRIDES, *OVERRIDES[::-1]], ids=" ".join)
def test_a_config_is_hydra_s_whatever_was_composed_before(overrides):
    expected, config = by_hydra(*overrides), composing.composed(overrides)
    assert config == expected and OmegaConf.to_yaml(config) == OmegaConf.to_yaml(expected)
    assert OmegaConf.is_struct(config) == OmegaConf.is_struct(expected)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_gives_what_hydra_makes_of_it(folder):
    names = [path.stem for path in sorted((composing.CONF / folder).glob("*.yaml"))]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(composing.CONF), version_base="1.3"):
        expected = compose(None, [f"+{folder}@{name}={name}" for name in names])
    group = folder.partition("/")[0]
    for name in names:
        file = composing.chosen(f"{group}={(folder + '/' + name).removeprefix(group + '/')}")
        assert file is not None, name
        found = OmegaConf.merge(file.nodes, file.settings)
        assert (found if file.settings else found[group]) == expected[name], name


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_as_hydra_says_it(wrong):
    with pytest.raises(Exception) as expected:
        composing.by_hydra(["variant=lora", wrong])
    with pytest.raises(type(expected.value)) as found:
        composing.composed(["variant=lora", wrong])
    assert str(found.value) == str(expected.value)


def test_a_config_that_is_changed_changes_no_other():
    composing.composed(["seed=7"]).train.batch_size = 1
    assert composing.composed(["seed=7"]) == by_hydra("seed=7")
