"""What adaptive methods are known to fall into, one by one. The trainer's side is in tests/trainer/loop/test_traps.py.

An option that is ignored: tests/variants/test_options.py. Accumulation, gradient checkpointing, evaluations
between two allocations, stopping at every step: the contract.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, T5Config, T5ForSequenceClassification

from tests.variants.found import all_variants, has_hooks
from variants.adalora import AdaLoRA
from variants.core import training_state
from variants.core.allocation.budget import within
from variants.core.allocation.importance import Importance
from variants.core.variant import AdapterVariant, Variant
from variants.increlora import IncreLoRA
from variants.lora import LoRA
from variants.peft import Peft
from variants.shira import SHiRA
from variants.sora import SoRA
from variants.sparse import SparseLoRA
from variants.testing.toys import HEAD, STEPS, Toy, Trained, attach, data, prepared, through_disk, train

STEPPED = {"initial_steps": 2, "final_steps": 4, "interval": 2}
WITH_HOOKS = [cls for cls in all_variants() if has_hooks(cls)]


# -- an importance average poisoned by one gradient that is not finite ------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_importance_average_with_a_gradient_that_is_not_finite_is_never_saved_and_chooses_nothing(bad) -> None:
    importance, parameter = Importance(0.85, 0.85), nn.Parameter(torch.tensor([1.0, -2.0]))
    for gradient in (0.25, bad):  # the trainer would leave the second step out
        importance.state_dict()
        parameter.grad = torch.tensor([0.5, gradient])
        importance.update({"p": parameter})
    for _ in range(3):  # nor does it heal
        with pytest.raises(ValueError, match="importance: a gradient was not finite"):
            importance.state_dict()
        with pytest.raises(ValueError, match="scores: one is not finite"):
            within(list(importance.scores().values()), [1], 1)
        parameter.grad = torch.tensor([0.5, 0.25])
        importance.update({"p": parameter})


def leave_out_a_step(run: Trained) -> None:
    """A step whose gradients are not finite, as the trainer leaves it out."""
    index = run.steps_done + 1
    run.model.train()
    run.variant.on_step_begin(run.step(index))
    (run.model(data(run.dtype)[0]).sum() * math.nan).backward()
    run.model.zero_grad()
    run.optimizer.step()
    run.scheduler.step()
    run.steps_done = index


@pytest.mark.slow
@pytest.mark.parametrize("cls", WITH_HOOKS, ids=lambda cls: cls.__name__)
def test_whichever_step_is_left_out_the_method_meets_its_budget(cls: type[Variant], caplog: Any) -> None:
    caplog.set_level(logging.ERROR)
    params = cls.test_params()[0]
    straight, snapshots = attach(cls, params), []
    for step in range(1, STEPS + 1):
        snapshots.append(straight.snapshot())
        train(straight, step)
    expected = sum(straight.variant.ranks().values())
    for step, before in enumerate(snapshots, 1):
        run = attach(cls, params, resumed=True).restore(before)
        leave_out_a_step(run)
        if step < STEPS:
            train(run)
        else:
            run.variant.on_train_end(run.step(STEPS))
        assert torch.isfinite(run.output()).all()
        if hasattr(run.variant, "target"):
            assert sum(run.variant.ranks().values()) == expected, f"after step {step} was left out"


# -- init rank = target rank --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "params", "ranks"),
    [
        (AdaLoRA, {"rank": 3, "target_rank": 3, **STEPPED}, 3),
        (AdaLoRA, {"rank": 3, "target_rank": 3, "profile": "released", **STEPPED}, 3),
        (AdaLoRA, {"rank": 3, "target_rank": 3, "hard": True, **STEPPED}, 3),
        (IncreLoRA, {"rank": 2, "target_rank": 2}, 2),
        (IncreLoRA, {"rank": 2, "target_rank": 2, "profile": "released"}, 2),
        (SparseLoRA, {"rank": 3, "density": 1.0}, 3),
        (SoRA, {"rank": 3, "budget": 4 * 3 * 21, "threshold": 0.0, "l1": 0.0}, 3),
    ],
    ids=str,
)
def test_a_method_that_has_nothing_to_allocate_trains_as_a_fixed_rank(
    cls: type[Variant], params: dict[str, Any], ranks: int, caplog: Any
) -> None:
    caplog.set_level(logging.ERROR)
    run = train(attach(cls, params))
    assert set(run.variant.ranks().values()) == {ranks}
    assert run.losses[-1] < 0.9 * run.losses[0]


def test_pefts_own_would_stop_in_the_middle_of_such_a_run_and_is_refused() -> None:
    with pytest.raises(ValueError, match=r"options.target_r: 3, allowed: below init_r, 3"):
        prepared(Peft, {"method": "adalora", "options": {"init_r": 3, "target_r": 3}})


# -- a layer pruned to rank 0 -------------------------------------------------------------------


def starve(run: Trained, name: str) -> None:
    """Makes the method take every rank of the layer `name`."""
    variant = run.variant
    if isinstance(variant, AdaLoRA):
        scores = variant.scores
        variant.scores = lambda: {n: s - 100 * (n == name) for n, s in scores().items()}  # type: ignore[method-assign]
    elif isinstance(variant, SoRA):
        variant.adapters[name].gate.data *= 1e-6
    elif isinstance(variant, SparseLoRA):
        for part in ("A", "B"):
            variant._scores[f"{name}.{part}"] -= 100


EMPTIED = [
    (AdaLoRA, {"rank": 2, "target_rank": 1, **STEPPED}),
    (AdaLoRA, {"rank": 2, "target_rank": 1, "hard": True, **STEPPED}),
    (AdaLoRA, {"rank": 2, "target_rank": 1, "profile": "released", **STEPPED}),
    (AdaLoRA, {"rank": 2, "target_rank": 1, "budget": 90, **STEPPED}),
    (SoRA, {"rank": 2, "threshold": 0.05, "l1": 0.1}),
    (SoRA, {"rank": 2, "threshold": 0.05, "l1": 0.1, "profile": "released"}),
    (SoRA, {"rank": 2, "budget": 100, "final_steps": 4}),
    (SparseLoRA, {"rank": 4, "score": "random", "scope": "global", "schedule": "one_shot", "initial_steps": 2}),
]


@pytest.mark.parametrize(("cls", "params"), EMPTIED, ids=str)
def test_a_layer_without_ranks_trains_saves_loads_resumes_and_merges(
    cls: type[AdapterVariant], params: dict[str, Any]
) -> None:
    name = "layer.0.fc1"

    def starved() -> Trained:
        run = attach(cls, params)
        starve(run, name)
        return run

    run = train(starved())
    adapter = run.variant.adapters[name]
    assert adapter.rank == 0 and not adapter.delta().any() and adapter.is_empty
    assert adapter.closed_form() == sum(p.numel() for p in adapter.parameters() if p.requires_grad) == 0
    assert sum(run.variant.ranks().values()) > 0, "others are there"
    output = run.output()

    again = attach(cls, params)
    saved = through_disk(training_state.weights(run.model, run.variant, run.optimizer))
    training_state.restore_weights(again.model, again.variant, saved)
    assert torch.equal(again.output(), output) and again.variant.ranks() == run.variant.ranks()

    resumed = starved()
    for stop in (4, 9):
        snapshot = through_disk(train(resumed, stop).snapshot())
        resumed = starved().restore(snapshot)
    assert torch.equal(train(resumed).output(), output)

    x, y = data()
    F.mse_loss(run.model.train()(x), y).backward()  # what is left can be trained on
    with run.variant.disabled():
        assert torch.isfinite(run.output()).all()
    for one in run.variant.adapters.values():
        one.merge()
    torch.testing.assert_close(run.output(), output, rtol=1e-5, atol=1e-6)


# -- a schedule longer than the run -------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "params", "message"),
    [
        (AdaLoRA, {"initial_steps": 8, "final_steps": 4}, "schedule: 8 initial and 4 final steps do not fit into 12"),
        (AdaLoRA, {"final_steps": 12}, "schedule: 0 initial and 12 final steps do not fit into 12"),
        (IncreLoRA, {"initial_steps": 11}, "interval: 1 leaves no round of growth in 12 steps"),
        (IncreLoRA, {"interval": 12}, "interval: 12 leaves no round of growth in 12 steps"),
        (SoRA, {"budget": 100, "initial_steps": 6, "final_steps": 5}, "schedule: 6 initial and 5 final steps do not"),
        (
            SoRA,
            {"schedule": "linear", "max_threshold": 0.1, "stages": 3, "stage_steps": 6},
            "stage_steps: 6, the last of 3 stages would begin after step 12",
        ),
        (SparseLoRA, {"rank": 4, "initial_steps": 6, "final_steps": 6}, "schedule: 6 initial and 6 final steps do not"),
        (SHiRA, {"rank": 2, "mask": "snip", "collect_steps": 12}, "collect_steps: 12, allowed: fewer than the run's"),
        (
            Peft,
            {"method": "adalora", "options": {"tinit": 8, "tfinal": 8}},
            "options: PEFT's adalora refuses: The supplied schedule values don't allow for a budgeting phase",
        ),
    ],
    ids=str,
)
def test_a_schedule_longer_than_the_run_is_refused_before_a_weight_is_there(
    cls: type[Variant], params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        prepared(cls, params)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


# -- dropout with PiSSA -------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["pissa", "milora", "olora"])
def test_dropout_is_refused_where_training_starts_from_the_weight(init: str) -> None:
    with pytest.raises(ValueError) as caught:
        LoRA(init=init, dropout=0.1)
    assert str(caught.value) == f"dropout: 0.1 with init: {init}, allowed: 0; dropout would act on B A but not on B₀ A₀"


# -- targets on a tied or shared weight ---------------------------------------------------------

BERT = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
GPT = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=8)
T5 = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1)
TIED = [
    (BertForMaskedLM, BERT, ["word_embeddings"], "bert.embeddings.word_embeddings", "cls.predictions.decoder"),
    (GPT2LMHeadModel, GPT, ["lm_head"], "lm_head", "transformer.wte"),
    (T5ForSequenceClassification, T5, ["shared"], "transformer.shared", "transformer.encoder.embed_tokens"),
]
WITH_TARGETS = [cls for cls in all_variants() if issubclass(cls, AdapterVariant) or cls is Peft]


@pytest.mark.parametrize(("model_class", "config", "targets", "name", "other"), TIED, ids=lambda part: str(part)[:40])
@pytest.mark.parametrize("cls", WITH_TARGETS, ids=lambda cls: cls.__name__)
def test_a_tied_weight_of_a_real_model_is_refused(
    cls: type[Variant], model_class: Any, config: Any, targets: Any, name: str, other: str
) -> None:
    for device in ("meta", "cpu"):
        with torch.device(device):
            model = model_class(config)
        variant: Any = cls(**{**cls.test_params()[0], "targets": targets})
        for call in (variant.check, variant.attach):
            with pytest.raises(ValueError) as caught:
                call(model)
            assert str(caught.value) == f"targets: {name} shares its weight with {other}; exclude it"


def test_all_linear_layers_are_those_of_the_backbone_and_not_the_tied_output_layer() -> None:
    variant = LoRA(rank=1)
    variant.attach(GPT2LMHeadModel(GPT))
    names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert list(variant.ranks()) == [f"transformer.h.0.{name}" for name in names]


def test_a_weight_that_two_layers_share_is_refused_by_every_method_with_adapters() -> None:
    model = Toy()
    model.layer[1]["fc1"].weight = model.layer[0]["fc1"].weight
    for cls in all_variants():
        if issubclass(cls, AdapterVariant):
            with pytest.raises(
                ValueError, match=r"targets: layer.0.fc1 shares its weight with layer.1.fc1; exclude it"
            ):
                cls(**cls.test_params()[0]).check(model, HEAD)
