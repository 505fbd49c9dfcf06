"""The ready files for PEFT's methods: each is there, trains, has the size that PEFT itself gives it, and goes out."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
import yaml

from tests.variants.found import CONF
from variants.bridge.methods import METHODS
from variants.bridge.options import config_class
from variants.core.handover import CannotHandOver
from variants.core.target_modules import inside
from variants.core.variant import Step
from variants.peft import Peft

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

HEAD = ("bert.pooler", "classifier")
STEPS = 3
PRESETS = sorted(path.stem for path in CONF.glob("peft_*.yaml"))
TOKENS = "trainable_tokens"  # which tokens is the user's choice


@functools.cache
def pristine() -> Any:
    """A BERT with sides that block sizes in the files divide."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 256}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=32, **sizes, **dropout)
    model = transformers.BertForSequenceClassification(config)
    for parameter in model.parameters():  # biases too, which start at zero and have something to be scaled
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


@functools.cache
def node(name: str) -> dict[str, Any]:
    """What a file sets, with its rates."""
    found = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    if "defaults" in found:  # peft_lora
        found = {"variant": yaml.safe_load((CONF / "peft.yaml").read_text()) | found, "optim": {"lr": 1e-3}}
    return found


def made(name: str) -> Peft:
    settings = {key: node(name)["variant"].get(key) for key in ("method", "targets", "options")}
    return Peft(**copy.deepcopy(settings))


def batch() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(3, 35).view(4, 8)}


def adapted(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad and not inside(n, HEAD)}


def test_every_method_that_can_run_has_a_file():
    running = {f"peft_{method}" for method, kind in METHODS.items() if not kind.refused}
    assert set(PRESETS) == running - {f"peft_{TOKENS}"}
    assert all(node(name)["variant"]["method"] == name.removeprefix("peft_") for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_it_trains_at_its_rate_counts_as_peft_does_and_goes_out(name):
    variant, model = made(name), copy.deepcopy(pristine())
    variant.plan(60)
    variant.check(model, HEAD)
    torch.manual_seed(1)
    model = variant.attach(model, HEAD)
    before = adapted(model)
    assert sum(p.numel() for p in before.values()) == by_hand(name)
    rates = node(name)["optim"]
    groups = [
        {"params": [p for n, p in model.named_parameters() if p.requires_grad and inside(n, HEAD) == head], "lr": rate}
        for head, rate in ((False, float(rates["lr"])), (True, float(rates.get("head_lr", rates["lr"]))))
    ]
    optimizer, losses = torch.optim.AdamW(groups), []
    for index in range(1, STEPS + 1):
        loss = F.cross_entropy(model(**batch()).logits, torch.tensor([0, 1, 0, 1]))
        penalty = variant.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        variant.on_update(Step(index, 60, optimizer, None))
        optimizer.zero_grad()
        losses.append(loss.item())
    prompts = METHODS[variant.method].layers == "none"
    assert losses[-1] < losses[0] or prompts  # a model that has learned nothing can't read a prompt
    assert not [n for n, p in adapted(model).items() if torch.equal(p, before[n])]
    model.eval()
    with torch.no_grad():
        output = model(**batch()).logits
        try:
            merged = variant.merged(model)
        except CannotHandOver:
            assert prompts
        else:
            torch.testing.assert_close(merged(**batch()).logits, output, rtol=1e-4, atol=1e-5)


def by_hand(name: str) -> int:
    """The number of parameters that PEFT trains when it is used without the bridge."""
    method, targets, options = (node(name)["variant"].get(key) for key in ("method", "targets", "options"))
    settings = dict(options)
    model = copy.deepcopy(pristine())
    if targets == "all-linear":
        linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and not inside(n, HEAD)]
        settings["target_modules"] = linear
    elif targets is not None:
        settings["target_modules"] = targets
    if method == "adalora":
        settings["total_step"] = 60
    if METHODS[method].layers == "none":
        settings["task_type"] = "SEQ_CLS"
    found = peft.get_peft_model(model, config_class(method)(**settings))
    return sum(p.numel() for n, p in found.named_parameters() if p.requires_grad and not inside(n, HEAD))
