"""Variants in transformers' own Trainer: its steps are ours, to the bit where its sums are."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.variants.found import all_variants
from trainer.errors import ConfigError
from trainer.loop.trainer_callback import VariantCallback
from variants.adalora import AdaLoRA
from variants.base import Base
from variants.core.parameter_groups import parameter_groups
from variants.core.passes import Passes
from variants.core.step import Loss, take
from variants.core.variant import Step, Variant
from variants.lora import LoRA
from variants.peft import Peft
from variants.testing.toys import HEAD, LR, STEPS, Toy, data

KILLED = 7  # the step after which a run ends and is resumed
NATIVE = [cls for cls in all_variants() if cls.trains and cls is not Peft]


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


def made(cls: type[Variant], **more: Any) -> Variant:
    return cls(**{**cls.test_params()[0], **more})


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("cls", NATIVE, ids=lambda cls: cls.__name__)
def test_steps_of_the_trainer_are_our_steps_also_of_a_run_that_is_resumed(cls, accumulated, tmp_path):
    variant, draws = made(cls), Draws()
    if accumulated == 1:
        run = trainer(variant, tmp_path, 1, draws)
        run.train()
    else:
        with pytest.raises(Killed):
            trainer(made(cls), tmp_path, accumulated, draws, Kill()).train()
        run = trainer(variant, tmp_path, accumulated, draws)
        run.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{KILLED}"))
    reference = made(cls)
    apart = differences(run.model, ours(reference, accumulated, draws.states))
    assert not apart or max(apart.values()) < 1e-9, apart
    assert variant.ranks() == reference.ranks()


def test_the_last_step_of_an_epoch_may_have_fewer_batches(tmp_path):
    class Tail(Rows):
        def __len__(self) -> int:
            return 48

    options = {"per_device_train_batch_size": 16, "num_train_epochs": 2, "max_steps": -1}
    variant = AdaLoRA(rank=4, target_rank=2)
    run = trainer(variant, tmp_path, 2, **options)
    run.train_dataset = Tail()
    callback = next(one for one in run.callback_handler.callbacks if isinstance(one, VariantCallback))
    seen, add = list[int](), callback._add_penalty
    callback._add_penalty = lambda optimizer: (seen.append(callback._batches), add(optimizer))
    run.train()
    assert seen == [2, 2, 1, 2, 2, 1]


def test_ranks_and_the_penalty_are_logged(tmp_path):
    variant = made(AdaLoRA)
    run = trainer(variant, tmp_path)
    run.train()
    lines = [json.loads(line) for line in (tmp_path / "ranks.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 0 and lines[-1]["ranks"] == variant.ranks() != lines[0]["ranks"]
    logged = [line for line in run.state.log_history if "loss" in line]
    assert [line["total_rank"] for line in logged] and all(line["penalty"] > 0 for line in logged)


def test_a_step_that_is_not_finite_moves_nothing(tmp_path):
    run = trainer(made(LoRA), tmp_path, max_steps=1, logging_steps=1)
    run.train_dataset.x[3] = float("nan")
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())
    assert run.state.log_history[0]["skipped"] == 1


def test_a_rate_of_its_own_reaches_the_optimizer(tmp_path):
    run = trainer(LoRA(rank=2, lr_ratio=4.0), tmp_path, weight_decay=0.1, warmup_steps=2)
    run.train()
    groups = {
        name: group
        for group in run.optimizer.param_groups
        for name, p in run.model.named_parameters()
        if any(p is one for one in group["params"])
    }
    rate = {name.rpartition(".")[2]: group["initial_lr"] for name, group in groups.items()}
    assert rate["B"] == 4 * rate["A"] == 4 * LR and groups["head.bias"]["weight_decay"] == 0.0


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        (Base(), {}, "variant: Base trains nothing"),
        (Peft(method="lora"), {}, "variant: Peft wraps the whole model"),
        (LoRA(rank=2, targets=["nothing"]), {}, "variant.targets: "),
        (
            made(AdaLoRA),
            {
                "load_best_model_at_end": True,
                "eval_strategy": "steps",
                "save_strategy": "steps",
                "eval_steps": 5,
                "save_steps": 5,
                "do_eval": True,
            },
            "args.load_best_model_at_end: True with AdaLoRA",
        ),
        (
            LoRA(rank=2),
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"},
            "args.lr_scheduler_type: ",
        ),
        (AdaLoRA(initial_steps=50, final_steps=50), {}, "variant."),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line_before_training(variant, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as refusal:
        trainer(variant, tmp_path, **options).train()
    assert "\n" not in str(refusal.value)


def test_an_optimizer_made_elsewhere_is_refused(tmp_path):
    model = Labelled()
    with pytest.raises(ConfigError, match="optimizers: given"):
        Trainer(
            model=model,
            args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
            train_dataset=Rows(),
            callbacks=[VariantCallback(LoRA(rank=2), HEAD)],
            optimizers=(torch.optim.SGD(model.parameters(), lr=1.0), None),
        )


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        with pytest.raises(Killed):
            trainer(made(LoRA), tmp_path / name, 1, Kill(), seed=seed).train()
    elsewhere = str(tmp_path / "b" / f"checkpoint-{KILLED}")
    with pytest.raises(ConfigError, match=r"resume_from_checkpoint: .*allowed: a checkpoint of this callback"):
        trainer(made(LoRA), tmp_path / "a").train(resume_from_checkpoint=elsewhere)


def test_a_second_training_is_refused(tmp_path):
    run = trainer(made(LoRA), tmp_path)
    run.train()
    with pytest.raises(ConfigError, match="train: called again"):
        run.train()


@pytest.mark.parametrize(
    ("options", "refused"),
    [({"use_reentrant": True}, True), ({"preserve_rng_state": True}, True), (None, False)],
)
def test_reentrant_gradient_checkpointing_is_refused(options, refused, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    run = Trainer(
        model=BertForSequenceClassification(config),
        args=TrainingArguments(
            str(tmp_path),
            max_steps=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs=options,
        ),
        train_dataset=[{"input_ids": torch.arange(5), "labels": 0}],
        callbacks=[VariantCallback(LoRA(rank=2), ["classifier"])],
    )
    with (
        pytest.raises(ConfigError, match="model: its gradient checkpointing is reentrant")
        if refused
        else contextlib.nullcontext()
    ):
        run.train()


def test_the_checkpoint_of_a_transformers_model_holds_the_methods_state(tmp_path):
    """Saved by `save_pretrained`, and loaded into parameters of other shapes than those of the start."""
    from transformers import BertConfig, BertForSequenceClassification

    rows = [{"input_ids": torch.arange(5) + row, "labels": row % 2} for row in range(8)]

    def run(*callbacks: Any) -> tuple[Trainer, Variant]:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
        variant = AdaLoRA(rank=4, target_rank=2, targets=["query", "key"], hard=True)
        args = TrainingArguments(
            str(tmp_path), max_steps=STEPS, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
        )
        callback = VariantCallback(variant, ["classifier"])
        model = BertForSequenceClassification(config)
        return Trainer(model=model, args=args, train_dataset=rows, callbacks=[callback, *callbacks]), variant

    with pytest.raises(Killed):
        run(Kill())[0].train()
    (whole, expected), (resumed, variant) = run(), run()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{KILLED}"))
    assert variant.ranks() == expected.ranks() and sum(variant.ranks().values()) == 4
    assert not differences(resumed.model, whole.model)
    resumed.save_model(str(tmp_path / "end"))
    assert not [name for name in resumed.model.state_dict() if name.startswith("variant_state")]


def test_trls_trainer_for_supervised_fine_tuning(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset as Table
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=8,
        pad_token_id=0,
    )
    variant = AdaLoRA(rank=4, target_rank=2, targets=["q_proj", "v_proj"])
    args = trl.SFTConfig(
        str(tmp_path),
        max_steps=4,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    run = trl.SFTTrainer(
        model=LlamaForCausalLM(config),
        args=args,
        train_dataset=Table.from_list([{"input_ids": [1, 2, 3 + row], "labels": [1, 2, 3 + row]} for row in range(16)]),
        processing_class=tokenizer(),
        callbacks=[VariantCallback(variant)],
    )
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    assert sum(variant.ranks().values()) == 4
    moved = {name for name, p in run.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(name.rpartition(".")[2] in ("A", "B", "e") for name in moved)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
