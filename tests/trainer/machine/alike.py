"""What two processes do with a variant on a toy: `toys.train`, with every batch divided between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tests.variants.found import cases, has_hooks
from trainer.errors import ConfigError
from trainer.machine import processes, sharding
from variants.core import collectives, state_files, training_state
from variants.core.step import Loss, take
from variants.testing.case import Case
from variants.testing.toys import STEPS, Toy, Trained, data

FIRST = 5 / 8  # the share of a batch that the first process has


def without_dropout(case: Case) -> Case:
    """The case with nothing drawn in a forward pass, where two processes differ."""
    params = {**case.params, "dropout": 0.0} if "dropout" in case.params else case.params
    return Case(case.cls, params, case.kind)


def named() -> dict[str, tuple[Case, int]]:
    """Settings that the contract checks on Linear layers, by name, and into how many batches their steps go.

    All of a method with hooks; the first of one without, whose settings the processes share in the same way: a step
    sums their gradients.
    """
    found, seen = [], set[type]()
    for case in (case for case in cases() if case.kind == "Linear"):
        if case.cls not in seen or has_hooks(case.cls):
            found.append(case)
        seen.add(case.cls)
    return {f"{i} {case}": (without_dropout(case), 1 + i % 2) for i, case in enumerate(found)}


def train(run: Trained, parts: int) -> Trained:
    """The steps of `run` in this process: it sees its part of every batch, in the order of the rows."""
    variant, model = run.variant, run.model
    x, y = data(run.dtype, run.kind)
    y = y.to(run.dtype)
    processes.seed_apart(0)
    batches = []
    for part_x, part_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        cut = int(len(part_x) * FIRST)
        mine = slice(0, cut) if processes.is_first() else slice(cut, None)
        batches.append((part_x[mine], part_y[mine]))

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> Loss:
        return Loss(F.mse_loss(model(batch[0]), batch[1], reduction="sum"), batch[1].numel())

    for index in range(1, STEPS + 1):
        take(run.step(index), variant, model, batches, loss, weight=y.numel())
    with collectives.same_draws():
        variant.on_train_end(run.step(STEPS))
    return run


def sharded(case: Case, parts: int, whole: Trained) -> str:
    """The same with the frozen weights divided: "equal" where it ends with the same bits; else the refusal."""
    names = {name for name, _ in Toy().named_parameters()}  # before the draws of what follows
    run = case.attached(torch.float64)
    own = [p for name, p in run.model.named_parameters() if name in names or ".base" in name]
    try:
        sharding.shard(run.model, own, run.variant, torch.device("cpu"))
    except ConfigError as error:
        return str(error)
    same = torch.equal(train(run, parts).output(), whole.output()) and run.variant.ranks() == whole.variant.ranks()
    return "equal" if same else "different"


def all_cases(folder: Path) -> None:
    """Trains every case in this process and the other; the first writes what came of it."""
    with processes.joined():
        found: dict[str, Any] = {}
        seen: set[type] = set()
        for name, (case, parts) in named().items():
            run = train(case.attached(torch.float64), parts)
            weights = training_state.weights(run.model, run.variant, run.optimizer)
            processes.compare(weights, run.model, STEPS)
            found[name] = {"weights": weights, "ranks": run.variant.ranks()}
            if case.cls not in seen or run.variant.needs_whole_weights():  # one setting of each method is enough here
                found[name]["sharded"] = sharded(case, parts, run)
            seen.add(case.cls)
        if processes.is_first():
            state_files.save(found, folder / "found")
