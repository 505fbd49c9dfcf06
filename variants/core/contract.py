"""What every variant promises, as checks that run in a second.

    from variants.core.contract import check_variant
    check_variant(MyVariant)             # raises AssertionError naming the promise that is broken

`CHECKS` lists the promises one by one; a test suite may run each of them for each variant.
They use a toy model of width 8 and the settings in `cls.test_params()`.
"""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from variants.core import checkpoint, state
from variants.core.adapter import Adapter
from variants.core.targets import inside
from variants.core.variant import Step, Variant

HEAD = ("head",)
STEPS = 12


class Toy(nn.Module):
    """Two blocks of two linear layers and a norm, then a head: 8 inputs, 3 outputs."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(7)
        block = [nn.ModuleDict({"fc1": nn.Linear(8, 12), "fc2": nn.Linear(12, 8), "norm": nn.LayerNorm(8)})]
        self.layer = nn.ModuleList([*block, *copy.deepcopy(block)])
        self.head = nn.Linear(8, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.to(dtype)
        if dtype.itemsize < 4:
            self.head.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.layer:
            assert isinstance(block, nn.ModuleDict)
            x = block["norm"](x + block["fc2"](torch.tanh(block["fc1"](x))))
        return self.head(x.to(self.head.weight.dtype))


def data(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """64 inputs (64, 8) and targets (64, 3) that a small change of the model can fit."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 8, generator=generator)
    return x.to(dtype), torch.tanh(x[:, :3] * 2 - x[:, 3:6])


@dataclass
class Trained:
    """A variant on the toy, and its training so far."""

    variant: Variant
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    dtype: torch.dtype  # of the backbone
    steps_done: int = 0
    losses: list[float] = field(default_factory=list)

    def output(self) -> torch.Tensor:
        """The toy's outputs (64, 3), in evaluation mode."""
        self.model.eval()
        with torch.no_grad():
            return self.model(data(self.dtype)[0])


def attach(cls: type[Variant], params: dict[str, Any], dtype: torch.dtype = torch.float32, seed: int = 0) -> Trained:
    """A fresh variant on a fresh toy, before any step."""
    variant = cls(**params)
    variant.plan(STEPS)
    with torch.device("meta"):
        variant.check(Toy(), HEAD)
    model: nn.Module = Toy(dtype)
    torch.manual_seed(seed)
    model = variant.attach(model, HEAD)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = []
    for name, parameter in trainable.items():
        options = {} if inside(name, HEAD) else dict(variant.optimizer_options(name))
        groups.append({"params": [parameter], "lr": 0.02 * options.pop("lr_scale", 1.0), **options})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.5 * step / STEPS)
    return Trained(variant, model, optimizer, scheduler, dtype)


def train(run: Trained, until: int = STEPS) -> Trained:
    """Makes the steps up to `until`: the documented loop, without anything around it."""
    variant, model = run.variant, run.model
    x, y = data(run.dtype)
    for index in range(run.steps_done + 1, until + 1):
        step = Step(index, STEPS, run.optimizer, run.scheduler)
        model.train()
        variant.on_step_begin(step)
        loss = F.mse_loss(model(x).float(), y)
        penalty = variant.penalty()
        (loss if penalty is None else loss + penalty).backward()
        variant.on_gradients(step)
        run.optimizer.step()
        variant.on_update(step)
        run.scheduler.step()
        model.zero_grad()
        run.losses.append(loss.item())
        run.steps_done = index
    if until == STEPS:
        variant.on_train_end(Step(STEPS, STEPS, run.optimizer, run.scheduler))
    return run


def starts_at_the_base_model(cls: type[Variant], params: dict[str, Any]) -> None:
    """Attached and not yet trained, the model computes what the base model computes."""
    run = attach(cls, params)
    if run.variant.exact_at_start:
        same = torch.equal(run.output(), base_output())
        assert same, "the first output differs from the base model's; set exact_at_start = False if it must"


def leaves_the_base_weights(cls: type[Variant], params: dict[str, Any]) -> None:
    """What is not trained keeps every bit."""
    run = attach(cls, params)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters() if not p.requires_grad}
    train(run)
    after = dict(run.model.named_parameters())
    moved = [name for name, tensor in before.items() if name in after and not torch.equal(tensor, after[name])]
    assert not moved, f"frozen weights moved: {moved}"


