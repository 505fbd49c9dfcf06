"""AdaLoRA: the released code's numbers, PEFT's trajectory, budgets, masks and what leaves memory."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.variants import oracles
from variants.adalora import AdaLoRA
from variants.core.allocation.schedule import Cubic
from variants.core.variant import Step
from variants.testing.contract import HEAD, STEPS, Toy, attach, data, train

SCHEDULE = {"initial_steps": 2, "final_steps": 4, "interval": 2}


def test_every_number_of_the_released_code():
    oracle = oracles.load("adalora_official")
    arrays = oracle.arrays
    model = oracle.model()
    variant = AdaLoRA(rank=4, target_rank=2, alpha=8, initial_steps=5, final_steps=10, interval=5, profile="released")
    variant.plan(40)
    variant.attach(model)
    for name, adapter in variant.adapters.items():
        adapter.A.data = oracle.tensor(f"after_000/param/{name}.lora_A").clone()
        adapter.B.data = oracle.tensor(f"after_000/param/{name}.lora_B").clone()
    x, y = oracle.tensor("toy/X"), oracle.tensor("toy/Y")
    optimizer = oracles.optimizer(model, variant, lr=0.01)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    budget = variant._budget(40)

    def check_state(step: int) -> None:
        key = f"after_{step:03d}"
        if f"{key}/output" not in arrays:
            return
        oracle.close(model(x), f"{key}/output")
        for name, adapter in variant.adapters.items():
            oracle.close(adapter.A, f"{key}/param/{name}.lora_A")
            oracle.close(adapter.B, f"{key}/param/{name}.lora_B")
            if step:
                oracle.close(adapter.e[:, None], f"{key}/param/{name}.lora_E")
                oracle.close(adapter.delta_weight(), f"{key}/delta/{name}")

    losses, penalties, nonzero = [], [], []
    for t in range(40):
        check_state(t)
        model.train()
        loss, penalty = F.mse_loss(model(x), y), variant.penalty()
        (loss + penalty).backward()
        losses.append(loss.item())
        penalties.append(penalty.item())
        for name, adapter in variant.adapters.items():
            for part, parameter in (("A", adapter.A), ("B", adapter.B)):
                if f"grad/{t:03d}/{name}.lora_{part}" in arrays:
                    oracle.close(parameter.grad, f"grad/{t:03d}/{name}.lora_{part}")
        optimizer.step()
        variant.on_update(Step(t + 1, 40, optimizer, schedule))
        optimizer.zero_grad()
        assert budget.at(t) == (arrays["budget"][t], bool(arrays["masked"][t]))
        nonzero.append([int(torch.count_nonzero(a.e)) for a in variant.adapters.values()])
        for name, score in variant.scores().items():
            np.testing.assert_allclose(score, arrays[f"score/{name}"][t], rtol=1e-9, atol=0)
            np.testing.assert_allclose(
                variant.adapters[name].e.detach(), arrays[f"E_after_step/{name}"][t], rtol=1e-9, atol=1e-16
            )
            for kind, average in (("exp_avg", "mean"), ("exp_unc", "uncertainty")):
                if f"importance/{t:03d}/{kind}/{name}.lora_A" in arrays:
                    oracle.close(
                        variant.state_dict()["importance"][average][f"{name}.A"],
                        f"importance/{t:03d}/{kind}/{name}.lora_A",
                    )
    check_state(40)
    oracle.close(losses, "loss_task")
    oracle.close(penalties, "loss_reg")
    assert nonzero == arrays["nonzero_E"].tolist()
    before = model(x)
    variant.on_train_end(Step(40, 40, optimizer, schedule))
    assert sum(variant.ranks().values()) == 6
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-14)


CONFIGURATIONS = ["toy", "toy_dT7", "remainder", "no_warmup", "cola_like", "rte_like", "r12_t8", "paper_r3_t2"]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_budgets_of_the_released_code(name):
    oracle = oracles.load("schedules")
    outline = json.loads((oracles.FOLDER / "schedules" / "oracle.json").read_text())
    settings = outline["configurations"]["adalora"][name]
    budgets, masked = oracle.arrays[f"adalora/{name}/budget"], oracle.arrays[f"adalora/{name}/masked"]
    schedule = cubic_of(settings)
    assert [schedule.at(t) for t in range(len(budgets))] == list(zip(budgets.tolist(), map(bool, masked), strict=True))


def cubic_of(settings: dict) -> Cubic:
    return Cubic(
        start=settings["init_total"],
        target=settings["target_total"],
        total=settings["total_step"],
        initial=settings["init_warmup"],
        final=settings["final_warmup"],
        interval=settings["mask_interval"],
    )


def test_worked_budgets():
    schedule = Cubic(start=8, target=4, total=40, initial=5, final=10, interval=5)
    assert [schedule.at(t)[0] for t in (0, 5, 6, 8, 11, 15)] == [8, 8, 7, 6, 5, 4]
    assert schedule.at(5) == (8, False) and schedule.at(30) == (4, True) and schedule.at(31) == (4, True)


def test_pefts_trajectory_where_both_mask_at_the_same_steps():
    peft = pytest.importorskip("peft")
    total, base = 100, Toy(torch.float64)
    ours = AdaLoRA(rank=4, target_rank=2, alpha=8, initial_steps=10, final_steps=20, interval=5, profile="released")
    model = ours.attach(copy.deepcopy(base), HEAD)
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=8, tinit=10, tfinal=20, deltaT=5, total_step=total,
        orth_reg_weight=0.1, target_modules=["fc1", "fc2"],
    )  # fmt: skip
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    layers = dict(theirs.named_modules())
    pairs = [(adapter, layers[f"base_model.model.{name}"]) for name, adapter in ours.adapters.items()]
    for adapter, layer in pairs:
        adapter.A.data, adapter.B.data = (
            layer.lora_A["default"].detach().clone(),
            layer.lora_B["default"].detach().clone(),
        )
        adapter.e.data = layer.lora_E["default"].detach().clone().flatten()
    x, y = data(torch.float64)
    y = y.double()
    optimizers = [
        # PEFT's `ranknum` asks for a gradient too; it is a constant of the method.
        torch.optim.AdamW(
            [p for n, p in m.named_parameters() if p.requires_grad and not {"head", "ranknum"} & set(n.split("."))],
            lr=0.01,
        )
        for m in (model, theirs)
    ]
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizers[0], 1.0)
    for t in range(total):
        (F.mse_loss(model(x), y) + ours.penalty()).backward()
        optimizers[0].step()
        ours.on_update(Step(t + 1, total, optimizers[0], schedule))
        regulariser = torch.stack(
            [
                torch.norm((p @ p.T if "lora_A" in n else p.T @ p) - torch.eye(4, dtype=torch.float64))
                for n, p in theirs.named_parameters()
                if "lora_A" in n or "lora_B" in n
            ]
        ).mean()
        (F.mse_loss(theirs(x), y) + 0.1 * regulariser).backward()
        optimizers[1].step()
        theirs.base_model.update_and_allocate(t)
        for adapter, layer in pairs:
            assert torch.equal(adapter.e != 0, layer.lora_E["default"].flatten() != 0), f"masks differ at step {t}"
        for optimizer in optimizers:
            optimizer.zero_grad()
    for adapter, layer in pairs:
        torch.testing.assert_close(adapter.delta(), layer.get_delta_weight("default"), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("hard", [False, True])
def test_the_budget_holds_at_every_allocation_and_at_the_end(hard):
    run = attach(AdaLoRA, {"rank": 4, "target_rank": 2, "hard": hard, **SCHEDULE})
    schedule = run.variant._budget(STEPS)
    for index in range(1, STEPS + 1):
        train(run, index)
        budget, masks = schedule.at(index - 1)
        if index - 1 >= STEPS - SCHEDULE["final_steps"]:
            assert sum(run.variant.ranks().values()) == 8
        elif masks:
            assert sum(run.variant.ranks().values()) == budget
    assert sum(run.variant.ranks().values()) == 8


def test_evaluation_leaves_masked_ranks_out_between_two_masks():
    found = {}
    for profile in ("paper", "released"):
        settings = {"rank": 4, "target_rank": 1, "profile": profile, "interval": 3, "initial_steps": 1}
        run = train(attach(AdaLoRA, settings), 8)
        adapters = run.variant.adapters.values()
        revived = sum(int((adapter.e != 0).sum()) for adapter in adapters)
        assert revived == 16, "Adam has revived what the mask at t = 6 had set to zero"
        run.model.eval()
        acting = sum(int((adapter.diagonal() != 0).sum()) for adapter in adapters)
        assert acting == sum(run.variant.ranks().values())
        found[profile] = acting
    assert found == {"paper": Cubic(16, 4, STEPS, 1, 0, 3).at(6)[0], "released": 16}


def test_what_is_pruned_leaves_parameters_gradients_and_moments():
    run = train(attach(AdaLoRA, {"rank": 4, "target_rank": 1, **SCHEDULE}))
    ranks = run.variant.ranks()
    assert sum(ranks.values()) == 4 and len(set(ranks.values())) > 1
    for name, adapter in run.variant.adapters.items():
        out_features, in_features = adapter.weight.shape
        assert adapter.A.shape == (ranks[name], in_features) and adapter.B.shape == (out_features, ranks[name])
        for parameter in (adapter.A, adapter.B, adapter.e):
            for moment in ("exp_avg", "exp_avg_sq"):
                assert run.optimizer.state[parameter][moment].shape == parameter.shape
    held = sum(p.numel() for a in run.variant.adapters.values() for p in (a.A, a.B, a.e))
    assert run.variant.effective_parameters() == held


def test_a_layer_without_ranks_trains_saves_loads_and_merges():
    run = attach(AdaLoRA, {"rank": 2, "target_rank": 1, "hard": True, **SCHEDULE})
    scores = AdaLoRA.scores

    def unfair(self):
        return {name: s - 100 * (name == "layer.0.fc1") for name, s in scores(self).items()}

    run.variant.scores = unfair.__get__(run.variant)
    train(run)
    adapter = run.variant.adapters["layer.0.fc1"]
    assert adapter.rank == 0 and not adapter.delta().any()
    before = run.output()
    adapter.merge()
    assert torch.equal(run.output(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank: 0, allowed: a whole number ≥ 1"),
        ({"rank": 2, "target_rank": 3}, "target_rank: 3, allowed: at most rank, which is 2"),
        ({"initial_steps": -1}, "initial_steps: -1, allowed: a whole number ≥ 0"),
        ({"interval": 0}, "interval: 0, allowed: a whole number ≥ 1"),
        ({"score": "random"}, "score: 'random', allowed: sensitivity_uncertainty, sensitivity, magnitude"),
        ({"profile": "official"}, "profile: 'official', allowed: paper, released"),
        ({"hard": True, "profile": "released"}, "hard: true, allowed with profile=released: false"),
        ({"beta1": 1.0}, "beta1: 1.0, allowed: 0 ≤ beta1 < 1"),
    ],
)
def test_what_can_not_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaLoRA(**settings)


def test_a_schedule_longer_than_the_run_is_refused_before_a_model_is_there():
    variant = AdaLoRA(initial_steps=60, final_steps=40)
    with pytest.raises(ValueError, match="schedule: 60 initial and 40 final steps do not fit into 100"):
        variant.plan(100)


def test_rank_equal_to_target_masks_nothing():
    run = train(attach(AdaLoRA, {"rank": 2, "target_rank": 2, **SCHEDULE}))
    assert set(run.variant.ranks().values()) == {2}
