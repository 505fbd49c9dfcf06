"""The bridge to PEFT: its own code is really called, its allocator too."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from variants import peft as bridge
from variants.peft import Peft
from variants.testing import contract
from variants.testing.contract import HEAD, STEPS, Toy, attach, data, train

peft = pytest.importorskip("peft")

ADALORA = {"init_r": 3, "target_r": 1, "tinit": 2, "tfinal": 4, "deltaT": 2}


def test_an_unknown_method_or_option_is_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"method: 'adalorra', allowed: adalora, adamss, "):
        Peft(method="adalorra")
    with pytest.raises(ValueError, match=r"options: adalora has no 'target_rank', allowed: alora_invocation_tokens, "):
        Peft(method="adalora", options={"target_rank": 4})


def test_a_schedule_that_does_not_fit_is_refused_before_a_model_is_there():
    variant = Peft(method="adalora", options={"tinit": 8, "tfinal": 8})
    with pytest.raises(ValueError, match="options: PEFT's adalora refuses: "):
        variant.plan(STEPS)


@pytest.mark.parametrize("target", [3, 4])
def test_a_target_that_would_stop_pefts_adalora_in_the_middle_of_a_run_is_refused(target):
    variant = Peft(method="adalora", options={**ADALORA, "target_r": target})
    with pytest.raises(ValueError, match=rf"options.target_r: {target}, allowed: below init_r, 3; PEFT would stop"):
        variant.plan(STEPS)


def test_adaloras_allocator_is_called_and_meets_its_budget():
    run = attach(Peft, {"method": "adalora", "options": ADALORA})
    assert sum(run.variant.ranks().values()) == 4 * 3
    train(run)
    assert sum(run.variant.ranks().values()) == 4 * 1
    count = sum(p.numel() for n, p in run.model.named_parameters() if p.requires_grad and "lora_" in n)
    assert run.variant.effective_parameters() == 4 * (8 + 12 + 1) < count


def test_adaloras_trajectory_is_that_of_peft_used_by_hand():
    params = {"method": "adalora", "options": ADALORA}
    run = train(attach(Peft, params, torch.float64))

    base = Toy(torch.float64)
    torch.manual_seed(0)
    config = peft.AdaLoraConfig(**ADALORA, total_step=STEPS, target_modules=["fc1", "fc2"])
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if ".head." in name:
            parameter.requires_grad_(True)
    trained = [p for n, p in model.named_parameters() if p.requires_grad and "ranknum" not in n]
    optimizer = torch.optim.AdamW(trained, lr=0.02, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.5 * step / STEPS)
    x, y = data(torch.float64)
    for step in range(STEPS):
        loss = F.mse_loss(model(x), y.double())
        regulariser = sum(
            torch.norm(p @ p.T - torch.eye(len(p)) if "lora_A" in n else p.T @ p - torch.eye(p.shape[1]))
            for n, p in model.named_parameters()
            if "lora_A" in n or "lora_B" in n
        )
        (loss + 0.5 * regulariser / 8).backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        scheduler.step()
        optimizer.zero_grad()
    model.eval()
    torch.testing.assert_close(run.output(), model(x), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "params",
    [
        {"method": "ia3", "options": {"feedforward_modules": []}},
        {"method": "loha", "options": {"r": 2}},
        {"method": "shira", "options": {"r": 2}},
        {"method": "boft", "options": {"boft_block_size": 4}},
        {"method": "hra", "options": {"r": 2}},
        {"method": "lora", "options": {"r": 2, "use_dora": True}},
        {"method": "lora", "options": {"r": 2, "init_lora_weights": "pissa"}},
        {"method": "ln_tuning", "targets": None, "options": {"target_modules": ["norm"]}},
        {"method": "adamss", "options": {"r": 4, "num_subspaces": 2}},
    ],
    ids=lambda params: params["method"] + "".join(map(str, params["options"])),
)
def test_other_methods_train_and_resume(params):
    contract.lowers_the_loss(Peft, params)
    if params["options"].get("init_lora_weights") != "pissa":  # PEFT leaves the residual in place of the base
        contract.can_be_disabled(Peft, params)
    contract.saves_and_loads(Peft, params)
    contract.repeats_with_a_seed(Peft, params)


def test_the_head_is_trained_and_not_copied():
    model = Toy()
    before = copy.deepcopy(model.head.state_dict())
    variant = Peft(method="lora", options={"r": 2})
    variant.plan(STEPS)
    wrapped = variant.attach(model, HEAD)
    heads = {name for name, p in wrapped.named_parameters() if ".head." in f".{name}" and p.requires_grad}
    assert heads == {"base_model.model.head.weight", "base_model.model.head.bias"}
    assert torch.equal(before["weight"], model.head.weight)


VALUES = {"r": 4, "use_rslora": True, "rank_pattern": {"fc1": 1}, "alpha_pattern": {"fc1": 64}, "lora_bias": True,
          "alora_invocation_tokens": [1], "use_qalora": True, "qalora_group_size": 4}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("option", bridge.UNREAD["adalora"])
def test_an_option_that_pefts_adalora_takes_and_never_reads_is_refused(option, monkeypatch):
    value = VALUES.get(option, {"a": 1})
    params = {"method": "adalora", "options": {**ADALORA, option: value}}
    with pytest.raises(ValueError, match=rf"options.{option}: .*, allowed: none; adalora ignores it"):
        Peft(**params)
    monkeypatch.setattr(bridge, "UNREAD", {})
    with_it, without = train(attach(Peft, params)), train(attach(Peft, {**params, "options": ADALORA}))
    assert torch.equal(with_it.output(), without.output()), "PEFT reads it now: allow it"


def test_a_start_that_pefts_adalora_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"options.init_lora_weights: 'pissa', allowed: true, false; adalora has one"):
        Peft(method="adalora", options={"init_lora_weights": "pissa"})
    assert Peft(method="lora", options={"init_lora_weights": "pissa"})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"method": "prompt_tuning", "targets": ["query"]},
            r"targets: \['query'\], allowed with method: prompt_tuning, which has none: null",
        ),
        (
            {"targets": ["query"], "options": {"target_modules": ["value"]}},
            r"targets: \['query'\] with options.target_modules: \['value'\], allowed: one of the two",
        ),
        (
            {"options": {"layers_to_transform": [0]}},
            r"options.layers_to_transform: \[0\], allowed with targets: null alone",
        ),
    ],
)
def test_targets_that_would_be_ignored_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        Peft(**params)


def test_with_pefts_own_choice_of_layers_its_choice_of_blocks_acts():
    options = {"target_modules": ["fc1"], "layers_to_transform": [1], "layers_pattern": "layer"}
    assert list(attach(Peft, {"targets": None, "options": options}).variant.ranks()) == ["layer.1.fc1"]


def test_what_goes_out_is_written_in_an_order_that_no_hash_seed_decides():
    run = train(attach(Peft, {"method": "lora", "options": {"r": 2}}))
    config = run.variant.to_peft(run.model, HEAD).peft_config["default"]
    assert config.target_modules == sorted(run.variant.ranks())
    assert not any(isinstance(value, set) for value in vars(config).values())
