"""torch's own attention: opened, it computes the same; every method adapts it, merges, and leaves its names behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.variants.found import all_variants
from tests.variants.pairwise import covering
from variants.core import attention, handover, target_modules
from variants.core.handover import CannotHandOver
from variants.core.passes import Passes
from variants.core.step import Loss
from variants.core.variant import AdapterVariant
from variants.lora import LoRA

SETTINGS = covering(
    {
        "batch_first": [True, False],
        "sizes": [{}, {"kdim": 6, "vdim": 5}],
        "add_bias_kv": [False, True],
        "add_zero_attn": [False, True],
        "bias": [True, False],
        "need_weights": [True, False],
        "one row": [False, True],
        "attn_mask": [None, "of pairs", "of rows and heads", "boolean", "causal"],
        "key_padding_mask": [False, True],
    }
)
HIDDEN = float("-inf")


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_opened_it_computes_what_torchs_does(setting: tuple[Any, ...]) -> None:
    batch_first, sizes, bias_kv, zero, bias, need_weights, one_row, mask, padded = setting
    torch.manual_seed(0)
    given = {"add_bias_kv": bias_kv, "add_zero_attn": zero, "bias": bias, "batch_first": batch_first, **sizes}
    box = nn.ModuleDict({"attention": (torchs := nn.MultiheadAttention(8, 2, **given, dtype=torch.float64))})
    for parameter in box.parameters():
        nn.init.normal_(parameter)
    before = copy.deepcopy(box.state_dict())
    rows, queries = 3, 4
    keys = 4 if mask == "causal" else 5
    q, k = torch.randn(rows, queries, 8).double(), torch.randn(rows, keys, sizes.get("kdim", 8)).double()
    v = torch.randn(rows, keys, sizes["vdim"]).double() if sizes else k
    arguments: dict[str, Any] = {"need_weights": need_weights, "average_attn_weights": bias}
    if mask is not None:
        masks = {
            "of pairs": torch.randn(queries, keys).double(),
            "of rows and heads": torch.randn((1 if one_row else rows) * 2, queries, keys).double(),
            "boolean": torch.rand(queries, keys) > 0.7,
            "causal": torch.full((queries, keys), HIDDEN).double().triu(1),
        }
        arguments |= {"attn_mask": masks[mask], "is_causal": mask == "causal"}
    if padded:
        hidden = torch.tensor([[False] * keys, [False] * 3 + [True] * (keys - 3), [False] * keys])[
            1 if one_row else ...
        ]
        added = torch.zeros(hidden.shape).double().masked_fill(hidden, HIDDEN)
        arguments["key_padding_mask"] = hidden if mask in (None, "boolean") else added
    inputs = [x[0] if one_row else x if batch_first else x.transpose(0, 1) for x in (q, k, v)]
    wanted, weights = torchs(*inputs, **arguments)
    attention.open_up(box, ["attention.out_proj"])
    opened = box["attention"]
    found, found_weights = opened(*inputs, **arguments)
    torch.testing.assert_close(found, wanted, equal_nan=True)
    torch.testing.assert_close(found_weights, weights, equal_nan=True)
    assert isinstance(opened, attention.OpenAttention) and opened.q_proj.weight.shape == (8, 8)
    attention.close(box)
    assert box["attention"] is torchs and list(box.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in box.state_dict().items())


class Encoder(nn.Module):
    """Two of torch's encoder layers and a head; rows (n, 5, 8) with the last place of some padded."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=batch_first, dtype=torch.float64)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3, dtype=torch.float64)
        self.batch_first = batch_first
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = torch.zeros(x.shape[:2], dtype=torch.bool)
        padded[1::2, -1] = True
        h = self.encoder(x if self.batch_first else x.transpose(0, 1), src_key_padding_mask=padded)
        h = h if self.batch_first else h.transpose(0, 1)
        y: torch.Tensor = self.head(h[:, 0])
        return y


X = torch.randn(8, 5, 8, generator=torch.Generator().manual_seed(2)).double()
NATIVES = [cls for cls in all_variants() if issubclass(cls, AdapterVariant)]


