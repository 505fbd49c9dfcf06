"""The toy models and the toy task on which the contract trains variants, one model for each kind of layer.

Every toy has two blocks with the adapted layers `fc1` (12×8) and `fc2` (8×12) and a norm, then a head with 3 outputs.
A training run has `STEPS` steps on 64 examples and takes milliseconds.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as checkpointed

from variants.core import collectives, state_files, training_state
from variants.core.passes import Passes
from variants.core.step import Loss, take
from variants.core.target_modules import inside
from variants.core.variant import Step, Variant, field_names

HEAD = ("head",)
STEPS = 12
LR = 0.02
TARGETS = ("fc1", "fc2")


class Conv1D(nn.Module):
    """Like transformers' class of this name: y = x W + b with W (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.empty(nf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], self.nf)


# Functions that create fc1 and fc2 of each kind.
KINDS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "Linear": lambda: (nn.Linear(8, 12), nn.Linear(12, 8)),
    "Conv1D": lambda: (Conv1D(12, 8), Conv1D(8, 12)),
    "Conv2d": lambda: (nn.Conv2d(2, 12, 2, padding=1), nn.Conv2d(12, 8, 1, stride=2)),
    "Conv1d": lambda: (nn.Conv1d(4, 12, 2, padding=1), nn.Conv1d(12, 8, 1, stride=2)),
    # The first one is depthwise: each filter reads one channel.
    "Conv2d in groups": lambda: (
        nn.Conv2d(4, 12, (2, 4), padding=(1, 2), groups=4),
        nn.Conv2d(12, 8, (2, 2), padding=1, stride=2, groups=4),
    ),
    "Embedding": lambda: (nn.Embedding(8, 12), nn.Embedding(12, 8)),
}

IMAGES = {"Conv2d": (2, 2, 2), "Conv1d": (4, 2), "Conv2d in groups": (4, 1, 2)}  # what convolutions take 8 inputs for


