"""ElaLoRA: its trajectory beside a straight one, ranks that wander under a constant sum, moments, rates, budgets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from tests.variants import mixed
from tests.variants.plain import close
from variants.core.variant import Step
from variants.elalora import ElaLoRA, directions
from variants.testing.contract import HEAD, STEPS, Toy, attach, data, train

SCHEDULE = {"initial_steps": 1, "final_steps": 2, "interval": 3}
LONG = {"initial_steps": 4, "final_steps": 8, "interval": 5}
TOTAL = 40
LR = 0.02
# New rows are orthonormal, so that the penalty has no gradient there but for rounding: Adam's usual eps of 1e-8
# would let that through a hundred million times as large, and two right implementations would differ by 1e-9. With
# this one, and as few steps, they differ by 6e-13 at most, also where the start is moved by its last bits.
EPS = 1e-4


class Wide(nn.Module):
    """Layers whose ranks cost 17, 17, 33 and 33 parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(torch.tanh(self.down(torch.tanh(self.up(torch.tanh(self.first(x))))))))


class Run:
    """A variant on a model in float64, trained without the head."""

    def __init__(self, model: nn.Module, total: int = TOTAL, **params) -> None:
        self.variant, self.total, self.index = ElaLoRA(**params), total, 0
        self.variant.plan(total)
        torch.manual_seed(1)
        self.model = self.variant.attach(model.double(), HEAD)
        parameters = [p for n, p in self.model.named_parameters() if p.requires_grad and "head" not in n]
        self.optimizer = torch.optim.AdamW(parameters, lr=LR, eps=EPS, weight_decay=0.01)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 - 0.5 * step / total)
        self.x, self.y = data(torch.float64)

    def step(self) -> None:
        self.index += 1
        step = Step(self.index, self.total, self.optimizer, self.scheduler)
        self.model.train()
        self.variant.on_step_begin(step)
        loss, penalty = F.mse_loss(self.model(self.x), self.y.double()), self.variant.penalty()
        (loss if penalty is None else loss + penalty).backward()
        self.variant.on_gradients(step)
        self.optimizer.step()
        self.variant.on_update(step)
        self.scheduler.step()
        self.model.zero_grad()


