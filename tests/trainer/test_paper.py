"""Published settings: each file composes, its schedule fits, and it trains as many parameters as it says.

Architectures are made from their configs, without weights.
"""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
import yaml
from omegaconf import DictConfig, open_dict
from omegaconf._utils import get_yaml_loader
from torch import nn

from tests.composing import by_hydra, composed
from tests.conftest import ROOT
from trainer import config as run_config
from trainer.data.sources.glue import TASKS
from trainer.instantiate import make
from trainer.loop.loop import total_steps
from trainer.model import backbone as models
from variants.core import layers
from variants.core.basis_variant import BasisVariant
from variants.core.target_modules import inside
from variants.core.variant import AdapterVariant
from variants.lora_xs import LoRAXS
from variants.svft import entries

FILES = sorted((ROOT / "conf" / "paper").glob("*.yaml"))
ROWS = {name: task.sizes["train"] for name, task in TASKS.items()} | {"metamath": 395_000, "boolq": 10_179}
CONFIGS: dict[str, Any] = {
    "FacebookAI/roberta-base": ("RobertaConfig", {}),
    "FacebookAI/roberta-large": (
        "RobertaConfig",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
    "microsoft/deberta-v3-base": (
        "DebertaV2Config",
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
        | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 256}
        | {"norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
    ),
    "meta-llama/Llama-2-7b-hf": ("LlamaConfig", {}),
    "meta-llama/Llama-3.1-8B": ("LlamaConfig", {"num_key_value_heads": 8, "intermediate_size": 14336}),
    "facebook/opt-125m": ("OPTConfig", {}),
    "facebook/opt-1.3b": (
        "OPTConfig",
        {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "ffn_dim": 8192},
    ),
}
SIZES = {  # parameters of the published models without their vocabularies, which adapters don't see
    "FacebookAI/roberta-base": 85_054_464,
    "microsoft/deberta-v3-base": 85_054_464,
}


@functools.cache
def bare(model: str, language: bool) -> nn.Module:
    """The architecture on the meta device."""
    name, settings = CONFIGS[model]
    auto = transformers.AutoModelForCausalLM if language else transformers.AutoModelForSequenceClassification
    with torch.device("meta"):
        made: nn.Module = auto.from_config(getattr(transformers, name)(vocab_size=1000, **settings))
    return made


def count(variant: AdapterVariant, model: nn.Module, head: tuple[str, ...]) -> int:
    """Trained parameters outside the head at the start; by formula where the start needs the weights' directions."""
    # On the meta device torch draws in Python: milliseconds a tensor for numbers that nobody sees.
    with torch.device("meta"), mock.patch.object(torch.Tensor, "normal_", lambda tensor, *_, **options: tensor):
        variant.check(model, head)
        if isinstance(variant, BasisVariant):
            sizes = [min(layers.size(layer)) for layer in variant.select(model, head).values()]
            if isinstance(variant, LoRAXS):
                return len(sizes) * int(variant.rank) ** 2
            return sum(entries(size, variant.off_diagonals) for size in sizes)
        variant.attach(model, head)
    found = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and not inside(n, head))
    assert variant.closed_form() == found
    return found


@functools.cache
def counted(model: str, language: bool, node: str) -> int:
    """`count` of the variant that a node of YAML describes; many tasks of a paper have the same."""
    made = copy.deepcopy(bare(model, language))
    return count(make("variant", yaml.safe_load(node)), made, () if language else models.head_modules(made))


def described(path: Path) -> DictConfig:
    """What Hydra makes of a file, without it: the groups that it chooses, and its own settings over them."""
    text = path.read_text()
    assert text.startswith("# @package _global_\n")
    own = yaml.load(text, get_yaml_loader())
    groups = dict(group_and_name for choice in own.pop("defaults") for group_and_name in choice.items())
    sweep = own.pop("hydra", None)
    assert sweep is None or sweep == {"mode": "MULTIRUN", "sweeper": {"params": sweep["sweeper"]["params"]}}
    assert all(group.startswith("override /") for group in groups)
    config = composed([f"{group.removeprefix('override /')}={name}" for group, name in groups.items()])
    with open_dict(config):  # its schema refuses what it does not know, as in Hydra
        config.merge_with(own)
    return config


FORMS = {re.sub(r"_[a-z0-9]+$", "", path.stem): path for path in FILES}  # a file of each method on each model


@pytest.mark.slow
@pytest.mark.parametrize("path", FORMS.values(), ids=FORMS)
def test_hydra_composes_it(path):
    assert by_hydra([f"+paper={path.stem}"]) == described(path)


@pytest.mark.slow  # a whole config for every file
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_composes_its_schedule_fits_and_it_trains_what_it_says(path):
    config = described(path)
    run_config.validate(config)
    assert path.stem.endswith(f"_{config.task.name}") and config.study == "paper"
    make("variant", config.variant).plan(total_steps(config.data.limit or ROWS[config.task.name], config.train))
    (said,) = re.findall(r"^# Trains    ([\d,]+) parameters at the start, ", path.read_text(), re.MULTILINE)
    node = yaml.safe_dump(run_config.mapping(config.variant))
    language = config.task.get("kind") == "causal_lm"
    assert counted(config.model.id, language, node) == int(said.replace(",", ""))


@pytest.mark.parametrize("model", SIZES)
def test_the_architectures_have_the_layers_of_the_published_models(model):
    made: Any = bare(model, language=False)
    encoder = made.base_model.encoder.layer
    assert sum(p.numel() for p in encoder.parameters()) == SIZES[model]


# Figures that papers print, in the rounding that they print, and what the files train.
PUBLISHED = [
    ("hu_2022_lora_roberta_base_cola", 0.3, 1),
    ("lingam_2024_svft_plain_deberta_v3_base_cola", 0.06, 2),
    ("lingam_2024_svft_random_deberta_v3_base_cola", 0.28, 2),
]


@pytest.mark.parametrize(("name", "millions", "digits"), PUBLISHED)
def test_a_published_count_is_that_of_the_file(name, millions, digits):
    text = (ROOT / "conf" / "paper" / f"{name}.yaml").read_text()
    (said,) = re.findall(r"^# Trains    ([\d,]+) ", text, re.MULTILINE)
    assert f"Published: {millions}M" in text
    assert round(int(said.replace(",", "")) / 1e6, digits) == millions


def test_a_file_says_whose_it_is_and_which_paper():
    for path in FILES:
        first = path.read_text().splitlines()[1]
        assert re.match(r"# .+ \(.+ 20\d\d, arXiv \d{4}\.\d{5}\)", first), path.stem
        year = re.search(r"_(20\d\d)_", path.stem)
        assert year and year[1] in first
