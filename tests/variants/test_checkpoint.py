"""Trees on disk: what goes in comes out, and a broken file is never taken for a whole one."""

from __future__ import annotations

import pytest
import torch

from variants.core import state_files
from variants.core.state_files import CorruptState

TREE = {
    "tensors": {
        "a": torch.arange(6).reshape(2, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
    },
    "plain": {"text": "größe", "whole": 3, "real": 0.1, "yes": True, "none": None},
    "list": [1, [2, torch.tensor(3.0)], {"x": torch.tensor(True)}],
    "tuple": (1, (2, 3)),
    0: {1: torch.tensor([1.0])},
    "nothing": {},
}


def equal(one, two) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and one.shape == two.shape and torch.equal(one, two)
    if isinstance(one, dict):
        return type(two) is dict and list(one) == list(two) and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(equal, one, two))
    return type(one) is type(two) and one == two


def test_a_tree_comes_back_as_it_was(tmp_path):
    state_files.save(TREE, tmp_path / "new" / "state")
    assert equal(state_files.load(tmp_path / "new" / "state"), TREE)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["state.json", "state.safetensors"]


def test_views_and_shared_tensors_are_written_as_they_are_seen(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state_files.save({"row": base[1], "column": base[:, 1], "turned": base.T, "same": base[1]}, tmp_path / "state")
    found = state_files.load(tmp_path / "state")
    assert torch.equal(found["turned"], base.T) and torch.equal(found["column"], base[:, 1])
    assert torch.equal(found["row"], found["same"])


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("keep", [0, 20])
def test_a_truncated_file_is_an_error(tmp_path, name, keep):
    state_files.save(TREE, tmp_path / "state")
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    with pytest.raises(CorruptState, match="state"):
        state_files.load(tmp_path / "state")


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_a_missing_file_is_an_error(tmp_path, name):
    state_files.save(TREE, tmp_path / "state")
    (tmp_path / name).unlink()
    with pytest.raises(CorruptState):
        state_files.load(tmp_path / "state")


def test_what_would_need_pickle_is_refused(tmp_path):
    with pytest.raises(TypeError, match="/a/0: object can't be saved without pickle"):
        state_files.save({"a": [object()]}, tmp_path / "state")