class Straight:
    """The same method written down without any of the project's parts: dense ΔW, lists, Adam by hand.

    start: A, B and e of the layers, by name.
    """

    def __init__(self, model: nn.Module, start: dict[str, list[torch.Tensor]], released: bool, settings: dict) -> None:
        self.model, self.released = model.double(), released
        self.parts = {name: [p.clone() for p in parts] for name, parts in start.items()}
        self.m, self.v = self._zeros(), self._zeros()
        self.mean, self.uncertainty = self._zeros(), self._zeros()
        self.count, self.base_rate, self.t = 0, False, -1
        self.rank = len(next(iter(start.values()))[2])
        self.s = settings
        self.x, self.y = data(torch.float64)

    def _zeros(self) -> dict[str, list[torch.Tensor]]:
        return {name: [torch.zeros_like(p) for p in parts] for name, parts in self.parts.items()}

    def delta(self, name: str) -> torch.Tensor:
        a, b, e = self.parts[name]
        return 16.0 / (self.rank + 1e-5) * b @ torch.diag(e) @ a

    def step(self) -> None:
        self.t += 1
        leaves = [p.requires_grad_() for parts in self.parts.values() for p in parts]
        weights = {f"{n}.weight": self.model.get_parameter(f"{n}.weight").detach() + self.delta(n) for n in self.parts}
        norms = []
        for a, b, _ in self.parts.values():
            eye = torch.eye(len(a), dtype=torch.float64)
            norms += [torch.linalg.norm(a @ a.T - eye), torch.linalg.norm(b.T @ b - eye)]
        penalty = sum(norms) / len(norms) if self.released else sum(norm**2 for norm in norms)
        loss = F.mse_loss(functional_call(self.model, weights, (self.x,)), self.y.double()) + 0.1 * penalty
        gradients = iter(torch.autograd.grad(loss, leaves))
        self.count += 1
        rate = LR if self.base_rate else LR * (1 - 0.5 * self.t / TOTAL)
        for name, parts in self.parts.items():
            for i, old in enumerate(parts):
                p, g = old.detach(), next(gradients)
                m = self.m[name][i] = 0.9 * self.m[name][i] + 0.1 * g
                v = self.v[name][i] = 0.999 * self.v[name][i] + 0.001 * g**2
                step = (m / (1 - 0.9**self.count)) / ((v / (1 - 0.999**self.count)).sqrt() + EPS)
                parts[i] = p * (1 - rate * 0.01) - rate * step
                if self.t < TOTAL - self.s["final_steps"]:
                    sensitivity = (parts[i] * g).abs()
                    mean = self.mean[name][i] = 0.85 * self.mean[name][i] + 0.15 * sensitivity
                    self.uncertainty[name][i] = 0.85 * self.uncertainty[name][i] + 0.15 * (sensitivity - mean).abs()
        first, end = self.s["initial_steps"], TOTAL - self.s["final_steps"]
        if first < self.t < end and self.t % self.s["interval"] == 0:
            count = round(self.s["exchange"] * (1 - ((self.t - first) / (end - first)) ** 3))
            if count:
                self._round(count)

    def _round(self, count: int) -> None:
        pool = []
        for name in self.parts:
            a, b, e = (m * u for m, u in zip(self.mean[name], self.uncertainty[name], strict=True))
            scores = [float(e[i] + a[i].mean() + b[:, i].mean()) for i in range(len(e))]
            order = sorted(range(len(scores)), key=scores.__getitem__)
            pool += [(scores[i], name, i) for i in order[: min(self.s["pool"], len(scores) - 1)]]
        pool.sort(key=lambda entry: entry[0])
        count = min(count, len(pool) // 2)
        for name, parts in self.parts.items():
            out = [i for _, n, i in pool[:count] if n == name]
            new = sum(n == name for _, n, _ in pool[-count:])
            kept = [i for i in range(len(parts[2])) if i not in out]
            for tree in (self.parts, self.m, self.v, self.mean, self.uncertainty):
                a, b, e = tree[name]
                tree[name] = [a[kept], b[:, kept], e[kept]]
            a, b, e = self.parts[name]
            smallest = min(float(e.abs().min()), 1e-13)
            rows = self._new(a, new)
            columns = self._new(b.T, new)
            self.parts[name] = [
                torch.cat([a, *rows]),
                torch.cat([b, *(c.T for c in columns)], 1),
                torch.cat([e, torch.full((new,), smallest, dtype=torch.float64)]),
            ]
            for tree in (self.m, self.v, self.mean, self.uncertainty):
                a, b, e = tree[name]
                pads = [a.new_zeros(new, a.shape[1]), b.new_zeros(len(b), new), e.new_zeros(new)]
                tree[name] = [torch.cat([a, pads[0]]), torch.cat([b, pads[1]], 1), torch.cat([e, pads[2]])]
        if self.released:
            self.m, self.v, self.count, self.base_rate = self._zeros(), self._zeros(), 0, True

    def _new(self, rows: torch.Tensor, count: int) -> list[torch.Tensor]:
        found = []
        for v in torch.randn(count, rows.shape[1], dtype=torch.float64) if count else []:
            inside = rows.T @ (rows @ v) if self.released else torch.linalg.pinv(rows) @ (rows @ v)
            v = (v - inside)[None]
            found.append(v / v.norm())
            rows = torch.cat([rows, found[-1]])
        return found


@pytest.mark.parametrize("profile", ["paper", "released"])
@pytest.mark.parametrize("exchange", [1, 4])
def test_its_trajectory_is_that_of_a_straight_implementation(profile, exchange):
    settings = {"pool": 2, "exchange": exchange, **LONG}
    run = Run(Toy(), rank=4, profile=profile, **settings)
    start = {n: [p.detach() for p in (a.A, a.B, a.e)] for n, a in run.variant.adapters.items()}
    straight = Straight(Toy(), start, profile == "released", settings)
    seen = []
    for seed in range(TOTAL):
        torch.manual_seed(seed)
        run.step()
        torch.manual_seed(seed)
        straight.step()
        ranks = {name: len(parts[2]) for name, parts in straight.parts.items()}
        assert run.variant.ranks() == ranks
        seen.append(tuple(ranks.values()))
        for name, adapter in run.variant.adapters.items():
            assert close(adapter.delta(), straight.delta(name)), f"{name} after step {seed}"
    assert len(set(seen)) > 2, "ranks have changed several times"
    for name, adapter in run.variant.adapters.items():
        for found, expected in zip((adapter.A, adapter.B, adapter.e), straight.parts[name], strict=True):
            assert close(found, expected), name


def test_the_sum_of_ranks_is_constant_and_no_layer_loses_its_last():
    run = Run(Toy(), rank=3, pool=3, exchange=6, **LONG | {"interval": 2})
    scores, lowest = ElaLoRA.scores, "layer.1.fc1"
    run.variant.scores = lambda: {n: s * (1e-9 if n == lowest else 1) for n, s in scores(run.variant).items()}
    for _ in range(TOTAL):
        run.step()
        ranks = run.variant.ranks()
        assert sum(ranks.values()) == 12 and min(ranks.values()) >= 1 and max(ranks.values()) <= 8
    assert ranks[lowest] == 1
    run.variant.on_train_end(Step(TOTAL, TOTAL, run.optimizer, run.scheduler))


def test_worked_rounds_move_what_the_scores_say():
    run = Run(Toy(), rank=3, pool=2, exchange=2, schedule="constant", **LONG)
    names = list(run.variant.adapters)
    scores = [[5, 1, 9], [2, 7, 8], [30, 10, 20], [3, 4, 50]]  # the pool: 1 5, 2 7, 10 20, 3 4
    run.variant.scores = lambda: {n: torch.tensor(s, dtype=torch.float64) for n, s in zip(names, scores, strict=True)}
    before = {name: adapter.A.detach().clone() for name, adapter in run.variant.adapters.items()}
    run.variant._exchange(2, run.optimizer)  # 1 and 2 go; 20 and 10 are the highest
    assert list(run.variant.ranks().values()) == [2, 2, 5, 3]
    for name, kept in zip(names, ([0, 2], [1, 2], [0, 1, 2], [0, 1, 2]), strict=True):
        assert torch.equal(run.variant.adapters[name].A[: len(kept)], before[name][kept])


def test_half_of_the_pool_at_most_changes_places():
    run = Run(Toy(), rank=2, pool=1, exchange=9, schedule="constant", **LONG)
    names = list(run.variant.adapters)
    run.variant.scores = lambda: {n: torch.tensor([i, 9.0]) for i, n in enumerate(names)}
    run.variant._exchange(9, run.optimizer)
    assert list(run.variant.ranks().values()) == [1, 1, 3, 3]


def test_a_layer_that_is_full_is_passed_over():
    run = Run(Toy(), rank=7, pool=2, exchange=1, **LONG)
    favour = dict(zip(run.variant.adapters, [0, 1, 20, 30], strict=True))
    run.variant.scores = lambda: {n: torch.arange(float(r)) + favour[n] for n, r in run.variant.ranks().items()}
    seen = []
    for _ in range(3):
        run.variant._exchange(1, run.optimizer)
        seen.append(list(run.variant.ranks().values()))
    assert seen == [[6, 7, 7, 8], [5, 7, 8, 8], [4, 8, 8, 8]]


def test_the_number_that_changes_places_falls_to_zero():
    variant = ElaLoRA(exchange=4, interval=10, final_steps=1)
    assert [variant.exchanged(t, 41) for t in (0, 5, 10, 20, 30, 40)] == [0, 0, 4, 4, 2, 0]
    variant = ElaLoRA(exchange=4, interval=10, initial_steps=10, final_steps=11, schedule="constant")
    assert [t for t in range(61) if variant.exchanged(t, 61)] == [20, 30, 40]


@pytest.mark.parametrize("shape", [(3, 8), (0, 5), (6, 8)])
def test_new_directions_are_orthonormal_and_orthogonal_to_what_is_there(shape):
    torch.manual_seed(0)
    rows = torch.randn(shape, dtype=torch.float64) * 3
    new = directions(rows, 2, exact=True)
    torch.testing.assert_close(new @ new.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(rows @ new.T, torch.zeros(len(rows), 2, dtype=torch.float64), rtol=0, atol=1e-13)


def test_the_released_projection_is_exact_for_orthonormal_rows_alone():
    orthonormal = torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64)).Q.T
    for rows, exact in ((orthonormal, True), (2 * orthonormal, False)):
        torch.manual_seed(4)
        (new,) = directions(rows, 1, exact=False)
        torch.manual_seed(4)
        v = torch.randn(1, 8, dtype=torch.float64)[0]
        expected = v - rows.T @ (rows @ v)
        torch.testing.assert_close(new, expected / expected.norm(), rtol=1e-12, atol=0)
        assert (rows @ new).abs().max().item() < 1e-14 if exact else (rows @ new).abs().max().item() > 0.1


