"""What adaptive methods are known to fall into, in the trainer's loop and through its configs.

The methods by themselves: tests/variants/test_traps.py. Cut off in the middle of the allocation, evaluated
between two allocations, accumulated, checkpointed: tests/trainer/loop/test_every_method.py.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch

from tests.classifiers import pristine
from tests.conftest import folder_of
from trainer.errors import ConfigError
from trainer.instantiate import make
from trainer.model import backbone as models
from variants.adalora import AdaLoRA
from variants.core import state_files
from variants.core.adapters.adapter import Adapter
from variants.core.training_state import restore_weights
from variants.core.variant import Variant
from variants.increlora import IncreLoRA
from variants.shira import SHiRA
from variants.sora import SoRA
from variants.sparse import SparseLoRA
from variants.testing.case import finite

pytestmark = pytest.mark.slow

# -- an importance average poisoned by one gradient that is not finite ------------------------------


@dataclass(kw_only=True)
class Poisoned(Variant):
    """Has a loss that is not a number at the steps in `bad`."""

    bad: list[int] = field(default_factory=list)

    def on_step_begin(self, step):
        self.index = step.index
        super().on_step_begin(step)

    def penalty(self):
        penalty = super().penalty()
        weight = next(p for adapter in self.adapters.values() for p in adapter.parameters() if p.requires_grad)
        poison = weight.sum() * (math.nan if self.index in self.bad else 0.0)
        return poison if penalty is None else penalty + poison


@dataclass(kw_only=True)
class PoisonedAdaLoRA(Poisoned, AdaLoRA):
    """AdaLoRA so disturbed."""


@dataclass(kw_only=True)
class PoisonedIncreLoRA(Poisoned, IncreLoRA):
    """IncreLoRA so disturbed."""


@dataclass(kw_only=True)
class PoisonedSoRA(Poisoned, SoRA):
    """SoRA so disturbed."""


@dataclass(kw_only=True)
class PoisonedSHiRA(Poisoned, SHiRA):
    """SHiRA so disturbed."""


@dataclass(kw_only=True)
class PoisonedSparse(Poisoned, SparseLoRA):
    """Sparse-masked LoRA so disturbed."""


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (PoisonedAdaLoRA, ["adalora", "variant.rank=4", "variant.target_rank=2", "variant.final_steps=3"]),
        (PoisonedIncreLoRA, ["increlora", "variant.target_rank=2", "variant.top=6"]),
        (PoisonedSoRA, ["sora", "variant.rank=4", "variant.budget=900", "variant.final_steps=3"]),
        (PoisonedSHiRA, ["shira", "variant.rank=2", "variant.mask=gradient", "variant.collect_steps=6"]),
        (PoisonedSparse, ["sparse", "variant.rank=4", "variant.score=sensitivity", "variant.initial_steps=3"]),
        (PoisonedSparse, ["sparse", "variant.rank=4", "variant.schedule=rigl", "variant.score=gradient"]),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
@pytest.mark.parametrize("clipped", ["optim.max_grad_norm=1", "optim.max_grad_norm=0"])
def test_gradients_that_are_not_finite_enter_no_average_and_the_budget_is_met(
    carry_out, tmp_path, cls, settings, clipped
):
    method = [f"variant={settings[0]}", f"variant._target_={__name__}.{cls.__name__}", *settings[1:], clipped]
    run = [*method, "train.max_steps=12", "train.checkpoint=last"]
    disturbed, plain = carry_out(*run, "+variant.bad=[2,3,6,9]"), carry_out(*run)
    assert (disturbed.steps.skipped, plain.steps.skipped) == (4, 0)
    assert finite(state_files.load(folder_of(disturbed, tmp_path) / "adapter" / "state"))
    # Ranks are met exactly, parameters and entries to less than a rank of one layer.
    same_ranks = disturbed.rank.end == plain.rank.end
    one_rank = abs(disturbed.params.effective - plain.params.effective) < 32 + 16 + 1
    assert same_ranks or one_rank


# -- init rank = target rank, a layer without ranks -------------------------------------------------


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_a_run_with_nothing_to_prune_ends_with_what_it_began(carry_out, profile):
    settings = ["variant=adalora", "variant.rank=4", "variant.target_rank=4", f"variant.profile={profile}"]
    record = carry_out(*settings, "variant.final_steps=3")
    assert record.rank.start == record.rank.end == 12 * 4
    assert record.params.effective == record.params.adapter_start


def test_pefts_own_is_refused_there_before_a_weight_is_loaded(carry_out, no_weights):
    options = ["variant.options.tinit=2", "variant.options.tfinal=3", "variant.options.target_r=12"]
    with pytest.raises(ConfigError) as caught:
        carry_out("variant=peft_adalora", *options)
    line = "variant.options.target_r: 12, allowed: below init_r, 12; PEFT would stop in mid-run"
    assert str(caught.value) == line


@pytest.mark.parametrize(
    "settings",
    [
        ["adalora", "variant.rank=2", "variant.target_rank=1", "variant.final_steps=3", "variant.interval=2"],
        ["adalora", "variant.rank=2", "variant.target_rank=1", "variant.final_steps=3", "variant.hard=true"],
        ["sora", "variant.rank=2", "variant.threshold=0.05"],
        ["sora", "variant.rank=2", "variant.budget=200", "variant.final_steps=3"],
    ],
    ids=" ".join,
)
def test_a_run_that_leaves_layers_without_ranks_is_saved_loaded_and_merged(
    carry_out, configured, tiny_overrides, tmp_path, settings
):
    overrides = [f"variant={settings[0]}", *settings[1:], "train.max_steps=24", "optim.lr=3e-2"]
    record = carry_out(*overrides)
    folder = folder_of(record, tmp_path)
    ranks = json.loads((folder / "ranks.jsonl").read_text().splitlines()[-1])["ranks"]
    assert 0 in ranks.values() and any(ranks.values()), "choose settings under which some layer loses all of them"
    assert record.rank.end == sum(ranks.values())

    config = configured([*tiny_overrides, *overrides])
    variant, model = attached(config)
    restore_weights(model, variant, state_files.load(folder / "adapter" / "state"))
    assert variant.ranks() == ranks and variant.effective_parameters() == record.params.effective
    inputs = {"input_ids": torch.tensor([[2, 5, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        for adapter in [module for module in model.modules() if isinstance(module, Adapter)]:
            adapter.merge()
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-5)


def attached(config: Any) -> tuple[Any, torch.nn.Module]:
    """The variant and the model of a config, before any step."""
    from trainer.data.sources import fetch_model
    from trainer.sweeps.plan import model_sources

    source = fetch_model(model_sources(config), config.model.files)
    loaded = pristine(source, 2)
    variant = make("variant", config.variant)
    variant.plan(24)
    model = models.fresh(loaded, config.seed, config.model.dtype)
    return variant, variant.attach(model, loaded.head)


# -- a schedule longer than the run ---------------------------------------------------------------


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test where a weight is loaded."""

    def loaded(*arguments):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(models, "load_backbone", loaded)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            ["adalora", "variant.initial_steps=8", "variant.final_steps=4"],
            "variant.schedule: 8 initial and 4 final steps do not fit into 12; initial + final must be smaller",
        ),
        (
            ["increlora", "variant.interval=5"],
            "variant.interval: 5 leaves 2 rounds in 12 steps, in which top × add gives 16 ranks; 84 are missing to",
        ),
        (
            ["sora", "variant.schedule=linear", "variant.max_threshold=1", "variant.stages=4", "variant.stage_steps=4"],
            "variant.stage_steps: 4, the last of 4 stages would begin after step 12, allowed: one that begins before",
        ),
        (
            ["sora", "variant.budget=900", "variant.initial_steps=8", "variant.final_steps=4"],
            "variant.schedule: 8 initial and 4 final steps do not fit into 11; initial + final must be smaller",
        ),
        (
            ["sparse", "variant.initial_steps=8", "variant.final_steps=4"],
            "variant.schedule: 8 initial and 4 final steps do not fit into 12; initial + final must be smaller",
        ),
        (
            ["shira", "variant.mask=gradient", "variant.collect_steps=12"],
            "variant.collect_steps: 12, allowed: fewer than the run's 12 steps",
        ),
        (
            ["peft_adalora", "variant.options.tinit=8", "variant.options.tfinal=4"],
            "variant.options: PEFT's adalora refuses: The supplied schedule values don't allow for a budgeting phase.",
        ),
    ],
    ids=lambda part: part[0] if isinstance(part, list) else "",
)
def test_a_schedule_longer_than_the_run_is_one_line_before_a_weight_is_loaded(carry_out, no_weights, settings, line):
    with pytest.raises(ConfigError) as caught:
        carry_out(f"variant={settings[0]}", *settings[1:], "train.max_steps=12")
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


