"""Variants in transformers' own Trainer: its steps are ours, to the bit where its sums are."""

from __future__ import annotations

import contextlib
import json
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.variants.found import all_variants
from trainer.errors import ConfigError
from variants.adalora import AdaLoRA
from variants.base import Base
from variants.core.variant import Variant
from variants.lora import LoRA
from variants.peft import Peft
from variants.testing.toys import HEAD, LR, STEPS

NATIVE = [cls for cls in all_variants() if cls.trains and cls is not Peft]


@pytest.fixture(scope="session")
def theirs() -> ModuleType:
    """The toy in the Trainer, imported where a test needs it."""
    from tests.trainer.loop import in_transformers

    return in_transformers


def made(cls: type[Variant], **more: Any) -> Variant:
    return cls(**{**cls.test_params()[0], **more})


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("cls", NATIVE, ids=lambda cls: cls.__name__)
def test_steps_of_the_trainer_are_our_steps_also_of_a_run_that_is_resumed(theirs, cls, accumulated, tmp_path):
    variant, draws = made(cls), theirs.Draws()
    if accumulated == 1:
        run = theirs.trainer(variant, tmp_path, 1, draws)
        run.train()
    else:
        with pytest.raises(theirs.Killed):
            theirs.trainer(made(cls), tmp_path, accumulated, draws, theirs.Kill()).train()
        run = theirs.trainer(variant, tmp_path, accumulated, draws)
        run.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{theirs.KILLED}"))
    reference = made(cls)
    apart = theirs.differences(run.model, theirs.ours(reference, accumulated, draws.states))
    assert not apart or max(apart.values()) < 1e-9, apart
    assert variant.ranks() == reference.ranks()


def test_the_last_step_of_an_epoch_may_have_fewer_batches(theirs, tmp_path):
    class Tail(theirs.Rows):
        def __len__(self) -> int:
            return 48

    options = {"per_device_train_batch_size": 16, "num_train_epochs": 2, "max_steps": -1}
    variant = AdaLoRA(rank=4, target_rank=2)
    run = theirs.trainer(variant, tmp_path, 2, **options)
    run.train_dataset = Tail()
    callback = next(one for one in run.callback_handler.callbacks if isinstance(one, theirs.VariantCallback))
    seen, add = list[int](), callback._add_penalty
    callback._add_penalty = lambda optimizer: (seen.append(callback._batches), add(optimizer))
    run.train()
    assert seen == [2, 2, 1, 2, 2, 1]