def trains_the_head(cls: type[Variant], params: dict[str, Any]) -> None:
    """The head is trainable and moves."""
    run = attach(cls, params)
    weight = dict(run.model.named_parameters())[_find(run.model, "weight")]
    before = weight.detach().clone()
    train(run, 2)
    assert not torch.equal(before, weight), "the head does not move"


def counts_by_formula(cls: type[Variant], params: dict[str, Any]) -> None:
    """The trainable parameters outside the head are as many as the method's formula says."""
    run = attach(cls, params)
    count = sum(p.numel() for n, p in run.model.named_parameters() if p.requires_grad and not inside(n, HEAD))
    formula = run.variant.closed_form()
    assert formula is None or formula == count, f"closed_form() says {formula}, trainable are {count}"
    effective = run.variant.effective_parameters()
    assert effective is None or effective <= count, f"effective_parameters() says {effective} of {count}"


def reports_the_rank_of_the_update(cls: type[Variant], params: dict[str, Any]) -> None:
    """After training the reported rank of every layer is the numerical rank of its ΔW."""
    run = train(attach(cls, params, torch.float64))
    for name, adapter in adapters(run):
        numerical = int(torch.linalg.matrix_rank(adapter.delta_weight().detach()))
        assert adapter.rank == numerical, f"{name}: rank {adapter.rank} reported, ΔW has {numerical}"


def can_be_disabled(cls: type[Variant], params: dict[str, Any]) -> None:
    """Within `disabled()` the backbone computes what the base model computes; after it, what it did."""
    run = train(attach(cls, params))
    trained = run.output()
    try:
        with run.variant.disabled():
            without = run.output()
    except ValueError:
        assert not list(adapters(run)), "a method with adapters must be able to disable them"
        return
    toy = Toy()
    toy.head.load_state_dict({n: dict(run.model.named_parameters())[_find(run.model, n)] for n in ("weight", "bias")})
    with torch.no_grad():
        assert torch.equal(without, toy.eval()(data()[0])), "disabled() does not give the base model"
    assert torch.equal(run.output(), trained), "the output after disabled() is not what it was before"


def merges(cls: type[Variant], params: dict[str, Any]) -> None:
    """Merged and unmerged models agree to rounding; unmerging gives every bit back."""
    run = train(attach(cls, params, torch.float64))
    found = [adapter for _, adapter in adapters(run)]
    unmerged, weights = run.output(), [adapter.weight.detach().clone() for adapter in found]
    for adapter in found:
        adapter.merge()
    torch.testing.assert_close(run.output(), unmerged, rtol=1e-10, atol=1e-12, msg="merged output differs")
    for adapter in found:
        adapter.unmerge()
    back = all(torch.equal(a.weight, weight) for a, weight in zip(found, weights, strict=True))
    assert back, "unmerge() does not restore the weight"
    assert torch.equal(run.output(), unmerged), "the output after unmerge() is not what it was before"


def goes_out_as_factors(cls: type[Variant], params: dict[str, Any]) -> None:
    """After training the factors that a hand-over writes are ΔW, with as many components as its rank or more."""
    run = train(attach(cls, params, torch.float64))
    run.model.eval()
    for name, adapter in adapters(run):
        delta, (a, b) = adapter.delta().detach(), adapter.as_product()
        same = torch.allclose(b @ a, delta, rtol=0, atol=1e-12 * max(1.0, float(delta.abs().max())))
        assert same, f"{name}: as_product() is not ΔW as delta() gives it"
        assert len(a) >= adapter.rank, f"{name}: as_product() has {len(a)} components, ΔW has rank {adapter.rank}"


def saves_and_loads(cls: type[Variant], params: dict[str, Any]) -> None:
    """A fresh model that takes up the saved state gives the same output, bit for bit."""
    run = train(attach(cls, params))
    again = attach(cls, params)
    saved = state.weights(run.model, run.variant, run.optimizer)
    state.restore_weights(again.model, again.variant, through_disk(saved))
    assert torch.equal(again.output(), run.output()), "the loaded model's output differs"
    assert again.variant.ranks() == run.variant.ranks(), "the loaded model's ranks differ"


