"""PrunedLoRA: a round against the minimum that its score is, and when ranks are pruned."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from variants.prunedlora import PrunedLoRA
from variants.testing.toys import Trained, attach, data, train

EPS = 1e-3


def minimum(h: torch.Tensor, g: torch.Tensor, p: torch.Tensor, gone: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """δ and Σ g δ + ½ δᵀ H δ at its minimum with δ = −p in the rows `gone`, by its linear system. p, g: (r, n)."""
    fixed = torch.eye(len(p), dtype=p.dtype)[gone]
    system = torch.cat([torch.cat([h, fixed.T], 1), torch.cat([fixed, torch.zeros(len(gone), len(gone))], 1)])
    solved = torch.linalg.solve(system.double(), torch.cat([-g, -p[gone]]))[: len(p)]
    return solved, (g * solved).sum() + 0.5 * (solved * (h @ solved)).sum()


def with_gradients(run: Trained) -> Trained:
    """`run` with the gradients of its next step."""
    x, y = data(run.dtype)
    F.mse_loss(run.model(x), y).backward()
    return run


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_a_round_written_out(profile: str) -> None:
    settings = {"rank": 4, "target_rank": 1, "interval": 3, "pruned": 2, "damping": EPS, "profile": profile}
    run = train(attach(PrunedLoRA, settings, torch.float64), 2)
    if profile == "released":  # the first step has a round
        assert set(run.variant.ranks().values()) == {2}
        run = train(run, 3)
    expected = {}
    for name, adapter in with_gradients(run).variant.adapters.items():
        sides = {
            "A": (adapter.A.detach().clone(), adapter.A.grad),
            "B": (adapter.B.detach().T.clone(), adapter.B.grad.T),
        }
        damped = {part: g @ g.T + EPS * torch.eye(len(g), dtype=g.dtype) for part, (_, g) in sides.items()}
        # The part of the minimum that is the same for all components is left out of the score.
        least = {part: 0.5 * (g * torch.linalg.solve(damped[part], g)).sum() for part, (_, g) in sides.items()}
        losses = [
            sum(float(minimum(damped[part], g, p, [i])[1] + least[part]) for part, (p, g) in sides.items())
            for i in range(len(adapter.A))
        ]
        order = sorted(range(len(losses)), key=losses.__getitem__)
        gone, kept = (order[:2], sorted(order[2:])) if profile == "paper" else (order[:1], sorted(order[1:]))
        zero = {part: torch.zeros_like(g) for part, (_, g) in sides.items()}
        moved = {
            part: p + minimum(damped[part], zero[part], p, gone)[0] if profile == "paper" else p
            for part, (p, _) in sides.items()
        }
        expected[name] = (moved["A"][kept], moved["B"][kept].T, adapter.A.grad[kept])
    run.variant.on_gradients(run.step(run.steps_done + 1))
    for name, adapter in run.variant.adapters.items():
        a, b, gradient = expected[name]
        torch.testing.assert_close(adapter.A.detach(), a, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(adapter.B.detach(), b, rtol=1e-9, atol=1e-11)
        assert torch.equal(adapter.A.grad, gradient)


@pytest.mark.parametrize(
    ("profile", "ranks"), [("paper", [5, 5, 3, 3, 3, 2, 2]), ("released", [3, 3, 3, 2, 2, 2, 2])], ids=str
)
def test_ranks_are_pruned_by_rounds_and_stop_at_the_target(profile: str, ranks: list[int]) -> None:
    found = []
    settings = {"rank": 5, "target_rank": 2, "interval": 3, "pruned": 2, "profile": profile}
    run = attach(PrunedLoRA, settings)
    train(run, 7, watch=lambda event, run: event == "updated" and found.append(set(run.variant.ranks().values())))
    assert found == [{rank} for rank in ranks] and run.variant.is_final_form(run.step(7))


def test_a_round_whose_step_was_left_out_is_made_later() -> None:
    run = train(attach(PrunedLoRA, {"rank": 4, "target_rank": 2, "interval": 3, "pruned": 1}), 2)
    with_gradients(run).variant.on_gradients(run.step(4))  # the third was left out
    assert set(run.variant.ranks().values()) == {3}
    run.variant.on_gradients(run.step(6))
    assert set(run.variant.ranks().values()) == {2}


def test_the_scaling_is_that_of_the_first_rank() -> None:
    run = train(attach(PrunedLoRA, {"rank": 4, "target_rank": 2, "interval": 2, "alpha": 12.0}))
    assert {adapter.scale for adapter in run.variant.adapters.values()} == {3.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 2, "target_rank": 3}, "target_rank: 3, allowed: at most rank, which is 2"),
        (
            {"rank": 9, "target_rank": 2, "interval": 4},
            "interval: 4, allowed: one that leaves 4 rounds in 12 steps for 7 ranks, 2 in each; it leaves 3",
        ),
        ({"rank": 9, "target_rank": 8, "interval": 2}, "rank: 9 for a layer of size 12×8, allowed: 1 … 8"),
        ({"budget": 10}, "budget: 10 parameters, allowed for these targets: 80 … 640"),
        (
            {"rank": 8, "target_rank": 2, "interval": 6, "pruned": 1, "budget": 170},
            "interval: 6, allowed: one that leaves 6 rounds in 12 steps for 6 ranks",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(PrunedLoRA, settings)
