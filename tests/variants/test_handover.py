"""What is handed over computes what was trained: as factors, as a PEFT model, as a plain model, and cut to a rank."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.variants.found import adapting, marked
from tests.variants.going_out import TIGHT, goes_out_with_equal_outputs, through_peft
from variants.core import handover, target_modules
from variants.core.adapters import svd
from variants.core.adapters.adapter import Adapter, LowRank
from variants.core.adapters.sparse_delta import SparseDelta
from variants.core.handover import CannotHandOver, products
from variants.lora import LoRA
from variants.peft import Peft
from variants.sora import SoRA
from variants.testing.case import Case
from variants.testing.toys import HEAD, KINDS, Toy, attach, data, train

pytest.importorskip("peft")

X = data(torch.float64)[0]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- the arithmetic ---------------------------------------------------------------------------


def test_a_product_at_a_rank_is_the_nearest_one():
    delta = draw(7, 5)
    s = torch.linalg.svdvals(delta)
    spectrum = svd.of_matrix(delta)
    for r in range(1, 6):
        a, b = spectrum.product(r)
        assert a.shape == (r, 5) and b.shape == (7, r)
        left = s[r:].square().sum().sqrt() / s.square().sum().sqrt()  # Eckart and Young
        assert float(torch.linalg.matrix_norm(delta - b @ a) / torch.linalg.matrix_norm(delta)) == pytest.approx(
            float(left), abs=1e-14
        )
        assert spectrum.left_out(r) == pytest.approx(float(left), abs=1e-14)


def test_the_spectrum_of_a_product_is_that_of_the_matrix():
    a, b = draw(3, 9), draw(6, 3, seed=1)
    found, dense = svd.of_product(a, b), svd.of_matrix(b @ a)
    assert found.rank == dense.rank == 3
    torch.testing.assert_close(found.s, dense.s[:3], rtol=1e-12, atol=0)
    torch.testing.assert_close((found.U * found.s) @ found.Vh, b @ a, **TIGHT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_adds_no_rank_and_takes_none(dtype):
    a, b = draw(4, 60).to(dtype), draw(40, 4, seed=1).to(dtype)
    b[:, 3] *= 1e-4  # a small component is still one
    spectrum = svd.of_matrix(b @ a)
    assert spectrum.rank == 4
    a_out, b_out = spectrum.product()
    assert a_out.dtype == dtype
    torch.testing.assert_close(b_out @ a_out, b @ a, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


def test_two_products_that_cancel_have_no_rank_left():
    a, b = draw(3, 8), draw(6, 3, seed=1)
    assert svd.of_product(torch.cat([a, a]), torch.cat([b, -b], 1)).rank == 0


def test_zeros_go():
    a, b = draw(4, 8), draw(6, 4, seed=1)
    a[1], b[:, 3] = 0, 0
    a_left, b_left = svd.without_zeros(a, b)
    assert torch.equal(a_left, a[[0, 2]]) and torch.equal(b_left, b[:, [0, 2]])
    for empty in (svd.of_product(a[:0], b[:, :0]), svd.of_matrix(torch.zeros(6, 8))):
        assert empty.rank == 0 and empty.left_out(0) == 0.0
        assert [tuple(m.shape) for m in empty.product()] == [(0, 8), (6, 0)]


# -- every variant ----------------------------------------------------------------------------


# Every setting on Linear is handed over where it keeps its promises: tests/variants/test_contract.py. What becomes of
# the other kinds depends on the class of the adapter.
OTHER_KINDS = [Case(cls, params, kind) for cls, params in adapting() for kind in KINDS if kind != "Linear"]


@pytest.mark.parametrize("case", marked(OTHER_KINDS), ids=str)
def test_on_every_kind_a_variant_goes_out_to_peft_and_as_a_plain_model_with_equal_outputs(case, monkeypatch, tmp_path):
    monkeypatch.setitem(KINDS, "Conv1D", lambda: (Conv1D(12, 8), Conv1D(8, 12)))  # PEFT knows transformers' own alone
    if case.refusal is None:  # else the method takes no layers of this kind
        goes_out_with_equal_outputs(case, tmp_path)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("params", [{"rank": 3}, {"rank": 2, "init": "pissa"}], ids=str)
def test_in_lower_precision_outputs_are_equal_to_its_digits(dtype, tolerance, params, tmp_path):
    run = train(attach(LoRA, params, dtype))
    wanted = run.output()
    loaded = through_peft(run.variant.to_peft(run.model, HEAD), Toy(dtype), tmp_path)
    torch.testing.assert_close(loaded(data(dtype)[0]), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "params",
    [
        {"method": "ia3", "targets": ["fc1", "fc2"], "options": {"feedforward_modules": []}},
        {"method": "loha", "options": {"r": 2}},
        {"method": "shira", "options": {"r": 2}},
        {"method": "lora", "options": {"r": 2, "use_dora": True}},
        {"method": "ln_tuning", "targets": None, "options": {"target_modules": ["norm"]}},
        {"method": "adamss", "options": {"r": 4, "num_subspaces": 2}},
    ],
    ids=lambda params: params["method"],
)
def test_pefts_methods_go_out_as_peft_writes_them(params, tmp_path):
    run = train(attach(Peft, params, torch.float64))
    wanted = run.output()
    loaded = through_peft(run.variant.to_peft(run.model, HEAD), Toy(torch.float64), tmp_path)
    torch.testing.assert_close(loaded(X), wanted, **TIGHT)
    run = train(attach(Peft, params, torch.float64))
    torch.testing.assert_close(run.variant.merged(run.model)(X), wanted, **TIGHT)


# -- an adapter that nobody knows yet ---------------------------------------------------------


class Whole(Adapter):
    """A dense ΔW and nothing else that an adapter may define."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.change = nn.Parameter(torch.zeros_like(self.layer_kind.matrix))

    def delta(self) -> torch.Tensor:
        return self.change

    def update(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer_kind.project(x, self.change)


class Lying(LowRank):
    """Its factors are not those of its ΔW."""

    def as_product(self) -> svd.Product:
        return self.A.detach(), 2 * self.B.detach()


def filled(adapter: Adapter, seed: int = 5) -> Adapter:
    """Some numbers in place of training."""
    for place, parameter in enumerate(p for p in adapter.parameters() if p.requires_grad):
        parameter.data += 0.3 * draw(*parameter.shape, seed=seed + place).to(parameter.dtype)
    return adapter.eval()


def test_an_unknown_adapter_goes_out_through_the_svd_of_its_update(tmp_path):
    model = Toy(torch.float64).eval()
    adapters = {}
    for name in ("layer.0.fc1", "layer.1.fc2"):
        adapters[name] = filled(Whole(model.get_submodule(name)))
        target_modules.replace(model, name, adapters[name])
    wanted = model(X)
    update = products(adapters["layer.0.fc1"])[0]
    assert update.rank == 8 and update.is_exact and update.relative_error < 1e-13
    loaded = through_peft(handover.to_peft(model, adapters, HEAD), Toy(torch.float64), tmp_path)
    torch.testing.assert_close(loaded(X), wanted, **TIGHT)


def test_factors_that_are_not_those_of_the_update_are_noticed():
    with pytest.raises(RuntimeError, match=r"Lying.as_product\(\) is not ΔW"):
        products(filled(Lying(nn.Linear(8, 12), 2, 1.0)))


def test_known_factors_go_out_bit_for_bit():
    adapter = filled(LowRank(nn.Linear(8, 12), 3, 2.0))
    (update,) = products(adapter)
    assert torch.equal(update.A, adapter.A) and torch.equal(update.B, adapter.B * 2)


def test_more_components_than_the_layer_has_rows_go_out_at_its_rank():
    adapter = filled(LowRank(nn.Linear(4, 6).double(), 9, 1.0))
    (update,) = products(adapter)
    assert update.rank == 4
    torch.testing.assert_close(update.B @ update.A, adapter.delta().detach(), **TIGHT)


def test_what_is_handed_over_is_what_evaluation_computes():
    run = train(attach(SoRA, {"rank": 4, "threshold": 0.03}, torch.float64))
    run.model.train()
    products(next(iter(run.variant.adapters.values())))
    assert all(module.training for module in run.model.modules())


# -- every kind of layer ----------------------------------------------------------------------


class Kinds(nn.Module):
    """One layer of each kind, one of which has a name that another one ends in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.rows = nn.Embedding(10, 16, padding_idx=0)
        self.conv = nn.Conv2d(1, 6, (3, 2), stride=2, padding=1)
        self.mix = Conv1D(8, 6)
        self.fc = nn.Linear(8, 8)
        self.block = nn.ModuleDict({"fc": nn.Linear(8, 8, bias=False)})
        self.head = nn.Linear(8, 3)
        self.double()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(self.rows(x)[:, None]).flatten(2).mean(2)
        return self.head(self.block["fc"](torch.tanh(self.fc(torch.tanh(self.mix(h))))))


ROWS = torch.tensor([[0, 3, 3, 7], [9, 1, 0, 2], [5, 5, 8, 4]])
LAYERS = ["rows", "conv", "mix", "fc", "block.fc"]


def low(layer: nn.Module, place: int) -> Adapter:
    return LowRank(layer, 1 + place % 3, 0.5)


def sparse(layer: nn.Module, place: int) -> Adapter:
    count = layer.weight.numel()
    return SparseDelta(layer, torch.randperm(count, generator=torch.Generator().manual_seed(place))[: count // 3])


def adapted(make: Any, names: list[str]) -> tuple[nn.Module, dict[str, Adapter]]:
    model, adapters = Kinds().eval(), {}
    for place, name in enumerate(names):
        adapters[name] = filled(make(model.get_submodule(name), place), seed=place)
        target_modules.replace(model, name, adapters[name])
    return model, adapters


@pytest.mark.parametrize("names", [LAYERS, *([name] for name in LAYERS)], ids=str)
@pytest.mark.parametrize("make", [low, sparse])
def test_every_kind_of_layer_goes_out_to_peft(make, names, tmp_path):
    model, adapters = adapted(make, names)
    wanted = model(ROWS)
    wrapped = handover.to_peft(model, adapters, HEAD)
    torch.testing.assert_close(wrapped(ROWS), wanted, **TIGHT)
    loaded = through_peft(wrapped, Kinds(), tmp_path)
    torch.testing.assert_close(loaded(ROWS), wanted, **TIGHT)


def test_a_name_that_others_end_in_means_one_layer_alone(tmp_path):
    model, adapters = adapted(low, ["fc"])
    wrapped = handover.to_peft(model, adapters, HEAD)
    assert wrapped.peft_config["default"].target_modules == "fc"  # a pattern, which has to match the whole name
    assert not hasattr(wrapped.base_model.model.block["fc"], "lora_A")


def test_ranks_that_differ_stand_in_the_patterns(tmp_path):
    model, adapters = adapted(low, ["block.fc", "fc", "mix"])
    through_peft(handover.to_peft(model, adapters, HEAD), Kinds(), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 1
    assert config["rank_pattern"] == config["alpha_pattern"] == {"^fc": 2, "^mix": 3}
    assert config["target_modules"] == ["block.fc", "fc", "mix"] and config["modules_to_save"] == ["head"]


def test_a_convolution_over_one_axis_is_pefts_own():
    torch.manual_seed(0)
    layer, wave = nn.Conv1d(3, 6, 4, stride=2, padding=1).double(), torch.randn(2, 3, 20).double()
    model = nn.ModuleDict({"conv": layer, "head": nn.Linear(2, 2)})
    adapter = filled(LowRank(layer, 2, 0.5))
    expected = adapter(wave)
    wrapped = handover.to_peft(model, {"conv": adapter}, HEAD)
    torch.testing.assert_close(wrapped.base_model.model["conv"](wave), expected, rtol=1e-12, atol=1e-12)


def test_a_convolution_that_peft_would_make_otherwise_is_refused():
    for options in ({"dilation": 2}, {"padding": 1, "padding_mode": "reflect"}, {"groups": 3}):
        layer = nn.Conv2d(3, 6, 3, **options)
        model = nn.ModuleDict({"conv": layer, "head": nn.Linear(2, 2)})
        adapter = filled(LowRank(layer, 2, 1.0))
        with pytest.raises(CannotHandOver, match=r"conv is a Conv2d with padding_mode=.*; allowed: merged"):
            handover.to_peft(model, {"conv": adapter}, HEAD)


def test_a_head_whose_name_others_end_in_is_refused():
    model = Toy()
    model.ahead = nn.Linear(2, 2)
    adapter = filled(LowRank(model.layer[0]["fc1"], 2, 1.0))
    with pytest.raises(CannotHandOver, match="PEFT can't tell ahead from others by its name; allowed: merged"):
        handover.to_peft(model, {"layer.0.fc1": adapter}, HEAD)


# -- layers without a rank --------------------------------------------------------------------


def test_a_layer_that_lost_all_its_ranks_is_no_part_of_it(tmp_path):
    run = train(attach(LoRA, {"rank": 2}, torch.float64))
    run.variant.adapters["layer.0.fc2"].keep(torch.arange(0), None)
    wanted = run.output()
    (update,) = products(run.variant.adapters["layer.0.fc2"])
    assert (update.rank, update.full_rank, update.relative_error, update.norm) == (0, 0, 0.0, 0.0)
    merged = copy.deepcopy(run)
    torch.testing.assert_close(merged.variant.merged(merged.model)(X), wanted, **TIGHT)
    loaded = through_peft(run.variant.to_peft(run.model, HEAD), Toy(torch.float64), tmp_path)
    torch.testing.assert_close(loaded(X), wanted, **TIGHT)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["layer.0.fc1", "layer.1.fc1", "layer.1.fc2"]


def test_without_any_rank_there_is_nothing_for_peft():
    run = attach(LoRA, {"rank": 2})  # B is zero before the first step
    with pytest.raises(CannotHandOver, match=r"all 4 layers have rank 0, .*; allowed: merged"):
        run.variant.to_peft(run.model, HEAD)


# -- cut to a rank ----------------------------------------------------------------------------


def test_a_cut_update_is_the_nearest_of_its_rank_and_says_how_near():
    run = train(attach(LoRA, {"rank": 4, "init": "pissa"}, torch.float64))
    for adapter in run.variant.adapters.values():
        delta = adapter.delta().detach()
        u, s, vh = torch.linalg.svd(delta)
        own, *cut = products(adapter, [None, 1, 3, 50])
        assert [update.rank for update in cut] == [1, 3, 8] and own.rank == own.full_rank == 8
        for update, r in zip(cut, (1, 3, 8), strict=True):
            torch.testing.assert_close(update.B @ update.A, (u[:, :r] * s[:r]) @ vh[:r], **TIGHT)
            left = float(s[r:].square().sum().sqrt() / s.square().sum().sqrt())
            assert update.relative_error == pytest.approx(left, abs=1e-13)
            assert update.norm == pytest.approx(float(torch.linalg.matrix_norm(delta)))
        assert [update.is_exact for update in cut] == [False, False, True]


def test_plain_adapters_take_the_place_of_the_methods_own():
    run = train(attach(SoRA, {"rank": 4, "threshold": 0.03}, torch.float64))
    wanted = run.output()
    adapters = run.variant.adapters
    handover.replace_adapters(run.model, adapters, {name: products(adapter)[0] for name, adapter in adapters.items()})
    torch.testing.assert_close(run.output(), wanted, **TIGHT)
    truncated = {name: products(adapter, [1])[0] for name, adapter in adapters.items()}
    handover.replace_adapters(run.model, adapters, truncated)
    assert max(run.variant.ranks().values()) == 1 and not torch.allclose(run.output(), wanted)
    for name, adapter in adapters.items():
        assert run.model.get_submodule(name) is adapter and type(adapter) is LowRank


def test_a_merged_update_is_rounded_once_to_the_weights_precision():
    layer = nn.Linear(8, 12).to(torch.bfloat16)
    adapter = filled(LowRank(layer, 2, 1.0))
    exact = layer.weight.detach().double() + adapter.delta().detach().double()
    model = nn.ModuleDict({"fc": adapter})
    variant = LoRA(rank=2)
    variant.adapters["fc"] = adapter
    assert variant.merged(model)["fc"] is layer
    # Half a unit in the last of bfloat16's eight digits, and the float32 sum before it.
    assert ((layer.weight.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-7).all()
    assert F.linear(torch.ones(8, dtype=torch.bfloat16), layer.weight).dtype == torch.bfloat16


def test_the_files_are_those_that_vllm_reads(tmp_path):
    """Without patterns a layer's scale is α / r of the config: 1, whatever the layer's own rank."""
    model, adapters = adapted(low, ["block.fc", "fc", "mix"])
    handover.to_peft(model, adapters, HEAD).save_pretrained(tmp_path, save_embedding_layers=False)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] > 0 and config["bias"] == "none"
    assert not (config["use_dora"] or config["use_rslora"] or config["lora_bias"])
    assert config["lora_alpha"] == config["r"] and config["alpha_pattern"] == config["rank_pattern"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for name in adapters:
        a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        assert a.shape[0] == b.shape[1]
