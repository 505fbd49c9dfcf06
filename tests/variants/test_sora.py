"""SoRA: the released code's numbers, the proximal step, its stages, and what leaves memory."""

from __future__ import annotations

import copy
import json
import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn
from torch.func import functional_call

from tests.variants import oracles
from tests.variants.plain import close
from trainer.loop.optim import build_optimizer
from variants.core import training_state
from variants.core.variant import Step
from variants.sora import Gated, SoRA, proximal, thresholds
from variants.testing.contract import HEAD, STEPS, attach, through_disk, train

STAGED = {"schedule": "linear", "threshold": 0.0, "max_threshold": 7e-4, "stages": 7, "stage_steps": 15}


def test_every_number_of_the_released_code():
    oracle = oracles.load("sora")
    arrays = oracle.arrays
    settings = json.loads((oracles.FOLDER / "sora" / "oracle.json").read_text())["hyperparameters"]
    total = settings["steps"]
    model = oracle.model()
    variant = SoRA(
        rank=settings["r"],
        alpha=settings["lora_alpha"],
        l1=settings["sparse_lambda_gradient_L1"],
        threshold=settings["prox_xi"],
        gate_lr_scale=settings["gate_lr"] / settings["lr"],
        profile="released",
    )
    variant.plan(total)
    variant.attach(model)
    for name, adapter in variant.adapters.items():
        adapter.A.data = oracle.tensor(f"after_000/param/{name}.lora_A").clone()
        adapter.B.data = oracle.tensor(f"after_000/param/{name}.lora_B").clone()
        adapter.gate.data = oracle.tensor(f"after_000/param/{name}.gate")[0].clone()
    x, y = oracle.tensor("toy/X"), oracle.tensor("toy/Y")
    optimizer = oracles.optimizer(model, variant, settings["lr"], settings["weight_decay"])
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

    def parts(name: str, of):
        adapter = variant.adapters[name]
        return {"lora_A": of(adapter.A), "lora_B": of(adapter.B), "gate": of(adapter.gate)[None]}

    def check_state(step: int) -> None:
        key = f"after_{step:03d}"
        if f"{key}/output" not in arrays:
            return
        oracle.close(model(x), f"{key}/output")
        oracle.close(F.mse_loss(model(x), y), f"{key}/loss_task")
        for name, adapter in variant.adapters.items():
            for part, value in parts(name, lambda p: p.detach()).items():
                oracle.close(value, f"{key}/param/{name}.{part}")
            oracle.close(adapter.delta_weight(), f"{key}/delta/{name}")

    losses, penalties, norms, zeros = [], [], [], []
    for t in range(total):
        check_state(t)
        model.train()
        step = Step(t + 1, total, optimizer, schedule)
        variant.on_step_begin(step)
        loss, penalty = F.mse_loss(model(x), y), variant.penalty()
        (loss + penalty).backward()
        losses.append(loss.item())
        penalties.append(penalty.item())
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
        for name in variant.adapters:
            for part, gradient in parts(name, lambda p: p.grad).items():
                if f"grad/{t:03d}/{name}.{part}" in arrays:
                    oracle.close(gradient, f"grad/{t:03d}/{name}.{part}")
        variant.on_gradients(step)
        optimizer.step()
        variant.on_update(step)
        optimizer.zero_grad()
        for name, adapter in variant.adapters.items():
            gates, stored = adapter.gate.detach().numpy(), arrays[f"gate_after_step/{name}"][t]
            assert ((gates == 0) == (stored == 0)).all(), f"{name}: other gates are zero after step {t}"
            np.testing.assert_allclose(gates, stored, rtol=1e-9, atol=1e-12)
        zeros.append([len(a.gate) - a.open for a in variant.adapters.values()])
    check_state(total)
    oracle.close(losses, "loss_task")
    oracle.close(penalties, "loss_reg")
    oracle.close(np.add(losses, penalties), "loss_total")
    oracle.close(norms, "grad_norm")
    assert zeros == arrays["zero_gates"].tolist()

    before = model(x).detach()
    variant.on_train_end(Step(total, total, optimizer, schedule))
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-14)
    assert [len(a.gate) for a in variant.adapters.values()] == [settings["r"] - zero for zero in zeros[-1]]


