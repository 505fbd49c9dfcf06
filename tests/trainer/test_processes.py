"""Several processes for one run: they do what one process does with their batches put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer import alike, pair
from variants.core import checkpoint, state, toys


@pytest.fixture(scope="module")
def in_two(tmp_path_factory) -> dict[str, Any]:
    """What came of every variant's settings in two processes."""
    folder = tmp_path_factory.mktemp("alike")
    with pair.started(alike.all_cases, folder) as two:
        assert two.ends() == [0, 0]
    return checkpoint.load(folder / "found")


def tensors(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {name: leaf for key, part in tree.items() for name, leaf in tensors(part, f"{path}/{key}").items()}
    return {path: tree}


@pytest.mark.parametrize("name", alike.named())
def test_two_processes_train_every_variant_as_one_does_with_the_whole_batch(in_two, name):
    case, parts = alike.named()[name]
    one = toys.train(case.attached(torch.float64), parts=parts)
    two = in_two[name]
    assert two["ranks"] == one.variant.ranks()
    expected = tensors(toys.through_disk(state.weights(one.model, one.variant, one.optimizer)))
    found = tensors(two["weights"])
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        if isinstance(value, torch.Tensor):  # places and masks are whole numbers, which have to be equal
            torch.testing.assert_close(found[place], value, rtol=1e-9, atol=1e-9, msg=lambda m, p=place: f"{p}: {m}")
        else:
            assert found[place] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), place
