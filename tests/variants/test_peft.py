"""The bridge to PEFT: its own code is really called, its allocator too."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

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


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        {"method": "ia3", "targets": ["fc1", "fc2"], "options": {"feedforward_modules": []}},
        {"method": "loha", "options": {"r": 2}},
        {"method": "shira", "options": {"r": 2}},
        {"method": "boft", "options": {"boft_block_size": 4}},
        {"method": "hra", "options": {"r": 2}},
        {"method": "lora", "options": {"r": 2, "use_dora": True}},
        {"method": "lora", "options": {"r": 2, "init_lora_weights": "pissa"}},
        {"method": "ln_tuning", "targets": ["norm"]},
        {"method": "adamss", "options": {"r": 4, "num_subspaces": 2}},
    ],
    ids=lambda params: params["method"] + "".join(map(str, params.get("options", {}))),
)
def test_other_methods_train_and_resume(params):
    contract.lowers_the_loss(Peft, params)
    if params.get("options", {}).get("init_lora_weights") != "pissa":  # PEFT leaves the residual in place of the base
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
            r"options.layers_to_transform: \[0\], allowed only with targets: null",
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


# -- the allocators' budgets ----------------------------------------------------------------------


def exported(run) -> int:
    """Parameters outside the head that PEFT's own saving writes."""
    return sum(value.numel() for name, value in peft.get_peft_model_state_dict(run.model).items() if "lora_" in name)


@pytest.mark.parametrize("tfinal", [0, 1, 4])
@pytest.mark.parametrize("interval", [1, 2, 5, 7, 11, 13])
@pytest.mark.parametrize("tinit", [0, 2])
def test_a_schedule_of_adalora_is_refused_or_ends_at_the_budget_and_goes_out_as_it_is_reported(tinit, interval, tfinal):
    options = {"init_r": 3, "target_r": 1, "tinit": tinit, "tfinal": tfinal, "deltaT": interval}
    params = {"method": "adalora", "options": options}
    before = any(step % interval == 0 for step in range(tinit + 1, STEPS - tfinal))
    if not (before if tfinal else (STEPS - 1) % interval == 0):
        with pytest.raises(ValueError, match=r"options.(tfinal: 0 with deltaT: |deltaT: )\d+, allowed: "):
            attach(Peft, params)
        return
    run = train(attach(Peft, params))
    assert sum(run.variant.ranks().values()) == 4 * 1
    assert run.variant.effective_parameters() == exported(run)


def test_a_schedule_that_ends_above_the_budget_is_refused_before_a_model_is_there():
    variant = Peft(method="adalora", options={"init_r": 6, "target_r": 3, "deltaT": 7})
    line = r"options.tfinal: 0 with deltaT: 7, allowed: 1 or more; PEFT would end a run of 6 steps with more ranks than"
    with pytest.raises(ValueError, match=line):
        variant.plan(6)


def test_what_a_few_layers_would_meet_and_many_miss_is_refused_as_soon_as_the_layers_are_known():
    variant = Peft(method="adalora", options={"init_r": 12, "target_r": 2, "tinit": 8})
    variant.plan(11)  # 10 ranks too many, times (1/3)³, are less than one for a layer, and more than one for four
    with pytest.raises(ValueError, match=r"options.tfinal: 0 with deltaT: 1, allowed: 1 or more"):
        variant.check(Toy(), HEAD)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"total_step": 30}, r"options.total_step: 30, allowed: 12, the run's own, or none"),
        ({"deltaT": 0}, r"options.deltaT: 0, allowed: a whole number ≥ 1"),
        ({"deltaT": 1.5}, r"options.deltaT: 1.5, allowed: a whole number"),
        ({"tfinal": -3}, r"options.tfinal: -3, allowed: a whole number ≥ 0"),
        ({"target_r": 0}, r"options.target_r: 0, allowed: a whole number ≥ 1"),
        ({"deltaT": 50}, r"options.deltaT: 50, allowed: one with a multiple above tinit, 2, and below 8, where"),
    ],
)
def test_settings_of_a_schedule_that_mean_nothing_are_refused(options, line):
    with pytest.raises(ValueError, match=line):
        Peft(method="adalora", options={**ADALORA, **options}).plan(STEPS)


def test_the_last_pruning_is_made_up_for_where_its_step_was_left_out():
    run = attach(Peft, {"method": "adalora", "options": ADALORA})
    x, y = data()
    for index in range(1, STEPS + 1):
        step = run.step(index)
        (F.mse_loss(run.model(x), y) + run.variant.penalty()).backward()
        if index == STEPS - ADALORA["tfinal"] + 1:  # no gradient: neither optimizer nor method act
            assert not run.variant.is_final_form(step), "above its budget it is no candidate for the best"
        else:
            run.optimizer.step()
            run.variant.on_update(step)
        run.optimizer.zero_grad()
    run.variant.on_train_end(step)
    assert sum(run.variant.ranks().values()) == 4 * 1 and run.variant.effective_parameters() == exported(run)


def test_a_model_above_its_budget_is_not_handed_over():
    run = attach(Peft, {"method": "adalora", "options": ADALORA})
    assert not run.variant.is_final_form(run.step(STEPS))
    with pytest.raises(RuntimeError, match=r"budget: 12 ranks are left, the target is 4"):
        run.variant.on_train_end(run.step(STEPS))


def test_the_penalty_has_the_precision_of_the_model():
    run = attach(Peft, {"method": "adalora", "options": ADALORA}, torch.float64)
    parts = [p if "lora_A" in n else p.T for n, p in run.model.named_parameters() if "lora_A" in n or "lora_B" in n]
    by_hand = 0.5 * sum(torch.norm(p @ p.T - torch.eye(len(p), dtype=p.dtype)) for p in parts) / len(parts)
    assert by_hand.dtype == torch.float64
    torch.testing.assert_close(run.variant.penalty(), by_hand, rtol=1e-14, atol=0)


