"""SVDiff, SVFT and LoRA-XS: the released codes' numbers, patterns, counts, layers, what is never formed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.variants import oracles
from tests.variants.kinds import OF_EVERY_KIND
from variants.core.basis_variant import BasisVariant
from variants.core.decompositions import decompose
from variants.core.state_files import CorruptState
from variants.lora_xs import LoRAXS
from variants.svdiff import SVDiff
from variants.svft import SVFT, entries
from variants.testing import contract
from variants.testing.contract import HEAD, Toy, attach, train

CLASSES = [SVDiff, SVFT, LoRAXS]


def with_stored_factors(variant: BasisVariant, oracle: oracles.Oracle) -> nn.Module:
    """The oracle's toy with `variant` on it, in the stored basis (signs are free)."""
    model = variant.attach(oracle.model())
    for name, adapter in variant.adapters.items():
        for part, stored in (("U", "U"), ("Vh", "Vt"), ("s", "S")):
            if hasattr(adapter, part):
                found, given = getattr(adapter, part), oracle.tensor(f"svd/{name}.{stored}")
                torch.testing.assert_close(found.abs(), given.abs(), rtol=1e-9, atol=1e-12)
                found.copy_(given)
    return model


def follow(oracle: oracles.Oracle, model: nn.Module, variant: BasisVariant, optimizer, parameters) -> None:
    """Trains step by step beside the oracle. parameters: of one adapter, by the oracle's names."""
    arrays, x, y = oracle.arrays, oracle.tensor("toy/X"), oracle.tensor("toy/Y")
    losses, norms, steps, seen = [], [], len(arrays["loss_task"]), set()

    def close(found, key: str) -> None:
        if key in arrays:
            seen.add(key)
            # What is zero but for rounding has no size to be relative to.
            if abs(arrays[key]).max() > 1e-12:
                oracle.close(found, key)
            else:
                assert float(found.detach().abs().max()) <= 1e-12, key

    def check_state(step: int) -> None:
        key = f"after_{step:03d}"
        if f"{key}/output" not in arrays:
            return
        close(model(x), f"{key}/output")
        close(F.mse_loss(model(x), y), f"{key}/loss_task")
        for name, adapter in variant.adapters.items():
            close(adapter.delta_weight(), f"{key}/delta/{name}")
            for part, parameter in parameters(adapter).items():
                close(parameter, f"{key}/param/{name}.{part}")

    for step in range(steps):
        check_state(step)
        loss = F.mse_loss(model(x), y)
        loss.backward()
        losses.append(loss.item())
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))))
        for name, adapter in variant.adapters.items():
            for part, parameter in parameters(adapter).items():
                close(parameter.grad, f"grad/{step:03d}/{name}.{part}")
        optimizer.step()
        optimizer.zero_grad()
        if "clipped" in arrays:
            clipped = [int((a.s + a.scale * a.delta_s <= 0).sum()) for a in variant.adapters.values()]
            assert clipped == arrays["clipped"][step].tolist()
    check_state(steps)
    oracle.close(losses, "loss_task")
    oracle.close(norms, "grad_norm")
    wanted = {key for key in arrays if key.startswith(("after_", "grad/"))}
    assert seen == wanted, f"not compared: {sorted(wanted - seen)}"


def test_every_number_of_the_released_svdiff():
    oracle = oracles.load("svdiff")
    variant = SVDiff()
    model = with_stored_factors(variant, oracle)
    optimizer = oracles.optimizer(model, variant, lr=0.04, weight_decay=0.01)
    assert oracle.arrays["clipped"].any(), "the ReLU acts"
    follow(oracle, model, variant, optimizer, lambda a: {"delta": a.delta_s})


def test_every_number_of_the_released_svft():
    oracle = oracles.load("svft_plain")
    variant = SVFT(pattern="banded", off_diagonals=0, profile="released")
    model = with_stored_factors(variant, oracle)
    for name, adapter in variant.adapters.items():
        assert torch.equal(torch.stack([adapter.rows, adapter.columns]), oracle.tensor(f"indices/{name}"))
        adapter.values.data = oracle.tensor(f"after_000/param/{name}.s").clone()
    optimizer = oracles.optimizer(model, variant, lr=0.05)
    follow(oracle, model, variant, optimizer, lambda a: {"s": a.values, "gate": a.gate})