# -- growth when the learning-rate schedule is half done -------------------------------------------


@dataclass(kw_only=True)
class Watched(IncreLoRA):
    """IncreLoRA that notes with which rates its first layer's components were moved."""

    attached: ClassVar[list[Any]]  # of a test

    def attach(self, model, head=()):
        self.rates: dict[str, dict[int, float]] = {}
        self.attached.append(self)
        return super().attach(model, head)

    def on_update(self, step):
        adapter = next(iter(self.adapters.values()))
        groups = {id(p): group["lr"] for group in step.optimizer.param_groups for p in group["params"]}
        for part in ("A", "e"):
            for number, parameter in enumerate(getattr(adapter, part)):
                if id(parameter) in groups:
                    self.rates.setdefault(f"{part}{number}", {})[step.index] = groups[id(parameter)]


CURVES = {
    "linear": lambda made: 1 - made / 12,
    "cosine": lambda made: (1 + math.cos(math.pi * made / 12)) / 2,
}


@pytest.mark.parametrize("schedule", CURVES)
@pytest.mark.parametrize("warmup", [None, 3])
def test_what_grows_when_the_schedule_is_half_done_learns_at_the_rate_that_is_documented(
    carry_out, monkeypatch, schedule, warmup
):
    monkeypatch.setattr(Watched, "attached", [], raising=False)
    method = ["variant=increlora", f"variant._target_={__name__}.Watched", "variant.target_rank=2", "variant.top=12"]
    carry_out(
        *method,
        *("variant.initial_steps=5", f"variant.warmup={json.dumps(warmup)}", f"optim.schedule={schedule}"),
        *("optim.warmup=0", "optim.lr=0.01", "train.max_steps=12", "train.checkpoint=last"),
    )
    rates = Watched.attached[-1].rates
    run = {index: 0.01 * CURVES[schedule](index - 1) for index in range(1, 13)}
    assert rates["A0"] == rates["e0"] == pytest.approx(run)
    born = 7  # the first round after initial_steps, counted from 0, is t = 6
    grown = rates["e1"]  # held fixed until then
    assert sorted(grown) == list(range(born, 13))
    if warmup is None:
        assert grown == pytest.approx({index: run[index] for index in grown})
        return
    # Its own curve: up over three steps from the one after its birth, then straight down to zero at the end.
    own = [0, 1 / 3, 2 / 3, 1, 1 / 2]
    # At its birth it has no gradient yet, and the whole rate.
    assert grown == pytest.approx(dict(zip(range(born, 13), [0.01, *(0.01 * share for share in own)], strict=True)))


