"""ΔW, factors and patterns out of a run's adapter folder, beside what the live adapters say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from analysis.records.adapter_file import Saved
from analysis.records.run_files import Unusable
from tests.variants import found
from variants.adalora import AdaLoRA
from variants.core import state_files, training_state
from variants.core.adapters.sparse_delta import SparseDelta
from variants.core.variant import AdapterVariant
from variants.dylora import DyLoRA
from variants.elalora import ElaLoRA
from variants.increlora import IncreLoRA
from variants.lora import LoRA
from variants.lora_xs import LoRAXS
from variants.rosa import RoSA
from variants.shira import SHiRA
from variants.sora import SoRA
from variants.sparse import SparseLoRA
from variants.spiel import SpIEL
from variants.testing.case import Case
from variants.testing.toys import KINDS

READABLE = (LoRA, AdaLoRA, IncreLoRA, ElaLoRA, DyLoRA, SoRA, SparseLoRA, SHiRA, SpIEL)
SPARSE = (SparseLoRA, SHiRA, SpIEL, RoSA)


# Every setting on linear layers; on the other kinds, whose weights lie in memory otherwise, the first one.
CASES = [c for c in found.cases() if c.kind == "Linear"]
CASES += [Case(cls, cls.test_params()[0], kind) for cls in READABLE for kind in KINDS if kind != "Linear"]


def saved_by(case, folder):
    """The variant of a case, trained on its toy and saved as a run saves it."""
    if case.refusal is not None:
        pytest.skip(case.refusal)
    run = case.exact
    state_files.save(training_state.weights(run.model, run.variant, run.optimizer), folder / "adapter" / "state")
    return run.variant


def trained(cls, params, folder):
    return saved_by(Case(cls, params), folder)


def relative(values, count: int) -> np.ndarray:
    """`count` singular values over the largest; those that are not there are zeros."""
    values = np.pad(np.asarray(values), (0, count))[:count]
    return values / values[0] if values[0] > 0 else values


@pytest.mark.parametrize("case", found.marked(CASES), ids=str)
def test_a_saved_spectrum_is_that_of_the_update_or_is_refused(case, tmp_path):
    variant = saved_by(case, tmp_path)
    saved = Saved(tmp_path)
    if not isinstance(variant, AdapterVariant):
        with pytest.raises(Unusable, match="names no adapted layers: ΔW can't be computed without the base model"):
            saved.layers  # noqa: B018
        return
    assert saved.layers == list(variant.adapters)
    for name, adapter in variant.adapters.items():
        expected = torch.linalg.svdvals(adapter.delta().detach())
        try:
            values = saved.singular_values(name)
        except Unusable:
            assert case.cls not in READABLE
            continue
        np.testing.assert_allclose(relative(values, len(expected)), relative(expected, len(expected)), atol=1e-9)


@pytest.mark.parametrize("case", [case for case in CASES if case.cls in SPARSE], ids=str)
def test_a_saved_pattern_is_where_the_update_has_entries(case, tmp_path):
    variant = saved_by(case, tmp_path)
    patterns = Saved(tmp_path).patterns()
    for name, adapter in variant.adapters.items():
        if isinstance(adapter, SparseDelta):
            assert patterns[name].shape == (adapter.out_features, adapter.in_features)
            assert patterns[name].indices.tolist() == adapter.indices.tolist()
            continue
        for part, shape in adapter.shapes.items():
            pattern = patterns[f"{name}.{part}"]
            assert pattern.shape == shape
            assert pattern.density == len(adapter.indices[part]) / (shape[0] * shape[1])


@pytest.mark.parametrize(
    "cls, reason",
    [(LoRA, "the update is not sparse"), (LoRAXS, "the update is not sparse")],
)
def test_a_dense_update_has_no_pattern(cls, reason, tmp_path):
    trained(cls, cls.test_params()[0], tmp_path)
    with pytest.raises(Unusable, match=reason):
        Saved(tmp_path).patterns()


def test_an_update_in_the_basis_of_the_weight_needs_the_model(tmp_path):
    trained(LoRAXS, LoRAXS.test_params()[0], tmp_path)
    with pytest.raises(Unusable) as error:
        Saved(tmp_path).singular_values("layer.0.fc1")
    assert str(error.value) == "saved of a layer is R: its ΔW can't be computed without the base model"


def test_factors_are_those_that_were_trained(tmp_path):
    variant = trained(AdaLoRA, AdaLoRA.test_params()[0], tmp_path)
    adapter = variant.adapters["layer.1.fc2"]
    factors = Saved(tmp_path).factors("layer.1.fc2")
    np.testing.assert_array_equal(factors.A, adapter.A.detach().numpy())
    np.testing.assert_array_equal(factors.B, adapter.B.detach().numpy())
    np.testing.assert_array_equal(factors.e, adapter.e.detach().numpy())


def test_factors_are_there_also_where_the_update_is_more_than_they_are(tmp_path):
    variant = trained(RoSA, RoSA.test_params()[0], tmp_path)
    factors = Saved(tmp_path).factors("layer.0.fc1")
    np.testing.assert_array_equal(factors.A, variant.adapters["layer.0.fc1"].A.detach().numpy())


def test_a_layer_that_has_lost_all_its_ranks_has_no_singular_values(tmp_path):
    tree = {
        "parameters": {"fc.A": torch.zeros(0, 3), "fc.B": torch.zeros(2, 0)},
        "variant": {},
        "layers": {"fc": [2, 3]},
    }
    state_files.save(tree, tmp_path / "adapter" / "state")
    assert not Saved(tmp_path).singular_values("fc").any()


def test_low_rank_and_sparse_parts_together_are_refused(tmp_path):
    tree = {
        "parameters": {"fc.A": torch.ones(1, 3), "fc.B": torch.ones(2, 1), "fc.values": torch.ones(2)},
        "variant": {"indices": {"fc": torch.tensor([0, 4])}},
        "layers": {"fc": [2, 3]},
    }
    state_files.save(tree, tmp_path / "adapter" / "state")
    saved = Saved(tmp_path)
    with pytest.raises(Unusable, match="saved of a sparse layer is A, B, values: its parts are added with scales"):
        saved.singular_values("fc")
    assert saved.patterns()["fc"].indices.tolist() == [0, 4]


@pytest.mark.parametrize(
    "parameters, variant, reason",
    [
        ({"fc.A": torch.ones(2, 3), "fc.B": torch.ones(2, 1)}, {}, r"A \(2, 3\) and B \(2, 1\): no factors of its ΔW"),
        ({"fc.values": torch.ones(1)}, {"indices": {"fc": torch.tensor([6])}}, "not indices of a matrix 2×3"),
        ({"fc.values": torch.ones(2)}, {"indices": {"fc": torch.tensor([1, 1])}}, "not indices of a matrix 2×3"),
        ({"fc.values": torch.ones(3)}, {"indices": {"fc": torch.tensor([1])}}, "1 indices/fc for 3 values"),
        (
            {"fc.A": torch.ones(1), "fc.B": torch.ones(1)},
            {"places": {"fc": {"A": torch.tensor([0]), "B": torch.tensor([0])}}},
            "the indices of fc.A have no shape",
        ),
    ],
)
def test_a_state_that_contradicts_itself_is_refused(parameters, variant, reason, tmp_path):
    tree = {"parameters": parameters, "variant": variant, "layers": {"fc": [2, 3]}}
    state_files.save(tree, tmp_path / "adapter" / "state")
    with pytest.raises(Unusable, match=reason):
        Saved(tmp_path).singular_values("fc")


def test_a_folder_without_an_adapter_says_so(tmp_path):
    with pytest.raises(Unusable, match=r"no adapter/ with state.json and state.safetensors"):
        Saved(tmp_path)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_a_broken_file_says_so(tmp_path, name):
    trained(LoRA, {"rank": 1}, tmp_path)
    path = tmp_path / "adapter" / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(Unusable, match="adapter/: can't be read"):
        Saved(tmp_path)


def test_a_state_of_something_else_says_so(tmp_path):
    state_files.save({"other": torch.ones(1)}, tmp_path / "adapter" / "state")
    assert json.loads((tmp_path / "adapter" / "state.json").read_text())
    with pytest.raises(Unusable, match="adapter/: can't be read"):
        Saved(tmp_path)