def resumes_bit_for_bit(cls: type[Variant], params: dict[str, Any]) -> None:
    """Stopped after a step and taken up again, training ends with the same bits."""
    straight = train(attach(cls, params))
    for stop in (1, 4, 7, 10, STEPS - 1):
        first = train(attach(cls, params), stop)
        saved = through_disk(
            {
                "weights": state.weights(first.model, first.variant, first.optimizer),
                "optimizer": state.optimizer_state(first.model, first.optimizer),
                "scheduler": state.schedule_state(first.scheduler),
                "random": torch.get_rng_state(),
            }
        )
        second = attach(cls, params)
        state.restore_weights(second.model, second.variant, saved["weights"])
        state.restore_optimizer(second.model, second.optimizer, saved["optimizer"])
        state.restore_schedule(second.scheduler, saved["scheduler"])
        second.steps_done = stop
        torch.set_rng_state(saved["random"])
        train(second)
        assert torch.equal(second.output(), straight.output()), f"resumed after step {stop} it ends elsewhere"
        assert second.variant.ranks() == straight.variant.ranks(), f"resumed after step {stop} the ranks differ"


def repeats_with_a_seed(cls: type[Variant], params: dict[str, Any]) -> None:
    """Two runs with one seed are equal."""
    outputs = [train(attach(cls, params)).output() for _ in range(2)]
    assert torch.equal(*outputs), "two runs with the same seed differ"


def trains_above_bfloat16(cls: type[Variant], params: dict[str, Any]) -> None:
    """Above a bfloat16 backbone every adapter's parameter is float32, and training lowers the loss."""
    run = attach(cls, params, torch.bfloat16)
    trained = {n: p.dtype for n, p in run.model.named_parameters() if p.requires_grad and not inside(n, HEAD)}
    if not list(adapters(run)):
        return
    assert set(trained.values()) == {torch.float32}, f"parameters in half precision: {trained}"
    train(run)
    assert run.losses[-1] < run.losses[0], f"the loss does not fall in bfloat16: {run.losses[0]} to {run.losses[-1]}"


def lowers_the_loss(cls: type[Variant], params: dict[str, Any]) -> None:
    """Training lowers the loss on a task that a small change can fit."""
    losses = train(attach(cls, params)).losses
    assert losses[-1] < 0.9 * losses[0], f"the loss does not fall: {losses[0]:.4f} to {losses[-1]:.4f}"


def says_what_it_is(cls: type[Variant], params: dict[str, Any]) -> None:
    """The file has a method card, the class a docstring and test_params of its own that work."""
    card = inspect.getdoc(inspect.getmodule(cls)) or ""
    assert len(card.splitlines()) >= 4, "the module's docstring is no method card"
    assert ("Hooks" in card and "Cost" in card) or "Library" in card, "the card names no hooks or no cost"
    assert cls.__doc__, "the class has no docstring"
    assert cls.test_params(), "test_params() is empty"


CHECKS: tuple[Callable[[type[Variant], dict[str, Any]], None], ...] = (
    says_what_it_is,
    starts_at_the_base_model,
    leaves_the_base_weights,
    trains_the_head,
    counts_by_formula,
    reports_the_rank_of_the_update,
    can_be_disabled,
    merges,
    goes_out_as_factors,
    saves_and_loads,
    resumes_bit_for_bit,
    repeats_with_a_seed,
    trains_above_bfloat16,
    lowers_the_loss,
)


def check_variant(cls: type[Variant]) -> None:
    """Runs every check for every entry of `cls.test_params()`. Raises `AssertionError`."""
    for params in cls.test_params():
        for check in CHECKS:
            try:
                check(cls, params)
            except AssertionError as error:
                raise AssertionError(f"{cls.__name__}({params}) {check.__name__}: {error}") from error


def adapters(run: Trained) -> Iterator[tuple[str, Adapter]]:
    """The adapters in a model, by name; none for a method that wraps no layer."""
    return ((name, module) for name, module in run.model.named_modules() if isinstance(module, Adapter))


def base_output() -> torch.Tensor:
    with torch.no_grad():
        return Toy().eval()(data()[0])


def through_disk(tree: Any) -> Any:
    """`tree` written and read again."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(tree, Path(folder) / "state")
        return checkpoint.load(Path(folder) / "state")


def _find(model: nn.Module, name: str) -> str:
    return next(n for n, p in model.named_parameters() if inside(n, HEAD) and n.endswith(name) and p.requires_grad)
