"""A toy in transformers' own Trainer, and the same steps of `take`; it takes seconds to import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from trainer.loop.trainer_callback import VariantCallback
from variants.core.parameter_groups import parameter_groups
from variants.core.passes import Passes
from variants.core.step import Loss, take
from variants.core.variant import Step, Variant
from variants.testing.toys import HEAD, LR, STEPS, Toy, data

KILLED = 7  # the step after which a run ends and is resumed


class Labelled(Toy):
    """The contract's toy as the Trainer wants a model, with a loss; in float64, where rounding decides nothing."""

    def __init__(self) -> None:
        super().__init__(torch.float64)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        y = super().forward(x)
        return {"logits": y} if labels is None else {"loss": F.mse_loss(y, labels), "logits": y}


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = data(torch.float64)
    return x, y.double()


class Rows(Dataset):
    def __init__(self) -> None:
        self.x, self.y = rows()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


class Draws(TrainerCallback):
    """The state of the random numbers before training (0) and each step: the Trainer's data loader draws, too."""

    def __init__(self) -> None:
        self.states: dict[int, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.states.setdefault(0, torch.get_rng_state())

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.states[state.global_step + 1] = torch.get_rng_state()


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    """Ends a run in the step after one that is saved."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == KILLED:
            raise Killed

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = state.global_step == KILLED


def trainer(variant: Variant, folder: Path, accumulated: int = 1, *callbacks: Any, **options: Any) -> Trainer:
    settings = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "learning_rate": LR,
        "per_device_train_batch_size": 64 // accumulated,
        "gradient_accumulation_steps": accumulated,
        "train_sampling_strategy": "sequential",
        "optim": "adamw_torch",
        "max_grad_norm": 0.5,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 5,
        **options,
    }
    return Trainer(
        model=Labelled(),
        args=TrainingArguments(**settings),
        train_dataset=Rows(),
        eval_dataset=Rows(),
        callbacks=[*callbacks, VariantCallback(variant, HEAD)],
    )


def ours(variant: Variant, accumulated: int, draws: Mapping[int, torch.Tensor]) -> nn.Module:
    """The model after the same steps of `take`, with the same random numbers."""
    model = Labelled()
    torch.manual_seed(42)  # as the Trainer does before its callbacks are called
    variant.attach(model, HEAD)
    variant.plan(STEPS)
    x, y = rows()
    batches = list(zip(x.chunk(accumulated), y.chunk(accumulated), strict=True))

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> Loss:
        return Loss(model(*batch)["loss"] * batch[1].numel(), batch[1].numel())

    torch.set_rng_state(draws[0])
    with torch.random.fork_rng():
        passes = Passes(
            model,
            lambda count: iter([batches] * count),
            lambda count: zip(x[:count].split(1), y[:count].split(1), strict=True),
            loss,
            lambda batch: batch[1].numel(),
            logits=lambda batch: None,
        )
        variant.before_training(passes)
        variant.hold_passes(passes)
    optimizer = torch.optim.AdamW(parameter_groups(model, HEAD, variant, LR, None, 0.0))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (STEPS - step) / STEPS))
    for index in range(1, STEPS + 1):
        torch.set_rng_state(draws[index])
        step = Step(index, STEPS, optimizer, scheduler)
        take(step, variant, model, batches, loss, y.numel(), max_norm=0.5)
        if variant.is_over():
            break
    variant.on_train_end(step)
    return model


def differences(one: nn.Module, other: nn.Module) -> dict[str, float]:
    """The largest difference of each parameter that differs."""
    mine, others = dict(one.named_parameters()), dict(other.named_parameters())
    assert {n: p.shape for n, p in mine.items()} == {n: p.shape for n, p in others.items()}
    return {n: float((p - others[n]).detach().abs().max()) for n, p in mine.items() if not torch.equal(p, others[n])}