# -- what a method does not have, or can't do, through the config ----------------------------------


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            ["lora", "variant.init=pissa", "variant.dropout=0.1"],
            "variant.dropout: 0.1 with init: pissa, allowed: 0; dropout would",
        ),
        (["adalora", "+variant.scaling=rslora"], "variant.scaling: 'rslora', AdaLoRA has no such field, allowed: name"),
        (["sora", "+variant.scaling=rslora"], "variant.scaling: 'rslora', SoRA has no such field, allowed: name"),
        (["adalora", "+variant.init=pissa"], "variant.init: 'pissa', AdaLoRA has no such field, allowed: name, "),
        (["adalora", "+variant.rank_pattern={query:4}"], "variant.rank_pattern: {'query': 4}, AdaLoRA has no such"),
        (["increlora", "+variant.alpha_pattern={query:4}"], "variant.alpha_pattern: {'query': 4}, IncreLoRA has no"),
        (["svdiff", "+variant.dropout=0.1"], "variant.dropout: 0.1, SVDiff has no such field, allowed: name, targets"),
        (["bitfit", "+variant.targets=[query]"], "variant.targets: ['query'], BitFit has no such field, allowed: name"),
        (["full", "+variant.rank=4"], "variant.rank: 4, Full has no such field, allowed: name"),
        (["head", "+variant.targets=[query]"], "variant.targets: ['query'], Head has no such field, allowed: name"),
        (
            ["peft", "variant.method=prompt_tuning", "variant.targets=[query]"],
            "variant.targets: ['query'], allowed with method: prompt_tuning, which has none: null",
        ),
        (
            ["peft_adalora", "+variant.options.use_rslora=true"],
            "variant.options.use_rslora: True, allowed: none; adalora ignores it",
        ),
        (["lora", "+variant.rank_pattern={qeury:4}"], "variant.rank_pattern: no adapted layer ends in 'qeury'"),
        (["lora", "variant.targets=[qeury]"], "variant.targets: no layer ends in 'qeury'; linear layers: query, key, "),
        (
            ["lora", "variant.targets=[word_embeddings]", "variant.dropout=0.1"],
            "variant.dropout: 0.1 on the Embedding bert.embeddings.word_embeddings, allowed: 0; its input is an index",
        ),
        (
            ["lora", "variant.rank=4", "variant.budget=3000"],
            "variant.rank: 4 with budget: 3000, which decides it; allowed: 8",
        ),
        (["sparse", "variant.seed=3"], "variant.seed: 3 with score: magnitude, allowed: 0; it has no effect there"),
        (["svft", "variant.seed=3"], "variant.seed: 3 with decomposition: svd, allowed: 0; it has no effect there"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_an_option_that_would_be_ignored_is_one_line_that_names_it(carry_out, no_weights, settings, line):
    with pytest.raises(ConfigError) as caught:
        carry_out(f"variant={settings[0]}", *settings[1:])
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_a_tied_weight_is_one_line_before_a_weight_is_loaded(carry_out, no_weights, monkeypatch):
    skeleton = models.skeleton

    def tied(*arguments: Any) -> torch.nn.Module:
        model = skeleton(*arguments)
        layers = model.bert.encoder.layer
        layers[1].attention.self.query.weight = layers[0].attention.self.query.weight
        return model

    monkeypatch.setattr(models, "skeleton", tied)
    with pytest.raises(ConfigError) as caught:
        carry_out("variant.targets=[query]")
    names = [f"bert.encoder.layer.{block}.attention.self.query" for block in range(2)]
    assert str(caught.value) == f"variant.targets: {names[0]} shares its weight with {names[1]}; exclude it"


# -- what is put in front of a text ----------------------------------------------------------------

PREFIX = ["variant=peft", "variant.method=prefix_tuning", "+variant.options.num_virtual_tokens=4"]


def test_virtual_tokens_take_positions_of_the_model(carry_out):
    texts = ["data.max_length=24", "train.max_steps=2"]  # 24 positions, and no text as long
    assert carry_out(*texts, *PREFIX).params.adapter_start == 4 * 2 * 2 * 16
    with pytest.raises(ConfigError, match=r"^variant.options.num_virtual_tokens: 24, allowed: below 24$"):
        carry_out(*texts, *PREFIX, "variant.options.num_virtual_tokens=24")


def test_a_text_is_cut_where_the_virtual_tokens_leave_no_position(carry_out, tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "".join(f"{'fine ' * 30},good\n{'dull ' * 30},bad\n" for _ in range(8)))
    files = [f"task.source.train_path={path}", f"task.source.validation_path={path}", "train.max_steps=2"]
    assert carry_out(*files, *PREFIX).data.truncated == 32


def test_keys_that_a_recomputing_model_would_drop_are_refused(carry_out, no_weights):
    with pytest.raises(ConfigError) as caught:
        carry_out(*PREFIX, "train.gradient_checkpointing=true")
    line = "train.gradient_checkpointing: true with variant.method: prefix_tuning, allowed: false; the model would drop"
    assert str(caught.value).startswith(line)