@pytest.mark.parametrize("case", ["xi0", "xi1", "xi2"])
def test_the_released_proximal_step_on_a_vector(case):
    oracle = oracles.load("schedules")
    xi = json.loads((oracles.FOLDER / "schedules" / "oracle.json").read_text())["configurations"]["sora_prox"][case]
    found = proximal(oracle.tensor("sora_prox/x"), xi, "released").numpy()
    stored = oracle.arrays[f"sora_prox/{case}"]
    assert ((found == 0) == (stored == 0)).all()
    np.testing.assert_allclose(found, stored, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("profile", "expected"),
    [("paper", [0, 0, 0.05, 0.09, 0.10, 0.11, 0.25]), ("released", [0, 0.10, 0, 0, 0.10, 0.11, 0.25])],
)
def test_worked_proximal_steps(profile, expected, sign):
    x = torch.tensor([0.05, 0.10, 0.15, 0.19, 0.20, 0.21, 0.35], dtype=torch.float64)
    found = proximal(sign * x, 0.1, profile)
    expected = sign * torch.tensor(expected, dtype=torch.float64)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    assert torch.equal(proximal(x, 0.0, profile), x), "without a threshold nothing moves"


def test_the_released_gate_optimizer_is_reproduced_at_every_step():
    variant = SoRA(rank=4, threshold=0.0, profile="released", gate_lr_scale=0.5)
    model = nn.ModuleDict({"fc": nn.Linear(5, 5, dtype=torch.float64)})
    variant.attach(model)
    gate = variant.adapters["fc"].gate
    optimizer = oracles.optimizer(model, variant, 0.02)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    expected, m, v = gate.detach().clone(), torch.zeros(4), torch.zeros(4)
    generator = torch.Generator().manual_seed(0)
    for t in range(1, 31):
        # So small that eps counts, and with it where it is added.
        gradient = 1e-6 * torch.randn(4, generator=generator, dtype=torch.float64)
        gate.grad = gradient.clone()
        step = Step(t, 30, optimizer, schedule)
        variant.on_gradients(step)
        optimizer.step()
        variant.on_update(step)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected -= 0.01 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (v.sqrt() + 1e-6)
        torch.testing.assert_close(gate.detach(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_released_main_optimizer_is_reproduced_over_a_whole_run(decay):
    """The released code's statements in plain tensors, from the start of the stored run and with its settings."""
    oracle = oracles.load("sora")
    settings = json.loads((oracles.FOLDER / "sora" / "oracle.json").read_text())["hyperparameters"]
    total, lr, xi = settings["steps"], settings["lr"], settings["prox_xi"]
    l1, scale = settings["sparse_lambda_gradient_L1"], settings["lora_alpha"] / settings["r"]
    variant = SoRA(
        rank=settings["r"], alpha=settings["lora_alpha"], l1=l1, threshold=xi, profile="released",
        decay_after_step=decay,
    )  # fmt: skip
    model, plain, x, y = variant.attach(oracle.model()), oracle.model(), oracle.tensor("toy/X"), oracle.tensor("toy/Y")
    stored = {
        f"{n}.{part}": oracle.tensor(f"after_000/param/{n}.{name}").reshape(shape).clone()
        for n, adapter in variant.adapters.items()
        for part, name, shape in (
            ("A", "lora_A", adapter.A.shape), ("B", "lora_B", adapter.B.shape), ("e", "gate", adapter.gate.shape)
        )
    }  # fmt: skip
    with torch.no_grad():
        for name, value in stored.items():
            model.get_parameter(name).copy_(value)
    optimizer = oracles.optimizer(model, variant, lr)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    m, v = ({name: torch.zeros_like(value) for name, value in stored.items()} for _ in range(2))
    for t in range(1, total + 1):
        model.train()
        step = Step(t, total, optimizer, schedule)
        (F.mse_loss(model(x), y) + variant.penalty()).backward()
        variant.on_gradients(step)
        optimizer.step()
        variant.on_update(step)
        optimizer.zero_grad()

        leaves = {name: value.requires_grad_() for name, value in stored.items()}
        weights = {
            f"{n}.weight": plain.get_parameter(f"{n}.weight").detach()
            + scale * (leaves[f"{n}.B"] * leaves[f"{n}.e"]) @ leaves[f"{n}.A"]
            for n in oracles.LAYERS
        }
        gates = torch.cat([leaves[f"{n}.e"] for n in oracles.LAYERS])
        loss = F.mse_loss(functional_call(plain, weights, (x,)), y) + l1 * gates.abs().sum() / len(gates)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            is_gate, p = name.endswith(".e"), leaf.detach()
            m[name] = 0.9 * m[name] + 0.1 * gradient
            v[name] = 0.999 * v[name] + 0.001 * gradient**2
            size = lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            p = p - size * m[name] / (v[name].sqrt() + (settings["gate_eps"] if is_gate else settings["eps"]))
            if is_gate:
                p = proximal(p, xi, "released")
            elif decay:
                p = p + -lr * decay * p
            stored[name] = p
            found = model.get_parameter(name).detach()
            assert torch.equal(found == 0, p == 0), f"{name} after step {t}"
            assert close(found, p), f"{name} after step {t}"


def test_torchs_decay_in_a_released_run_is_told_in_one_line(caplog):
    run = attach(SoRA, {"rank": 2, "profile": "released"})
    run.optimizer = oracles.optimizer(run.model, run.variant, 0.02, 0.1, HEAD)
    with caplog.at_level(logging.WARNING):
        train(run, 3)
    assert [record.message for record in caplog.records] == [
        "sora: profile: released with optim.weight_decay: 0.1 has torch's AdamW move A and B; "
        "decay_after_step=0.1 has the released code's"
    ]


def test_decay_after_the_step_is_that_of_the_released_main_optimizer():
    found = {}
    for decay in (0.0, 0.1):
        run = attach(SoRA, {"rank": 2, "decay_after_step": decay}, torch.float64)
        for group in run.optimizer.param_groups:
            group["weight_decay"] = 0.0
        train(run, 1)
        found[decay] = {n: p.detach() for n, p in run.model.named_parameters() if p.requires_grad}
    for name, plain in found[0.0].items():
        factor = 1 - 0.02 * 0.1 if name.endswith((".A", ".B")) else 1
        torch.testing.assert_close(found[0.1][name], plain * factor, rtol=1e-14, atol=0)
    assert SoRA(decay_after_step=0.1).optimizer_options("fc.A") == {"weight_decay": 0.0}
    assert SoRA().optimizer_options("fc.A") == {}


def test_the_penalty_is_the_mean_gate():
    variant = attach(SoRA, {"rank": 3, "l1": 6.0}).variant
    gates = torch.cat([adapter.gate for adapter in variant.adapters.values()])
    assert len(gates) == 12
    torch.testing.assert_close(variant.penalty(), 6.0 * gates.abs().sum() / 12)
    assert SoRA(l1=0.0).penalty() is None


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_the_trainer_gives_gates_groups_of_their_own(profile):
    run = attach(SoRA, {"rank": 2, "profile": profile, "gate_lr_scale": 0.5})
    optim = OmegaConf.create(
        {"lr": 0.02, "head_lr": 0.01, "weight_decay": 0.1, "optimizer": {"_target_": "torch.optim.AdamW", "eps": 1e-8}}
    )
    optimizer = build_optimizer(run.model, HEAD, run.variant, optim)
    gates = {id(adapter.gate) for adapter in run.variant.adapters.values()}
    mine = [group for group in optimizer.param_groups if gates & {id(p) for p in group["params"]}]
    assert len(mine) == 1 and {id(p) for p in mine[0]["params"]} >= gates
    assert mine[0]["lr"] == 0.01 and mine[0]["weight_decay"] == 0
    if profile == "released":
        assert {id(p) for p in mine[0]["params"]} == gates
        assert (mine[0]["betas"], mine[0]["eps"]) == ((0.9, 0.999), 1e-6)


def test_stages_of_the_schedules():
    np.testing.assert_allclose(thresholds("linear", 0, 0.6, 4), [0, 0.2, 0.4, 0.6])
    np.testing.assert_allclose(thresholds("exp_linear", 0.001, 0.1, 3), [0.001, 0.01, 0.1])
    np.testing.assert_allclose(np.exp(thresholds("log_linear", 0, 1, 3)), [1, (1 + math.e) / 2, math.e])
    variant = SoRA(**STAGED, first_stage_steps=50)
    used = [variant._thresholds[variant._stage(t)] for t in range(160)]
    assert used[:50] == [0.0] * 50 and used[49] != used[50]
    assert [t for t in range(1, 160) if used[t] != used[t - 1]] == [50, 65, 80, 95, 110, 125]
    assert used[-1] == 7e-4
    final = [t for t in range(160) if variant.is_final_form(Step(t + 1, 160, None, None))]
    assert final == list(range(125, 160)), "only the last stage may be handed over"
    even = SoRA(**STAGED)
    assert [even._stage(t) for t in (0, 14, 15, 29, 30, 90, 1000)] == [0, 0, 1, 1, 2, 6, 6]


def test_a_schedule_longer_than_the_run_is_refused_before_a_model_is_there():
    SoRA(**STAGED).plan(91)
    with pytest.raises(ValueError, match="stage_steps: 15, the last of 7 stages would begin after step 90, allowed"):
        SoRA(**STAGED).plan(90)
    SoRA().plan(1)


def test_gates_come_back_and_are_removed_only_at_the_end():
    run = attach(SoRA, {"rank": 4, "threshold": 0.01, "l1": 0.0})
    gates = {name: adapter.gate for name, adapter in run.variant.adapters.items()}
    with torch.no_grad():
        for adapter in run.variant.adapters.values():
            adapter.gate[0] = 0.0
            adapter.B.normal_()
    assert set(run.variant.ranks().values()) == {3} and run.variant.closed_form() == 4 * 4 * (8 + 12 + 1)
    train(run, 3)
    assert any(gate[0] != 0 for gate in gates.values()), "no gate came back"
    assert all(adapter.gate is gates[name] for name, adapter in run.variant.adapters.items())


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_what_is_zero_leaves_parameters_gradients_and_moments(profile):
    run = train(attach(SoRA, {"rank": 4, "threshold": 0.03, "profile": profile}, torch.float64), STEPS - 1)
    variant, total = run.variant, sum(p.numel() for g in run.optimizer.param_groups for p in g["params"])
    before, ranks, effective = run.output(), variant.ranks(), variant.effective_parameters()
    assert 0 < sum(ranks.values()) < 16 and len(set(ranks.values())) > 1
    variant.on_train_end(Step(STEPS - 1, STEPS, run.optimizer, run.scheduler))
    torch.testing.assert_close(run.output(), before, rtol=1e-12, atol=1e-14)
    assert variant.ranks() == ranks and variant.effective_parameters() == effective
    for name, adapter in variant.adapters.items():
        out_features, in_features = adapter.weight.shape
        assert adapter.A.shape == (ranks[name], in_features) and adapter.B.shape == (out_features, ranks[name])
        assert adapter.gate.shape == (ranks[name],) and adapter.gate.all()
        for parameter in (adapter.A, adapter.B, adapter.gate):
            for moment in ("exp_avg", "exp_avg_sq"):
                assert run.optimizer.state[parameter][moment].shape == parameter.shape
    held = sum(p.numel() for a in variant.adapters.values() for p in (a.A, a.B, a.gate))
    assert held == effective == sum(ranks.values()) * 21
    assert sum(p.numel() for g in run.optimizer.param_groups for p in g["params"]) == total - (16 * 21 - held)
    train(run)  # and what is left can go on


def test_without_any_gate_the_model_trains_saves_loads_and_merges():
    settings = {"rank": 2, "threshold": 5.0}
    run = train(attach(SoRA, settings))
    assert set(run.variant.ranks().values()) == {0} and run.variant.effective_parameters() == 0
    assert run.variant.penalty() is None
    again = attach(SoRA, settings)
    saved = through_disk(training_state.weights(run.model, run.variant, run.optimizer))
    training_state.restore_weights(again.model, again.variant, saved)
    assert torch.equal(again.output(), run.output())
    before = run.output()
    for adapter in run.variant.adapters.values():
        adapter.merge()
    assert torch.equal(run.output(), before)
    again.steps_done = 0
    train(again, 2)


@pytest.mark.parametrize(
    ("layer", "x"),
    [(nn.Conv2d(3, 6, 3), torch.ones(2, 3, 5, 5)), (nn.Embedding(10, 6), torch.tensor([[1, 2]]))],
    ids=["Conv2d", "Embedding"],
)
def test_other_layers_without_any_gate(layer, x):
    adapter = Gated(copy.deepcopy(layer), 2, 1.0, 0.0)
    adapter.keep(torch.arange(0), None)
    assert torch.equal(adapter(x), layer(x))
    adapter.merge()
    assert torch.equal(adapter(x), layer(x))


def test_more_gates_than_the_layer_has_rows_are_refused_but_for_the_released_profile():
    model = nn.ModuleDict({"fc": nn.Linear(8, 4)})
    message = "rank: 6 for a layer of size 4×8, allowed: 1 … 4"
    with pytest.raises(ValueError, match=message):
        SoRA(rank=6).check(model)
    with pytest.raises(ValueError, match=message):
        SoRA(rank=6).attach(model)
    variant = SoRA(rank=6, profile="released")
    variant.check(model)
    variant.attach(model)
    assert variant.closed_form() == variant.effective_parameters() == 6 * 13
    assert variant.ranks() == {"fc": 4}


def test_a_saved_state_with_more_ranks_is_refused():
    large, small = attach(SoRA, {"rank": 4}), attach(SoRA, {"rank": 2})
    with pytest.raises(ValueError, match=r"layer.0.fc1: rank 2, allowed: at least the 4 of the saved state"):
        small.variant.load_state_dict(large.variant.state_dict())


def test_a_run_whose_gates_all_stay_says_so_in_one_line(caplog):
    with caplog.at_level(logging.WARNING):
        train(attach(SoRA, {"rank": 2, "threshold": 0.0}))
        assert [r.message for r in caplog.records] == [
            "sora: no gate ever reached zero, so no rank was removed; raise threshold or l1"
        ]
        caplog.clear()
        train(attach(SoRA, {"rank": 4, "threshold": 0.03}))
        assert not caplog.records


def test_the_released_gate_optimizer_needs_an_adam_and_a_group():
    run = attach(SoRA, {"rank": 2, "profile": "released"})
    gate, a = next(iter(run.variant.adapters.values())).gate, next(iter(run.variant.adapters.values())).A
    with pytest.raises(ValueError, match="profile: released with the optimizer SGD, allowed: Adam, AdamW"):
        run.variant.on_gradients(Step(1, 12, torch.optim.SGD([gate]), None))
    with pytest.raises(ValueError, match="profile: released with gates in a group with others"):
        run.variant.on_gradients(Step(1, 12, torch.optim.AdamW([gate, a]), None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank: 0, allowed: a whole number ≥ 1"),
        ({"alpha": 0}, "alpha: 0, allowed: a number > 0"),
        ({"dropout": 1.0}, "dropout: 1.0, allowed: 0 ≤ dropout < 1"),
        ({"l1": -1}, "l1: -1, allowed: a number ≥ 0"),
        ({"l1": "10"}, "l1: '10', allowed: a number"),
        ({"threshold": float("nan")}, "threshold: nan, allowed: a number"),
        ({"gate_lr_scale": 0.0}, "gate_lr_scale: 0.0, allowed: a number > 0"),
        ({"decay_after_step": -0.1}, "decay_after_step: -0.1, allowed: a number ≥ 0"),
        ({"profile": "official"}, "profile: 'official', allowed: paper, released"),
        ({"schedule": "cubic"}, "schedule: 'cubic', allowed: constant, linear, log_linear, exp_linear"),
        ({"max_threshold": 0.1}, "max_threshold: 0.1, allowed with schedule=constant: null"),
        ({"stages": 3}, "stages: 3, allowed with schedule=constant: null"),
        ({"schedule": "linear"}, "stages: None, allowed: a whole number ≥ 2"),
        ({**STAGED, "stage_steps": 0}, "stage_steps: 0, allowed: a whole number ≥ 1"),
        ({**STAGED, "first_stage_steps": 0}, "first_stage_steps: 0, allowed: a whole number ≥ 1"),
        ({**STAGED, "threshold": 0.1}, "max_threshold: 0.0007, allowed: a number > 0.1"),
        ({**STAGED, "schedule": "exp_linear"}, "threshold: 0, allowed with schedule=exp_linear: a number > 0"),
    ],
)
def test_what_can_not_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SoRA(**settings)