def test_plain_is_banded_without_off_diagonals():
    oracle = oracles.load("svft_plain")
    variant = SVFT(profile="released")
    model = with_stored_factors(variant, oracle)
    for name, adapter in variant.adapters.items():
        adapter.values.data = oracle.tensor(f"after_000/param/{name}.s").clone()
    optimizer = oracles.optimizer(model, variant, lr=0.05)
    follow(oracle, model, variant, optimizer, lambda a: {"s": a.values, "gate": a.gate})


# Patterns and counts.


@pytest.mark.parametrize(("n", "d", "k"), [(768, 0, 768), (768, 2, 3834), (5, 1, 13), (5, 4, 25), (1, 0, 1)])
def test_entries_of_a_band(n, d, k):
    assert entries(n, d) == k == int(torch.ones(n, n).tril(d).triu(-d).sum())


@pytest.mark.parametrize("pattern", ["plain", "banded", "random", "top_k"])
@pytest.mark.parametrize("profile", ["paper", "released"])
def test_patterns(pattern, profile):
    torch.manual_seed(0)
    layer = nn.Linear(7, 7)
    d = 0 if pattern == "plain" else 2
    variant = SVFT(pattern=pattern, off_diagonals=d, profile=profile, targets=["0"])
    variant.attach(nn.Sequential(layer))
    adapter = variant.adapters["0"]
    places = list(zip(adapter.rows.tolist(), adapter.columns.tolist(), strict=True))
    assert len(places) == len(adapter.values) == entries(7, d)
    assert adapter.closed_form() == entries(7, d) + (profile == "released")
    if pattern in ("plain", "banded"):
        assert places == [(i, j) for i in range(7) for j in range(7) if abs(i - j) <= d]
    u, vh = adapter.U, adapter.Vh
    if pattern == "random":
        assert (len(set(places)) == len(places)) == (profile == "paper")
        again = SVFT(pattern=pattern, off_diagonals=d, profile=profile, targets=["0"], seed=1)
        again.attach(nn.Sequential(copy.deepcopy(adapter.base)))
        assert not torch.equal(again.adapters["0"].rows, adapter.rows)
    if pattern == "top_k":
        strength = (u.T @ vh.T).abs() if profile == "paper" else u @ vh.T
        chosen = strength[adapter.rows, adapter.columns]
        assert chosen.min() >= strength.flatten().sort(descending=True).values[len(places) - 1]


def test_what_falls_on_one_entry_is_summed():
    variant = SVFT(pattern="random", off_diagonals=3, profile="released", targets=["0"])
    variant.attach(nn.Sequential(nn.Linear(6, 6)))
    adapter = variant.adapters["0"]
    dense = torch.zeros(6, 6)
    for i, j, value in zip(adapter.rows, adapter.columns, adapter.values.detach() / 2, strict=True):
        dense[i, j] += value
    torch.testing.assert_close(adapter.core().detach(), dense)


def test_a_multiple_of_one_shifts_every_singular_value():
    layer = nn.Linear(9, 6, dtype=torch.float64)
    for variant in (SVFT(targets=["0"]), SVDiff(targets=["0"])):
        model = variant.attach(nn.Sequential(copy.deepcopy(layer)))
        adapter = variant.adapters["0"]
        next(p for p in adapter.parameters() if p.requires_grad).data.fill_(0.25)
        adapter.merge()
        shifted = torch.linalg.svdvals(model[0].weight)
        torch.testing.assert_close(shifted, torch.linalg.svdvals(layer.weight) + 0.25, rtol=1e-12, atol=0)


# The released profile of SVFT does not start from the base model; everything else of the contract holds.