@pytest.mark.parametrize("cls", NATIVES, ids=lambda cls: cls.__name__)
def test_every_method_adapts_and_merges_it(cls: type[AdapterVariant]) -> None:
    variant = cls(**(cls.test_params()[0] | {"targets": ["1.self_attn.*"]}))
    variant.plan(12)
    with torch.device("meta"):
        bare = Encoder()
    variant.check(bare, ("head",))
    assert isinstance(bare.encoder.layers[1].self_attn, nn.MultiheadAttention), "a check changes nothing"
    plain = Encoder()
    model = variant.attach(copy.deepcopy(plain), ("head",))
    names = [f"encoder.layers.1.self_attn.{part}" for part in attention.LAYERS]
    assert list(variant.adapters) == names

    def loss(batch: torch.Tensor) -> Loss:
        return Loss((model(batch) - 1).square().sum(), len(batch))

    batches: Any = lambda count: iter([[X]] * count)  # noqa: E731
    alone: Any = lambda count: iter([X[:1]] * count)  # noqa: E731
    variant.before_training(Passes(model, batches, alone, loss, len, logits=model))
    if cls.exact_at_start:
        torch.testing.assert_close(model(X), plain(X))
    loss(X).sum.backward()
    trained = [p for name in names for p in variant.adapters[name].parameters() if p.requires_grad]
    assert any(p.grad is not None and bool(p.grad.any()) for p in trained)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.grad is not None):
            parameter -= 0.1 * parameter.grad
    model.eval()
    with torch.no_grad():  # where torch's encoder layer has a path of its own
        unmerged = model(X)
        assert not torch.allclose(unmerged, plain(X))
        merged = variant.merged(model)
        torch.testing.assert_close(merged(X), unmerged)
    shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    assert {name: tensor.shape for name, tensor in merged.state_dict().items()} == shapes


def filled(model: nn.Module, **settings: Any) -> tuple[nn.Module, LoRA]:
    variant = LoRA(**({"rank": 2} | settings))
    model = variant.attach(model, ("head",))
    for adapter in variant.adapters.values():
        nn.init.normal_(adapter.B)
    return model.eval(), variant


@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_fast_path_reads_no_weight_beside_the_adapters(batch_first: bool) -> None:
    model, variant = filled(Encoder(batch_first), targets=["self_attn.*"])
    torch.backends.mha.set_fastpath_enabled(True)  # as another library may do
    try:
        with torch.no_grad():
            found = model(X)
            with variant.disabled():
                assert not torch.allclose(model(X), found)
        torch.testing.assert_close(model(X).detach(), found)
    finally:
        torch.backends.mha.set_fastpath_enabled(False)


def test_its_layers_see_rows_before_places_whatever_the_model_has() -> None:
    seen = []
    for batch_first in (True, False):
        model, variant = filled(Encoder(batch_first), targets=["0.self_attn.k_proj"])
        variant.adapters["encoder.layers.0.self_attn.k_proj"].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        model(X)
    assert torch.equal(*seen) and seen[0].shape == X.shape


def test_all_linear_reaches_it_and_leaves_nothing_out() -> None:
    with torch.device("meta"):
        bare = Encoder()
    assert len(LoRA(rank=2).select(bare, ("head",))) == 2 * 6 and not LoRA(rank=2).leaves_out(bare, ("head",))


def test_only_what_is_named_is_opened() -> None:
    model, variant = filled(Encoder(), targets=["linear1", "0.self_attn.v_proj"])
    assert isinstance(model.encoder.layers[1].self_attn, nn.MultiheadAttention)
    assert [name for name in variant.adapters if "self_attn" in name] == ["encoder.layers.0.self_attn.v_proj"]


def test_hooks_of_the_attention_stay() -> None:
    model, calls = Encoder(), []
    model.encoder.layers[0].self_attn.register_forward_hook(lambda *_: calls.append("called"))
    model, variant = filled(model)
    model(X)
    variant.merged(model)(X)
    assert len(calls) == 2


def test_a_bare_copy_counts_what_the_model_trains() -> None:
    with torch.device("meta"):
        bare = LoRA(rank=2).attach(Encoder(), ("head",))
    model, variant = filled(Encoder())
    counts = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (bare, model)]
    assert counts[0] == counts[1] == variant.closed_form() + 27


def test_peft_gets_no_part_of_it() -> None:
    model, variant = filled(Encoder())
    with pytest.raises(
        CannotHandOver, match=r"encoder\.layers\.0\.self_attn\.q_proj is a part of a Mul.* allowed: merged"
    ):
        variant.to_peft(model)
    handover.unwrap(model, variant.adapters)


class Own(nn.MultiheadAttention):
    pass


@pytest.mark.parametrize("how", ["subclass", "shared", "weight norm"])
def test_an_attention_that_cant_be_opened_is_left_out_loudly(how: str) -> None:
    one = Own(8, 2) if how == "subclass" else nn.MultiheadAttention(8, 2)
    model = nn.ModuleDict({"attention": one, "fc": nn.Linear(8, 8)})
    if how == "shared":
        model["again"] = one
    if how == "weight norm":
        nn.utils.parametrizations.weight_norm(one, "in_proj_weight")
    found = LoRA(rank=2)
    assert list(found.select(model)) == ["fc"]
    assert "attention.out_proj.weight" in found.leaves_out(model)
    with pytest.raises(
        ValueError, match=r"targets: attention\.out_proj is a NonDyn.*, allowed: Linear, Conv1D, Conv1d"
    ):
        target_modules.select(model, ["out_proj"], in_attention=True)