def test_ranks_and_the_penalty_are_logged(theirs, tmp_path):
    variant = made(AdaLoRA)
    run = theirs.trainer(variant, tmp_path)
    run.train()
    lines = [json.loads(line) for line in (tmp_path / "ranks.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 0 and lines[-1]["ranks"] == variant.ranks() != lines[0]["ranks"]
    logged = [line for line in run.state.log_history if "loss" in line]
    assert [line["total_rank"] for line in logged] and all(line["penalty"] > 0 for line in logged)


def test_a_step_that_is_not_finite_moves_nothing(theirs, tmp_path):
    run = theirs.trainer(made(LoRA), tmp_path, max_steps=1, logging_steps=1)
    run.train_dataset.x[3] = float("nan")
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())
    assert run.state.log_history[0]["skipped"] == 1


def test_a_rate_of_its_own_reaches_the_optimizer(theirs, tmp_path):
    run = theirs.trainer(LoRA(rank=2, lr_ratio=4.0), tmp_path, weight_decay=0.1, warmup_steps=2)
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
    ("method", "options", "message"),
    [
        (lambda: Base(), {}, "variant: Base trains nothing"),
        (lambda: Peft(method="lora"), {}, "variant: Peft wraps the whole model"),
        (lambda: LoRA(rank=2, targets=["nothing"]), {}, "variant.targets: "),
        (
            lambda: made(AdaLoRA),
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
            lambda: LoRA(rank=2),
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"},
            "args.lr_scheduler_type: ",
        ),
        (lambda: AdaLoRA(initial_steps=50, final_steps=50), {}, "variant."),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line_before_training(theirs, method, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as refusal:
        theirs.trainer(method(), tmp_path, **options).train()
    assert "\n" not in str(refusal.value)


def test_an_optimizer_made_elsewhere_is_refused(theirs, tmp_path):
    model = theirs.Labelled()
    with pytest.raises(ConfigError, match="optimizers: given"):
        theirs.Trainer(
            model=model,
            args=theirs.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
            train_dataset=theirs.Rows(),
            callbacks=[theirs.VariantCallback(LoRA(rank=2), HEAD)],
            optimizers=(torch.optim.SGD(model.parameters(), lr=1.0), None),
        )


def test_a_checkpoint_of_another_run_is_not_resumed(theirs, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        with pytest.raises(theirs.Killed):
            theirs.trainer(made(LoRA), tmp_path / name, 1, theirs.Kill(), seed=seed).train()
    elsewhere = str(tmp_path / "b" / f"checkpoint-{theirs.KILLED}")
    with pytest.raises(ConfigError, match=r"resume_from_checkpoint: .*allowed: a checkpoint of this callback"):
        theirs.trainer(made(LoRA), tmp_path / "a").train(resume_from_checkpoint=elsewhere)


def test_a_second_training_is_refused(theirs, tmp_path):
    run = theirs.trainer(made(LoRA), tmp_path)
    run.train()
    with pytest.raises(ConfigError, match="train: called again"):
        run.train()


@pytest.mark.parametrize(
    ("options", "refused"),
    [({"use_reentrant": True}, True), ({"preserve_rng_state": True}, True), (None, False)],
)
def test_reentrant_gradient_checkpointing_is_refused(theirs, options, refused, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    run = theirs.Trainer(
        model=BertForSequenceClassification(config),
        args=theirs.TrainingArguments(
            str(tmp_path),
            max_steps=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs=options,
        ),
        train_dataset=[{"input_ids": torch.arange(5), "labels": 0}],
        callbacks=[theirs.VariantCallback(LoRA(rank=2), ["classifier"])],
    )
    with (
        pytest.raises(ConfigError, match="model: its gradient checkpointing is reentrant")
        if refused
        else contextlib.nullcontext()
    ):
        run.train()


def test_the_checkpoint_of_a_transformers_model_holds_the_methods_state(theirs, tmp_path):
    """Saved by `save_pretrained`, and loaded into parameters of other shapes than those of the start."""
    from transformers import BertConfig, BertForSequenceClassification

    rows = [{"input_ids": torch.arange(5) + row, "labels": row % 2} for row in range(8)]

    def run(*callbacks: Any) -> tuple[Any, Variant]:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
        variant = AdaLoRA(rank=4, target_rank=2, targets=["query", "key"], hard=True)
        args = theirs.TrainingArguments(
            str(tmp_path), max_steps=STEPS, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
        )
        callback = theirs.VariantCallback(variant, ["classifier"])
        model = BertForSequenceClassification(config)
        return theirs.Trainer(model=model, args=args, train_dataset=rows, callbacks=[callback, *callbacks]), variant

    with pytest.raises(theirs.Killed):
        run(theirs.Kill())[0].train()
    (whole, expected), (resumed, variant) = run(), run()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{theirs.KILLED}"))
    assert variant.ranks() == expected.ranks() and sum(variant.ranks().values()) == 4
    assert not theirs.differences(resumed.model, whole.model)
    resumed.save_model(str(tmp_path / "end"))
    assert not [name for name in resumed.model.state_dict() if name.startswith("variant_state")]


def test_trls_trainer_for_supervised_fine_tuning(theirs, tmp_path):
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
        callbacks=[theirs.VariantCallback(variant)],
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