@pytest.mark.parametrize("smallest", [1e-2, 1e-15])
def test_growth_leaves_the_function_as_it_is_and_starts_without_a_score(smallest):
    run = Run(Toy(), rank=4, **LONG)
    for _ in range(4):
        run.step()
    name, adapter = next(iter(run.variant.adapters.items()))
    adapter.e.data[2] = -smallest
    before, scores = adapter.delta(), run.variant.scores()[name]
    run.variant._append(name, 2, run.optimizer)
    assert adapter.A.shape == (6, 8) and adapter.B.shape == (12, 6)
    assert adapter.e[4:].tolist() == [min(smallest, 1e-13)] * 2
    torch.testing.assert_close(adapter.delta(), before, rtol=0, atol=1e-11)
    assert torch.equal(run.variant.scores()[name][:4], scores) and not run.variant.scores()[name][4:].any()


def test_what_stays_keeps_its_scores_and_moments_and_what_is_new_has_none():
    run = Run(Toy(), rank=4, exchange=2, **LONG | {"initial_steps": 0})
    for _ in range(5):
        run.step()
    adapters = run.variant.adapters
    scores, moments = run.variant.scores(), {n: dict(run.optimizer.state[a.A]) for n, a in adapters.items()}
    before = {n: a.A.detach().clone() for n, a in adapters.items()}
    run.variant._exchange(2, run.optimizer)
    assert len(set(run.variant.ranks().values())) > 1
    for name, adapter in adapters.items():
        kept = [i for i in range(4) if any(torch.equal(before[name][i], row) for row in adapter.A)]
        state, old, count = run.optimizer.state[adapter.A], moments[name], len(kept)
        for moment in ("exp_avg", "exp_avg_sq"):
            assert state[moment].shape == adapter.A.shape
            assert torch.equal(state[moment][:count], old[moment][kept]) and not state[moment][count:].any()
        assert state["step"] == 5
        assert torch.equal(run.variant.scores()[name][:count], scores[name][kept])
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in run.optimizer.state} <= held, "nothing of what has gone is held"