class Toy(nn.Module):
    """Two blocks of two layers of a kind and a norm, then a head: 8 inputs (4 indices for embeddings), 3 outputs.

    checkpointing: whether blocks are recomputed in the backward pass.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, kind: str = "Linear") -> None:
        super().__init__()
        torch.manual_seed(7)
        self.kind, self.checkpointing = kind, False
        self.layer = nn.ModuleList()
        for _ in range(2):
            fc1, fc2 = KINDS[kind]()
            self.layer.append(nn.ModuleDict({"fc1": fc1, "fc2": fc2, "norm": nn.LayerNorm(8)}))
        self.head = nn.Linear(8, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.to(dtype)
        if dtype.itemsize < 4:
            self.head.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x
        if self.kind == "Embedding":
            h = torch.zeros(len(x), 8, device=x.device, dtype=self.get_parameter("layer.0.norm.weight").dtype)
        for number, block in enumerate(self.layer):
            assert isinstance(block, nn.ModuleDict)
            rows = x[:, 2 * number : 2 * number + 2]
            if self.checkpointing and self.training:
                h = checkpointed(self._block, block, h, rows, use_reentrant=False)
            else:
                h = self._block(block, h, rows)
        return self.head(h.to(self.head.weight.dtype))

    def _block(self, block: nn.ModuleDict, h: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        fc1, fc2 = block["fc1"], block["fc2"]
        if isinstance(shape := IMAGES.get(self.kind), tuple):
            update = fc2(torch.tanh(fc1(h.view(-1, *shape)))).flatten(2).mean(-1)
        elif self.kind == "Embedding":
            first = torch.tanh(fc1(rows[:, 0]))
            update = first[:, :8] + first[:, 8:].repeat(1, 2) + fc2(rows[:, 1])
        else:
            update = fc2(torch.tanh(fc1(h)))
        return block["norm"](h + update)


def data(dtype: torch.dtype = torch.float32, kind: str = "Linear") -> tuple[torch.Tensor, torch.Tensor]:
    """Return 64 inputs and targets (64, 3) that a small change of the model can fit.

    Inputs are (64, 8) in `dtype`, or for embeddings indices (64, 4), alternately of 8 and 12 rows.
    """
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 8, generator=generator)
    if kind == "Embedding":
        # From their order, so that all rows occur equally often.
        rows = (x[:, :4].argsort(0).argsort(0) % torch.tensor([8, 12, 8, 12])).long()
        parts = torch.cos(rows[:, :, None] * torch.tensor([1.0, 2.0, 3.0]))
        return rows, torch.tanh(parts[:, 0] + parts[:, 1] - parts[:, 2] * parts[:, 3])
    return x.to(dtype), torch.tanh(x[:, :3] * 2 - x[:, 3:6])


@dataclass
class Trained:
    """A variant on a toy and the state of its training."""

    variant: Variant
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    dtype: torch.dtype  # of the backbone
    kind: str = "Linear"
    steps_done: int = 0
    losses: list[float] = field(default_factory=list)

    @property
    def toy(self) -> Toy:
        """The toy inside any wrapper."""
        return next(module for module in self.model.modules() if isinstance(module, Toy))

    def output(self) -> torch.Tensor:
        """Return the toy's outputs (64, 3) in evaluation mode."""
        self.model.eval()
        with torch.no_grad():
            return self.model(data(self.dtype, self.kind)[0])

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters outside the head, by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and not inside(n, HEAD)}

    def step(self, index: int) -> Step:
        return Step(index, STEPS, self.optimizer, self.scheduler)

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of the state of training, as the trainer saves it."""
        return copy.deepcopy(
            {
                "weights": training_state.weights(self.model, self.variant, self.optimizer),
                "optimizer": training_state.optimizer_state(self.model, self.optimizer),
                "scheduler": training_state.schedule_state(self.scheduler),
                "random": torch.get_rng_state(),
                "steps_done": self.steps_done,
            }
        )

    def restore(self, snapshot: Mapping[str, Any]) -> Trained:
        """Restore the `snapshot` of another run with the same settings."""
        training_state.restore_weights(self.model, self.variant, snapshot["weights"])
        training_state.restore_optimizer(self.model, self.optimizer, snapshot["optimizer"])
        training_state.restore_schedule(self.scheduler, snapshot["scheduler"])
        torch.set_rng_state(snapshot["random"])
        self.steps_done = snapshot["steps_done"]
        return self


def attach(
    cls: type[Variant],
    params: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    kind: str = "Linear",
    resumed: bool = False,
) -> Trained:
    """Return a new variant on a new toy, after its passes and before any step.

    Weight decay is 0; groups record what `decays` returns. resumed: whether a state will be restored, so that there
    are no passes before training.
    """
    variant = prepared(cls, params, kind)
    model: nn.Module = Toy(dtype, kind)
    torch.manual_seed(seed)
    model = variant.attach(model, HEAD)
    with torch.random.fork_rng():
        if not resumed:
            variant.before_training(passes(model, dtype, kind))
        variant.hold_passes(passes(model, dtype, kind))
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_head = inside(name, HEAD)
            options = {} if in_head else {**variant.optimizer_options(name), "decays": variant.decays(name)}
            options = {"lr": LR * options.pop("lr_scale", 1.0), **options}
            groups.setdefault(repr((in_head, options)), {"params": [], **options})["params"].append(parameter)
    optimizer = torch.optim.AdamW(list(groups.values()), weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.5 * step / STEPS)
    return Trained(variant, model, optimizer, scheduler, dtype, kind)


def passes(model: nn.Module, dtype: torch.dtype = torch.float32, kind: str = "Linear") -> Passes[Any]:
    """Return the passes over the toy's rows: 16 rows a step, of which each process has its part."""
    x, y = data(dtype, kind)
    head = next(module for module in model.modules() if isinstance(module, Toy)).head
    y = y.to(head.weight.dtype)

    def steps(count: int) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        for number in range(count):
            rows = torch.arange(16)[collectives.rank() :: collectives.count()] + 16 * (number % 4)
            yield [(x[rows], y[rows])]

    def rows(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if count > len(x):
            raise ValueError(f"samples: {count}, allowed: at most the {len(x)} training rows")
        return ((x[i, None], y[i, None]) for i in range(collectives.rank(), count, collectives.count()))

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> Loss:
        return Loss(F.mse_loss(model(batch[0]), batch[1], reduction="sum"), batch[1].numel())

    weight = 16 * y.shape[1]
    return Passes(model, steps, rows, loss, lambda batch: weight, logits=lambda batch: model(batch[0]))


def prepared(cls: type[Variant], params: Mapping[str, Any], kind: str = "Linear") -> Variant:
    """Return a variant after `plan` and `check`, before any weight is loaded."""
    if kind not in ("Linear", "Conv1D") and "targets" in field_names(cls):
        params = {"targets": list(TARGETS), **params}  # "all-linear" has no layer here
    variant = cls(**params)
    variant.plan(STEPS)
    with torch.device("meta"):
        variant.check(_skeleton(kind, KINDS[kind]), HEAD)
    return variant


def train(
    run: Trained, until: int = STEPS, *, parts: int = 1, watch: Callable[[str, Trained], None] | None = None
) -> Trained:
    """Take the steps up to `until`.

    parts: number of batches that a step accumulates. watch: is called with "begun" before the forward passes,
    "gradients" after the backward passes, "updated" at the end of a step.
    """
    variant, model = run.variant, run.model
    x, y = data(run.dtype, run.kind)
    y = y.to(run.toy.head.weight.dtype)
    batches = list(zip(x.chunk(parts), y.chunk(parts), strict=True))

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> Loss:
        return Loss(F.mse_loss(model(batch[0]), batch[1], reduction="sum"), batch[1].numel())

    def tell(event: str) -> None:
        if watch and event in ("begun", "gradients"):
            watch(event, run)

    for index in range(run.steps_done + 1, until + 1):
        taken = take(run.step(index), variant, model, batches, loss, y.numel(), watch=tell)
        run.losses.append(float(taken.task_loss))
        run.steps_done = index
        if watch:
            watch("updated", run)
    if until == STEPS:
        variant.on_train_end(run.step(STEPS))
    return run


@functools.cache
def _skeleton(kind: str, layers: Any) -> Toy:
    """Return the toy on the meta device. layers: function that creates its layers; part of the cache's key."""
    with torch.device("meta"):
        return Toy(kind=kind)


def base_output(kind: str = "Linear", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the output of a toy without a variant."""
    with torch.no_grad():
        return Toy(dtype, kind).eval()(data(dtype, kind)[0])


def through_disk(tree: Any) -> Any:
    """Return `tree` after writing and reading it."""
    with tempfile.TemporaryDirectory() as folder:
        state_files.save(tree, Path(folder) / "state")
        return state_files.load(Path(folder) / "state")
