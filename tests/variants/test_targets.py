"""Targets: which layers a pattern means, and that a pattern which means none is an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from variants.core import target_modules
from variants.testing.contract import HEAD, Toy

ALL = ["layer.0.fc1", "layer.0.fc2", "layer.1.fc1", "layer.1.fc2"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"targets": "all-linear"}, ALL),
        ({"targets": ["fc1"]}, ALL[::2]),
        ({"targets": "fc1"}, ALL[::2]),
        ({"targets": ["0.fc1", "1.fc2"]}, [ALL[0], ALL[3]]),
        ({"targets": ["layer.0.*"]}, ALL[:2]),
        ({"targets": ["fc?"]}, ALL),
        ({"targets": "all-linear", "exclude": ["fc2"]}, ALL[::2]),
        ({"targets": "all-linear", "exclude": ["layer.1.*"]}, ALL[:2]),
        ({"targets": "all-linear", "layers": [1, 1]}, ALL[2:]),
        ({"targets": ["fc2"], "layers": [0, 1]}, ALL[1::2]),
    ],
)
def test_layers_that_are_meant(arguments, names):
    assert list(target_modules.select(Toy(), head=HEAD, **arguments)) == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": ["c1"]}, r"targets: no layer ends in 'c1'; linear layers: fc1, fc2"),
        ({"targets": ["fc1", "fc3"]}, r"targets: no layer ends in 'fc3'"),
        ({"targets": ["head"]}, r"targets: no layer ends in 'head'"),
        ({"targets": ["norm"]}, r"targets: layer.0.norm is a LayerNorm, allowed: Linear, Conv1D"),
        ({"targets": "fc1", "exclude": ["fc1"]}, r"targets: 'fc1' leaves no layer to adapt"),
        ({"targets": "fc1", "exclude": ["fc9"]}, r"exclude: no layer ends in 'fc9'"),
        ({"targets": "fc1", "layers": [0, 2]}, r"layers: \[0, 2\], allowed: \[first, last\] with 0 ≤ first ≤ last ≤ 1"),
        ({"targets": "fc1", "layers": [1]}, r"layers: \[1\], allowed: "),
        ({"targets": "fc1", "layers": [1, 0]}, r"layers: \[1, 0\], allowed: "),
    ],
)
def test_what_means_no_layer_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        target_modules.select(Toy(), head=HEAD, **arguments)


def test_a_weight_that_two_layers_share_is_refused():
    model = Toy()
    model.layer[1]["fc1"].weight = model.layer[0]["fc1"].weight
    with pytest.raises(ValueError, match=r"targets: layer.0.fc1 shares its weight with layer.1.fc1; exclude it"):
        target_modules.select(model, "all-linear", head=HEAD)
    chosen = target_modules.select(model, "all-linear", exclude=["fc1"], head=HEAD)
    assert list(chosen) == ALL[1::2]


def test_a_layer_that_is_used_twice_is_refused():
    model = nn.ModuleDict({"one": nn.Linear(2, 2)})
    model["two"] = model["one"]
    with pytest.raises(ValueError, match="targets: one shares its weight with two"):
        target_modules.select(model, "all-linear")


def test_replace_puts_a_module_where_another_was():
    model = Toy()
    target_modules.replace(model, "layer.1.fc2", nn.Identity())
    assert isinstance(model.layer[1]["fc2"], nn.Identity) and isinstance(model.layer[0]["fc2"], nn.Linear)


def test_inside_finds_a_module_under_a_wrappers_prefix():
    assert target_modules.inside("base_model.model.head.weight", HEAD)
    assert target_modules.inside("head", HEAD) and not target_modules.inside("overhead.weight", HEAD)
    assert torch.is_tensor(Toy().head.weight)