def test_the_released_profile_loses_every_moment_in_a_round_and_the_paper_none():
    for profile, left in (("paper", True), ("released", False)):
        run = train(attach(ElaLoRA, {"rank": 4, "exchange": 2, "profile": profile, **SCHEDULE}), 4)  # t = 3: a round
        held = [p for group in run.optimizer.param_groups for p in group["params"]]
        assert all((p in run.optimizer.state) is left for p in held)
        train(run, 5)
        assert {int(run.optimizer.state[p]["step"]) for p in held} == ({5} if left else {1})


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_the_released_rate_jumps_to_its_base_and_the_papers_follows_the_schedule(profile):
    run = attach(ElaLoRA, {"rank": 4, "exchange": 2, "profile": profile, **SCHEDULE})
    rates = []
    for index in range(1, STEPS + 1):
        rates.append({group["lr"] for group in run.optimizer.param_groups})
        train(run, index)
        assert run.scheduler.get_last_lr()[0] == run.optimizer.param_groups[0]["lr"], "what is logged is what is used"
    planned = [0.02 * (1 - 0.5 * t / STEPS) for t in range(STEPS)]
    expected = planned if profile == "paper" else planned[:4] + [0.02] * (STEPS - 4)
    assert all(len(rate) == 1 for rate in rates)
    assert [rate.pop() for rate in rates] == pytest.approx(expected, rel=1e-12)