def test_above_a_bfloat16_backbone_the_penalty_is_that_of_its_float32_adapters():
    assert (
        attach(Peft, {"method": "adalora", "options": ADALORA}, torch.bfloat16).variant.penalty().dtype == torch.float32
    )


ASA = {"r": 4, "num_subspaces": 2, "use_asa": True, "init_warmup": 2, "final_warmup": 8, "mask_interval": 2}
ASA = {**ASA, "asa_target_subspaces": 4}


def test_adamss_ends_at_its_target_and_what_is_frozen_on_the_way_is_counted():
    run = attach(Peft, {"method": "adamss", "options": ASA})
    start = len(run.trainable())
    count = sum(p.numel() for p in run.trainable().values())
    assert not run.variant.is_final_form(run.step(4))
    train(run)
    assert run.variant.is_final_form(run.step(STEPS))
    assert len(run.trainable()) <= 2 * 4 < start  # of A and B each
    assert run.variant.effective_parameters() == count
    contract.resumes_bit_for_bit(Peft, {"method": "adamss", "options": ASA})


@pytest.mark.parametrize("change", [{"final_warmup": 12}, {"final_warmup": 1000}, {"mask_interval": 3}])
def test_a_schedule_of_adamss_that_would_miss_its_target_is_refused(change):
    with pytest.raises(ValueError, match=r"options.final_warmup: \d+, allowed: a multiple of mask_interval, \d, above"):
        Peft(method="adamss", options={**ASA, **change}).plan(STEPS)


def test_adamss_above_its_target_is_not_handed_over():
    run = attach(Peft, {"method": "adamss", "options": ASA})
    with pytest.raises(RuntimeError, match=r"budget: \d+ subspaces are left, the target is 4"):
        run.variant.on_train_end(run.step(STEPS))


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["eva", "lora_ga", "corda", "loftq", "evva", "pissa_niter_many"])
def test_a_start_that_needs_what_nobody_gives_it_is_refused(start):
    line = (
        rf"options.init_lora_weights: '{start}', allowed: true, false, gaussian, olora, orthogonal, pissa, pissa_niter_"
    )
    with pytest.raises(ValueError, match=line):
        Peft(options={"init_lora_weights": start})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", [False, "gaussian", "olora", "orthogonal", "pissa", "pissa_niter_4", "mica"])
def test_every_other_start_is_another_start(start):
    run, plain = (attach(Peft, {"options": options}) for options in ({"r": 2, "init_lora_weights": start}, {"r": 2}))
    parts = [[p for n, p in r.model.named_parameters() if "lora_" in n] for r in (run, plain)]
    assert not all(torch.equal(a, b) for a, b in zip(*parts, strict=True))
    contract.lowers_the_loss(Peft, {"options": {"r": 2, "init_lora_weights": start}})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"options": {"inference_mode": True}}, r"options.inference_mode: True, allowed: none; the bridge sets it"),
        ({"options": {"modules_to_save": ["head"]}}, r"options.modules_to_save: \['head'\], allowed: none; the bridge"),
        ({"options": {"task_type": "CAUSAL_LM"}}, r"options.task_type: 'CAUSAL_LM', allowed: none; the bridge sets"),
        (
            {"options": {"rank_pattern": {"cf1": 4}}},
            r"options: PEFT's lora says: The following rank_pattern keys did not",
        ),
        (
            {"method": "delora", "options": {"lambda_pattern": {"cf1": 4}}},
            r"options.lambda_pattern: no adapted layer ends",
        ),
        (
            {"options": {"exclude_modules": ["cf1"]}},
            r"options: PEFT's lora says: You have passed exclude_modules=.*'cf1'",
        ),
        ({"options": {"fan_in_fan_out": True}}, r"options.fan_in_fan_out: True, allowed: none; PEFT sets it to False"),
        ({"options": {"use_rslora": "yes", "r": 0}}, r"options.use_rslora: 'yes', allowed: true, false"),
        (
            {"options": {"runtime_config": {"a": 1}}},
            r"options.runtime_config: .*, allowed: none; it moves weights",
        ),
        ({"method": "adalora", "options": {**ADALORA, "beta1": 2.0}}, r"peft-adalora: PEFT refuses: AssertionError: "),
        (
            {"method": "ia3", "targets": ["fc1"], "options": {"feedforward_modules": ["cf1"]}},
            r"no target ends in 'cf1'",
        ),
        ({"method": "ln_tuning", "targets": ["morn"]}, r"targets: no module ends in 'morn'"),
        (
            {"targets": None, "options": {"target_modules": "all-linear"}},
            r"targets: PEFT would adapt head, which belongs to the head, allowed: other names",
        ),
        (
            {"method": "pvera", "options": {"r": 2, "generator_seed": 3}},
            r"options.generator_seed: 3, allowed: none; checkpoints do not include its generator",
        ),
        (
            {"method": "oft", "options": {"eps": 0.1}},
            r"options.eps: 0.1, allowed only with options.coft: true; else PEFT ignores it",
        ),
    ],
    ids=str,
)
def test_what_would_be_taken_and_do_nothing_is_one_line(params, line):
    with pytest.raises(ValueError, match=line) as caught:
        attach(Peft, params)
    assert "\n" not in str(caught.value)


def test_options_at_their_defaults_are_nobodys_fault():
    assert Peft(options={"inference_mode": False, "eva_config": None, "rank_pattern": {}})
