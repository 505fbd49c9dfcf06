"""Weight decay: every method says what it acts on, and the shape that a parameter is kept in decides nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.variants import oracles
from tests.variants.found import all_variants, has_hooks, settings
from variants._template import Template
from variants.core.variant import Variant
from variants.diff_pruning import DiffPruning
from variants.dora import DoRA
from variants.fish import FISH
from variants.flexlora import FlexLoRA
from variants.l1ra import L1RA
from variants.lora import LoRA
from variants.lt_sft import LTSFT
from variants.peft import Peft
from variants.salora import SaLoRA
from variants.sora import SoRA
from variants.sparse import SparseLoRA
from variants.testing.case import adapters
from variants.testing.contract import HEAD, Trained, attach, train
from variants.testing.toys import Toy

DECAY = 0.1
OWN = {  # last names of the parameters of an adapter on which the run's decay does not act, and the decay of these
    L1RA: {"e": 0.0},
    SoRA: {"e": 0.0},
    DoRA: {"magnitude": 0.01},
    Template: {"s": 0.0},
    FISH: {"bias_values": 0.0},
    LTSFT: {"bias_values": 0.0},
    SaLoRA: {"e": 0.0},
    DiffPruning: {"gates": 0.0, "weight_gate": 0.0},
}
SETTINGS = [
    pytest.param(cls, params, marks=() if params == cls.test_params()[0] else pytest.mark.slow)
    for cls, params in settings()
]


def with_the_trainers(run: Trained, decay: float) -> Trained:
    """`run` with the optimizer that a run would have."""
    run.optimizer = oracles.optimizer(run.model, run.variant, 0.02, decay, HEAD)
    run.scheduler = torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda step: 1 - 0.5 * step / 12)
    return run


def decays(run: Trained) -> dict[str, float]:
    """The weight decay of every trained parameter, by name."""
    found = {id(p): group["weight_decay"] for group in run.optimizer.param_groups for p in group["params"]}
    return {name: found[id(p)] for name, p in run.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("cls", "params"), SETTINGS, ids=lambda part: getattr(part, "__name__", str(part)))
def test_all_of_an_adapter_decays_but_what_the_method_spares(cls: type[Variant], params: dict[str, Any]) -> None:
    params = params | ({"magnitude_decay": 0.01} if cls is DoRA else {})
    run = with_the_trainers(attach(cls, params), DECAY)
    spared = OWN.get(cls, {}) | (dict.fromkeys(("A", "B", "values"), 0.0) if params.get("decay_after_step") else {})
    before = {name: value for name, value in decays(run).items() if not name.startswith("head")}
    if has_hooks(cls):
        train(run)  # in which parameters are pruned, moved and grown
    after = {name: value for name, value in decays(run).items() if not name.startswith("head")}
    # The released FlexLoRA makes its optimizer anew when ranks have moved, and gives it no decay.
    spared_after = dict.fromkeys("ABe", 0.0) if cls is FlexLoRA and params.get("profile") == "released" else spared
    for found, exempt in ((before, spared), (after, spared_after)):
        inside = [name for name in found if any(name.startswith(f"{adapter}.") for adapter, _ in adapters(run))]
        expected = {n: exempt.get(n.rpartition(".")[2], DECAY) for n in inside}
        assert {n: found[n] for n in inside} == expected, "what a method spares stands in OWN, at the top of this file"


@pytest.mark.parametrize("cls", all_variants(), ids=lambda cls: cls.__name__)
def test_the_card_says_what_decays(cls: type[Variant]) -> None:
    card = __import__(cls.__module__, fromlist=["__doc__"]).__doc__
    assert re.search(r"^Decay {5}\S", card, re.MULTILINE)


def test_of_a_models_own_weights_and_of_the_head_matrices_alone_decay() -> None:
    full = decays(with_the_trainers(attach(*by_name("Full")), DECAY))
    model = Toy()
    assert full == {name: DECAY if p.ndim >= 2 else 0.0 for name, p in model.named_parameters()}
    assert {0.0, DECAY} == set(full.values())
    bitfit = decays(with_the_trainers(attach(*by_name("BitFit")), DECAY))
    assert {n: v for n, v in bitfit.items() if v} == {"head.weight": DECAY}


def by_name(name: str) -> tuple[type[Variant], dict[str, Any]]:
    return next((cls, cls.test_params()[0]) for cls in all_variants() if cls.__name__ == name)


@pytest.mark.parametrize("decay", [0.0, 0.1, 3.0])
def test_a_sparse_lora_of_density_one_is_lora_to_the_bit(decay: float) -> None:
    updates = []
    for cls, params in ((LoRA, {}), (SparseLoRA, {"density": 1.0})):
        run = train(with_the_trainers(attach(cls, {"rank": 4, **params}), decay))
        updates.append([adapter.delta_weight() for _, adapter in adapters(run)])
    assert all(map(torch.equal, *updates)) and all(update.any() for update in updates[0])


@pytest.mark.parametrize(
    ("method", "options", "spared"),
    [
        ("lora", {"use_dora": True, "r": 2}, set()),  # magnitudes are vectors
        ("lora", {"bias": "all", "r": 2}, {"bias"}),
        ("adalora", {"init_r": 3, "target_r": 1, "total_step": 12}, set()),
        ("vera", {"r": 2}, set()),
        ("ia3", {"feedforward_modules": []}, set()),
        ("shira", {"r": 1}, set()),
        ("ln_tuning", {}, {"weight", "bias"}),
    ],
    ids=["dora", "biases", "adalora", "vera", "ia3", "shira", "ln_tuning"],
)
def test_of_pefts_parameters_biases_and_norms_alone_do_not_decay(method, options, spared) -> None:
    # PEFT's own list of what is no layer norm has no name of the toy's.
    options = options | ({"target_modules": ["norm"]} if method == "ln_tuning" else {})
    own = {"targets": ["fc1", "fc2"]} if method == "ia3" else {}  # which is not made for all linear layers
    run = with_the_trainers(attach(Peft, {"method": method, "options": options, **own}), DECAY)
    found = {name: value for name, value in decays(run).items() if ".head." not in name}
    assert found and {name.rpartition(".")[2] for name, value in found.items() if not value} == spared
    assert spared or set(found.values()) == {DECAY}