def test_a_schedule_that_can_not_be_stopped_is_refused_at_the_first_step():
    run = attach(ElaLoRA, {"rank": 4, "profile": "released", **SCHEDULE})
    run.scheduler = torch.optim.lr_scheduler.ConstantLR(run.optimizer)
    with pytest.raises(ValueError, match=r"optim.schedule: ConstantLR with profile: released can't be stopped"):
        train(run, 1)


@pytest.mark.parametrize("budget", [239, 300, 421])
def test_parameters_never_exceed_a_budget_and_end_within_one_rank_of_it(budget):
    run = Run(Wide(), budget=budget, exchange=3, **LONG)
    seen = set()
    for _ in range(TOTAL):
        run.step()
        assert budget - 33 < run.variant.effective_parameters() <= budget
        assert run.variant.effective_parameters() == sum(
            p.numel() for n, p in run.model.named_parameters() if p.requires_grad and "head" not in n
        )
        assert min(run.variant.ranks().values()) >= 1
        seen.add(tuple(run.variant.ranks().values()))
    assert len(seen) > 2
    run.variant.on_train_end(Step(TOTAL, TOTAL, run.optimizer, run.scheduler))


def test_under_a_budget_two_cheap_ranks_take_the_place_of_a_dear_one():
    run = Run(Wide(), budget=300, exchange=1, **LONG)  # three ranks each: 17 · 6 + 33 · 6 = 300
    assert set(run.variant.ranks().values()) == {3}
    order = {"up": [0.1, 1, 2], "down": [3, 4, 5], "first": [6, 7, 8], "last": [9, 10, 11]}
    run.variant.scores = lambda: {name: torch.tensor(order[name]) for name in run.variant.adapters}
    run.variant._exchange(1, run.optimizer)  # 33 go free; "last" takes 17, and 16 are too few for another
    assert run.variant.ranks() == {"up": 2, "down": 3, "first": 3, "last": 4}
    assert run.variant.effective_parameters() == 284


def test_a_run_in_which_no_rank_has_moved_fails():
    run = attach(ElaLoRA, {"rank": 4, "exchange": 1, **SCHEDULE})
    first, *others = run.variant.adapters  # the first layer has the lowest of the pool and the highest
    run.variant.scores = lambda: {first: torch.tensor([0.0, 9, 9, 9])} | {n: torch.arange(1.0, 5.0) for n in others}
    with pytest.raises(RuntimeError, match="rank: none has moved from one layer to another in 2 rounds"):
        train(run)


def test_the_model_is_handed_over_in_the_final_phase_alone():
    run = attach(ElaLoRA, {"rank": 4, "exchange": 2, **SCHEDULE})
    final = [run.variant.is_final_form(Step(i, STEPS, run.optimizer, run.scheduler)) for i in range(1, STEPS + 1)]
    assert final == [False] * 10 + [True] * 2