def test_the_released_start():
    torch.manual_seed(0)
    variant = SVFT(profile="released", targets=["0"])
    model = variant.attach(nn.Sequential(nn.Linear(768, 768, bias=False)))
    adapter = variant.adapters["0"]
    assert float(adapter.values.detach().std()) == pytest.approx((2 / 768) ** 0.5, rel=0.1)
    assert adapter.gate.item() == 0 and torch.equal(adapter.core(), adapter.values / 2)
    x = torch.randn(3, 768)
    assert not torch.equal(model(x), adapter.base(x))


@pytest.mark.parametrize("check", [c for c in contract.CHECKS if c is not contract.starts_at_the_base_model])
@pytest.mark.parametrize(
    "params",
    [
        {"profile": "released"},
        {"profile": "released", "pattern": "random", "off_diagonals": 1},
        {"profile": "released", "pattern": "top_k", "off_diagonals": 1},
    ],
    ids=str,
)
def test_the_released_profile_keeps_the_other_promises(check, params):
    check(SVFT, params)


# Every method, on every layer.


@pytest.mark.parametrize(("layer", "x"), OF_EVERY_KIND)
@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (SVDiff, {}),
        (SVDiff, {"rank": 3}),
        (SVDiff, {"rank": 3, "decomposition": "nmf"}),
        (SVFT, {}),
        (SVFT, {"pattern": "banded", "off_diagonals": 1}),
        (LoRAXS, {"rank": 3}),
    ],
    ids=str,
)
def test_every_kind_of_layer(cls, params, layer, x):
    variant = cls(targets=["0"], **params)
    base = copy.deepcopy(layer).double()
    model = variant.attach(nn.Sequential(copy.deepcopy(base))).eval()
    adapter = variant.adapters["0"]
    x = x.double() if x.is_floating_point() else x
    if cls.exact_at_start:
        assert torch.equal(model(x), base(x))
    trained = [p for p in adapter.parameters() if p.requires_grad]
    torch.manual_seed(0)
    for parameter in trained:
        nn.init.normal_(parameter)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in trained) and adapter.weight.grad is None
    dense = copy.deepcopy(base)
    with torch.no_grad():
        dense.weight += adapter.delta_weight()
    output = model(x)
    torch.testing.assert_close(output, dense(x), rtol=1e-11, atol=1e-11)
    assert adapter.delta_weight().shape == layer.weight.shape
    adapter.merge()
    torch.testing.assert_close(model(x), output, rtol=1e-11, atol=1e-11)
    adapter.unmerge()
    assert torch.equal(adapter.weight, base.weight) and torch.equal(model(x), output)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_rest_of_the_weight_stays(cls):
    settings = {} if cls is not SVFT else {"pattern": "banded", "off_diagonals": 1}
    run = train(attach(cls, {"rank": 3, **settings}, torch.float64))
    for adapter in run.variant.adapters.values():
        delta = adapter.delta_weight().detach()
        u, _, vh = torch.linalg.svd(adapter.weight, full_matrices=False)
        assert delta.abs().max() > 1e-3 and adapter.rank == 3
        torch.testing.assert_close(u[:, 3:].T @ delta, torch.zeros(5, delta.shape[1]).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(delta @ vh[3:].T, torch.zeros(len(delta), 5).double(), rtol=0, atol=1e-12)


class Shapes(TorchDispatchMode):
    """Notes what is computed in the shape of the weight."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.shapes, self.found = shapes, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        views = ("aten.t.", "aten.transpose.", "aten.detach.")
        if getattr(result, "shape", None) in self.shapes and not str(func).startswith(views):
            self.found.append(str(func))
        return result


@pytest.mark.parametrize(
    ("cls", "params"),
    [(SVDiff, {"rank": 5}), (SVFT, {"rank": 5, "pattern": "banded", "off_diagonals": 1}), (LoRAXS, {"rank": 5})],
    ids=str,
)
def test_the_update_is_never_formed(cls, params):
    variant = cls(targets=["0"], **params)
    model = variant.attach(nn.Sequential(nn.Linear(7, 11)))
    with Shapes((11, 7), (7, 11)) as mode:
        model(torch.randn(4, 7)).sum().backward()
    assert mode.found == []
    with Shapes((11, 7)) as mode:
        variant.adapters["0"].delta()
    assert mode.found, "the test sees what it looks for"


def test_a_clipped_value_takes_its_direction_away_and_has_no_gradient():
    variant = SVDiff(targets=["0"], scale=2.0)
    model = variant.attach(nn.Sequential(nn.Linear(6, 4, dtype=torch.float64)))
    adapter = variant.adapters["0"]
    adapter.delta_s.data[1] = -adapter.s[1]
    model(torch.randn(5, 6, dtype=torch.float64)).square().sum().backward()
    assert adapter.delta_s.grad[1] == 0 and adapter.delta_s.grad[0] != 0
    merged = adapter.weight + adapter.delta()
    torch.testing.assert_close(adapter.U[:, 1] @ merged, torch.zeros(6).double(), rtol=0, atol=1e-12)
    assert adapter.rank == 1, "one direction has changed"


def test_lora_xs_by_its_formula():
    torch.manual_seed(0)
    layer = nn.Linear(9, 6, dtype=torch.float64)
    variant = LoRAXS(rank=3, alpha=6, targets=["0"])
    model = variant.attach(nn.Sequential(copy.deepcopy(layer)))
    adapter = variant.adapters["0"]
    assert float(adapter.R.detach().abs().max()) < 1e-4 and adapter.R.any()
    nn.init.normal_(adapter.R)
    u, s, vh = torch.linalg.svd(layer.weight, full_matrices=False)
    # In another basis of the same subspaces R changes with the signs.
    signs = torch.sign((u[:, :3] * adapter.U).sum(0))
    a, b = (signs * s[:3])[:, None] * vh[:3], u[:, :3] * signs
    x = torch.randn(4, 9, dtype=torch.float64)
    torch.testing.assert_close(model(x), layer(x) + 2 * x @ a.T @ adapter.R.T @ b.T, rtol=1e-12, atol=1e-12)
    assert adapter.closed_form() == 9


def test_lora_xs_can_start_from_the_base_model_and_still_learns():
    run = attach(LoRAXS, {"rank": 3, "init_std": 0.0})
    assert torch.equal(run.output(), contract.base_output())
    contract.lowers_the_loss(LoRAXS, {"rank": 3, "init_std": 0.0})


def test_dropout_acts_in_training_only():
    run = attach(LoRAXS, {"rank": 3, "dropout": 0.5, "init_std": 1.0})
    x = contract.data()[0]
    run.model.train()
    assert not torch.equal(run.model(x), run.model(x))
    assert torch.equal(run.output(), run.output())


# The basis and the checkpoint.


@pytest.mark.parametrize("cls", CLASSES)
def test_the_basis_is_in_no_state_and_reported(cls):
    run = attach(cls, {"rank": 3})
    held = {name.rpartition(".")[2] for name in run.model.state_dict()}
    assert not {"U", "Vh", "s", "rows", "columns"} & held
    for name, found in run.variant.decompositions().items():
        layer = dict(Toy().named_modules())[name]
        alone = decompose(layer.weight, "svd", 3)
        assert found == {"directions": 3, "relative_error": alone.relative_error, "explained": alone.explained}


def test_the_report_weighs_the_energy_of_the_layers():
    run = attach(SVDiff, {"rank": 3})
    adapters = run.variant.adapters.values()
    pairs = [(adapter.layer_kind.matrix, adapter.U * adapter.s @ adapter.Vh) for adapter in adapters]
    weights, deltas = ([matrix.detach() for matrix in part] for part in zip(*pairs, strict=True))
    missed = sum((w - d).square().sum() for w, d in zip(weights, deltas, strict=True))
    found = run.variant.report()
    assert found["decomposition.explained"] == pytest.approx(1 - float(missed / sum(w.square().sum() for w in weights)))
    assert found["decomposition.largest_error"] >= found["decomposition.relative_error"] > 0
    assert found["decomposition.directions"] == 3


def test_a_state_does_not_fit_another_basis():
    settings = {"pattern": "random", "off_diagonals": 1}
    saved = attach(SVFT, settings).variant.state_dict()
    other = attach(SVFT, settings)
    other.variant.load_state_dict(saved)
    for change in ({"seed": 1}, {"rank": 7}):
        with pytest.raises(CorruptState, match=r"layer.0.fc1: its basis is not the one trained in"):
            attach(SVFT, {**settings, **change}).variant.load_state_dict(saved)
    with pytest.raises(CorruptState, match=r"layer.0.fc1: the state was trained without this layer"):
        other.variant.load_state_dict({"basis": {}})
    moved = Toy()
    with torch.no_grad():
        moved.layer[0]["fc1"].weight += 0.1 * torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    variant = SVFT(**settings)
    variant.attach(moved, HEAD)
    with pytest.raises(CorruptState, match=r"layer.0.fc1"):
        variant.load_state_dict(saved)


def test_training_leaves_the_basis_alone():
    run = attach(SVFT, {"pattern": "banded", "off_diagonals": 1})
    before = {name: (a.U.clone(), a.Vh.clone()) for name, a in run.variant.adapters.items()}
    train(run)
    for name, (u, vh) in before.items():
        adapter = run.variant.adapters[name]
        assert torch.equal(adapter.U, u) and torch.equal(adapter.Vh, vh)


# What is refused, before a weight is there.


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (SVDiff, {"rank": 0}, "rank: 0, allowed: a whole number ≥ 1, a fraction"),
        (SVDiff, {"scale": 0}, "scale: 0, allowed: a number > 0"),
        (SVDiff, {"decomposition": "nmf"}, "rank: null, allowed with decomposition=nmf: a whole number"),
        (SVFT, {"pattern": "diagonal"}, "pattern: 'diagonal', allowed: plain, banded, random, top_k"),
        (SVFT, {"profile": "official"}, "profile: 'official', allowed: paper, released"),
        (SVFT, {"off_diagonals": 1}, "off_diagonals: 1, allowed with pattern=plain: 0"),
        (SVFT, {"pattern": "banded", "off_diagonals": -1}, "off_diagonals: -1, allowed: a whole number ≥ 0"),
        (SVFT, {"profile": "released", "rank": 4}, "rank: 4, allowed with profile=released: null"),
        (
            SVFT,
            {"profile": "released", "decomposition": "als", "rank": 4},
            "rank: 4, allowed with profile=released: null",
        ),
        (LoRAXS, {"alpha": -1}, "alpha: -1, allowed: a number > 0"),
        (LoRAXS, {"dropout": 1.0}, "dropout: 1.0, allowed: 0 ≤ dropout < 1"),
        (LoRAXS, {"init_std": -1.0}, "init_std: -1.0, allowed: a number ≥ 0"),
        (LoRAXS, {"seed": 0.5}, "seed: 0.5, allowed: a whole number"),
    ],
)
def test_values_that_can_not_be(cls, settings, message):
    with pytest.raises(ValueError) as caught:
        cls(**settings)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (SVDiff(rank=9), "rank: 9 for a layer of size 12×8, allowed: 1 … 8"),
        (LoRAXS(rank=16), "rank: 16 for a layer of size 12×8, allowed: 1 … 8"),
        (SVFT(pattern="banded", off_diagonals=8), "off_diagonals: 8 for 8 directions, allowed: 0 … 7"),
        (SVFT(pattern="random", off_diagonals=3, rank=3), "off_diagonals: 3 for 3 directions, allowed: 0 … 2"),
        (SVFT(pattern="top_k"), "pattern: top_k for a layer of size 12×8, allowed there: plain, banded, random"),
    ],
)
def test_sizes_that_can_not_be(variant, message):
    with torch.device("meta"):
        model = Toy()
    with pytest.raises(ValueError) as caught:
        variant.check(model, HEAD)
    assert str(caught.value) == message


def test_dropout_on_row_numbers_is_refused():
    variant = LoRAXS(rank=2, dropout=0.1, targets=["0"])
    with torch.device("meta"):
        model = nn.Sequential(nn.Embedding(10, 6))
    with pytest.raises(ValueError, match=r"dropout: 0.1 on the Embedding 0, allowed: 0; its input is an index"):
        variant.check(model)