def test_every_kind_of_layer_gives_and_takes_ranks():
    variant, model = ElaLoRA(rank=3, exchange=3, targets=mixed.KINDS, **LONG | {"interval": 2}), mixed.Mixed()
    variant.plan(TOTAL)
    variant.attach(model, HEAD)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    (rows, y), losses, seen = mixed.data(), [], {name: set() for name in mixed.KINDS}
    for index in range(1, TOTAL + 1):
        loss = F.mse_loss(model(rows), y)
        (loss + variant.penalty()).backward()
        optimizer.step()
        variant.on_update(Step(index, TOTAL, optimizer, schedule))
        optimizer.zero_grad()
        losses.append(loss.item())
        assert sum(variant.ranks().values()) == 12
        for name, rank in variant.ranks().items():
            seen[name].add(rank)
    variant.on_train_end(Step(TOTAL, TOTAL, optimizer, schedule))
    assert all(len(ranks) > 1 for ranks in seen.values()) and losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("way", ["two batches", "checkpointed"])
def test_accumulated_batches_and_checkpointing_move_the_same_ranks(way):
    settings = {"rank": 4, "exchange": 2, **SCHEDULE}
    plain = train(attach(ElaLoRA, settings, torch.float64))
    run = attach(ElaLoRA, settings, torch.float64)
    x, y = data(torch.float64)
    for index in range(1, STEPS + 1):
        step = Step(index, STEPS, run.optimizer, run.scheduler)
        run.model.train()
        run.variant.on_step_begin(step)
        if way == "two batches":
            for half in (slice(0, 32), slice(32, 64)):
                loss = F.mse_loss(run.model(x[half]).float(), y[half])
                ((loss + run.variant.penalty()) / 2).backward()
        else:
            loss = F.mse_loss(checkpoint(run.model, x, use_reentrant=False).float(), y)
            (loss + run.variant.penalty()).backward()
        run.optimizer.step()
        run.variant.on_update(step)
        run.scheduler.step()
        run.model.zero_grad()
    assert run.variant.ranks() == plain.variant.ranks()
    torch.testing.assert_close(run.output(), plain.output(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 1}, "rank: 1, allowed: a whole number ≥ 2"),
        ({"pool": 0}, "pool: 0, allowed: a whole number ≥ 1"),
        ({"exchange": 0}, "exchange: 0, allowed: a whole number ≥ 1"),
        ({"final_steps": 0}, "final_steps: 0, allowed: a whole number ≥ 1"),
        ({"initial_steps": -1}, "initial_steps: -1, allowed: a whole number ≥ 0"),
        ({"schedule": "linear"}, "schedule: 'linear', allowed: cubic, constant"),
        ({"profile": "official"}, "profile: 'official', allowed: paper, released"),
        ({"beta2": 1.0}, "beta2: 1.0, allowed: 0 ≤ beta2 < 1"),
    ],
)
def test_what_can_not_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ElaLoRA(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial_steps": 60, "final_steps": 40}, "schedule: 60 initial and 40 final steps do not fit into 100"),
        ({"interval": 99}, "interval: 99 leaves no round with b ≥ 1 between 0 initial and 1 final steps of 100"),
        ({"interval": 90, "exchange": 1}, "interval: 90 leaves no round with b ≥ 1"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused_before_a_model_is_there(settings, message):
    with pytest.raises(ValueError, match=message):
        ElaLoRA(**settings).plan(100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 9}, r"rank: 9 for a layer of size 12×8, allowed: 1 … 8"),
        ({"rank": 8}, r"rank: 8 for 4 layers leaves no rank that can move"),
        ({"rank": 4, "targets": ["layer.0.fc1"]}, r"rank: 4 for 1 layers leaves no rank that can move"),
        ({"budget": 90}, r"budget: 90 for 4 layers leaves no rank that can move"),
        ({"budget": 20}, r"budget: 20 parameters, allowed for these targets: 84 … 672"),
    ],
)
def test_ranks_that_can_not_move_are_refused_before_the_weights_are_there(settings, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        ElaLoRA(**settings).check(Toy(), HEAD)
