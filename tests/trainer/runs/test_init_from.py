"""A run that starts from a finished one's adapter: what is taken up, what names it, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import folder_of, write_csv
from tests.trainer.left_behind import outcome
from trainer.errors import ConfigError
from trainer.loop.checkpoints import Checkpoints
from trainer.runs import assemble
from trainer.runs.dry_run import predict
from trainer.runs.finished import opened
from trainer.sweeps.plan import plan
from variants.core.target_modules import inside

pytestmark = pytest.mark.slow

ADALORA = ["variant=adalora", "variant.rank=4", "variant.target_rank=1", "variant.interval=2"]
PEFT_ADALORA = ["variant=peft_adalora", *(f"variant.options.{name}=2" for name in ("tinit", "tfinal", "target_r"))]


@pytest.fixture
def other_task(tmp_path):
    """Overrides of a task with other texts and other classes."""
    paths = []
    for name, rows, seed in (("train", 48, 3), ("validation", 24, 4)):
        path = write_csv(tmp_path / f"other-{name}.csv", rows, seed)
        path.write_text(path.read_text().replace(",good", ",yes").replace(",bad", ",no"))
        paths.append(f"task.source.{name}_path={path}")
    return [*paths, "task.name=other"]


@pytest.fixture
def source(finished_run):
    """The folder of a finished run to start from."""
    return finished_run


def trained(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, int]]:
    """Of a finished run: ΔW of its layers, all parameters outside the head, and the ranks."""
    with opened(folder) as run:
        return what_it_is(run.variant, run.model, run.context.head)


def what_it_is(variant, model, head):
    deltas = {name: adapter.delta().detach().clone() for name, adapter in variant.adapters.items()}
    rest = {n: p.detach().clone() for n, p in model.named_parameters() if not inside(n, head)}
    return deltas, rest, variant.ranks()


METHODS = [
    ["variant=lora", "variant.init=pissa"],
    ["variant=lora_fa"],
    ["variant=full", "optim.lr=1e-3"],
    ["variant=bitfit"],
    ADALORA,
    [*ADALORA, "variant.profile=released"],
    ["variant=elalora", "variant.interval=2", "variant.profile=released"],
    ["variant=increlora", "variant.target_rank=2", "variant.top=3"],
    ["variant=sora", "variant.threshold=0.05"],
    ["variant=sora", "variant.rank=4", "variant.budget=1000"],
    ["variant=dylora"],
    ["variant=rosa", "variant.rank=4", "variant.warmup_steps=4", "variant.restart=true"],
    ["variant=sparse", "variant.rank=4"],
    ["variant=sparse", "variant.rank=4", "variant.schedule=rigl", "variant.interval=2", "variant.score=sensitivity"],
    ["variant=spiel"],
    ["variant=peft_lora"],
]


@pytest.mark.parametrize("method", METHODS, ids=" ".join)
def test_it_starts_with_what_the_other_ended_with(source, carry_out, configured, tiny_overrides, other_task, method):
    folder = source(*method)
    deltas, rest, ranks = trained(folder)
    start = [*other_task, f"init_from={folder}", *method, "optim.lr=1e-3"]
    planned = plan(configured([*tiny_overrides, *start]))
    with assemble.apart(planned.config):
        parts = assemble.check(planned.config)
        model = assemble.load(parts).eval()
        found_deltas, found_rest, found_ranks = what_it_is(parts.variant, model, parts.head)
    assert found_ranks == ranks
    for found, wanted in ((found_deltas, deltas), (found_rest, rest)):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    record = carry_out(*start, "train.max_steps=6")
    assert record.status == "done" and record.rank.start == (sum(ranks.values()) if ranks else None)


def test_a_finished_adalora_is_within_its_budget_from_the_first_step_on(source, carry_out, other_task):
    folder = source(*ADALORA)
    record = carry_out(*other_task, f"init_from={folder}", *ADALORA, "train.eval_every=2", "optim.lr=1e-12")
    assert (record.rank.start, record.rank.end) == (12, 12)
    assert record.metric.step == 2  # the first of equally good ones is a candidate
    logged = [json.loads(line) for line in (folder.parent / record.run_id / "ranks.jsonl").read_text().splitlines()]
    assert {sum(line["ranks"].values()) for line in logged} == {12}


def test_spiels_ages_are_those_of_the_new_optimizer(source, configured, tiny_overrides, other_task):
    folder = source("variant=spiel")
    with opened(folder) as run:
        assert any(adapter.ages.any() for adapter in run.variant.adapters.values())
    config = plan(configured([*tiny_overrides, *other_task, "variant=spiel", f"init_from={folder}"])).config
    with assemble.apart(config):
        parts = assemble.check(config)
        assemble.load(parts)
    assert not any(adapter.ages.any() for adapter in parts.variant.adapters.values())


def test_the_head_is_drawn_anew_for_other_classes_and_taken_up_for_the_same(
    source, configured, tiny_overrides, other_task, caplog
):
    folder = source()
    with opened(folder) as run:
        before = run.model.classifier.weight.detach().clone()

    def head(*overrides: str) -> torch.Tensor:
        config = plan(configured([*tiny_overrides, *overrides])).config
        with assemble.apart(config):
            return assemble.load(assemble.check(config)).classifier.weight.detach().clone()

    with caplog.at_level(logging.INFO):
        assert torch.equal(head(*other_task, f"init_from={folder}"), head(*other_task))
    assert "with a new head: the classes were bad, good and are no, yes" in caplog.text
    with caplog.at_level(logging.INFO):
        assert torch.equal(head("seed=1", f"init_from={folder}"), before)
    assert f"starts from lora on tiny, seed 0 ({folder.name}), with its head: the classes are the same" in caplog.text


def test_it_is_named_by_what_it_starts_from_and_never_by_where_that_lies(
    source, configured, tiny_overrides, other_task, tmp_path
):
    folder, another = source(), source("seed=1")

    def run_id(place: Path | str) -> str:
        return plan(configured([*tiny_overrides, *other_task, f"init_from={place}"])).run_id

    moved = shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    assert run_id(folder) == run_id(moved) != run_id(another)
    assert len({run_id(folder), run_id(another), run_id("null")}) == 3
    leaves = plan(configured([*tiny_overrides, *other_task])).identity.leaves
    assert not any("init_from" in name for name in leaves)


def test_the_record_names_the_origin_and_the_run_is_done_then(
    source, carry_out, configured, tiny_overrides, other_task, tmp_path
):
    folder = source()
    record = carry_out(*other_task, f"init_from={folder}")
    with opened(folder) as run:
        files = run.record.files
    wanted = {"run_id": folder.name, "sha256.weights": files.weights, "sha256.outline": files.outline}
    assert {n: record.config[f"init_from.{n}"] for n in wanted} == wanted
    assert {n: record.identity[f"init_from.{n}"] for n in wanted} == wanted
    assert plan(configured([*tiny_overrides, *other_task, f"init_from={folder}"])).done
    shutil.rmtree(folder)
    with opened(folder_of(record, tmp_path)) as run:  # which needs the other no more
        assert run.evaluate().metrics == record.metrics


def test_an_interrupted_one_ends_with_the_same_bits(source, carry_out, other_task, monkeypatch, tmp_path):
    folder = source(*ADALORA)
    start = [*other_task, *ADALORA, f"init_from={folder}", "machine.save_every=2"]
    straight = outcome(carry_out(*start, "study=straight"), tmp_path)
    write = Checkpoints.write

    def write_and_die(self, step, state):
        write(self, step, state)
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "write", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            carry_out(*start, "study=cut")
    assert outcome(carry_out(*start, "study=cut"), tmp_path) == straight


def test_a_dry_run_counts_the_ranks_that_are_left(source, configured, tiny_overrides, other_task):
    folder = source(*ADALORA)
    config = [*tiny_overrides, *other_task, *ADALORA]
    whole = predict(plan(configured(config)))
    pruned = predict(plan(configured([*config, f"init_from={folder}"])))
    with opened(folder) as run:
        assert pruned.adapter == run.variant.effective_parameters() < whole.adapter


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["variant.rank=2"], "variant.rank is 8 in that run and 2 in this one; allowed: the same method, settings"),
        (["variant=dora"], "variant._target_ is 'LoRA' in that run and 'DoRA' in this one"),
        (["model.dtype=float64"], "model.dtype is 'float32' in that run and 'float64' in this one"),
    ],
    ids=str,
)
def test_another_method_setting_or_backbone_is_refused_before_anything(
    source, configured, tiny_overrides, overrides, message
):
    folder = source()
    with pytest.raises(ConfigError) as refused:
        plan(configured([*tiny_overrides, f"init_from={folder}", *overrides]))
    assert str(refused.value).startswith(f"init_from: {folder}: ") and message in str(refused.value)
    free = ["variant.name=mine", "model.name=theirs", "model.dropout=0.1", "optim.lr=1e-3", "seed=4"]
    plan(configured([*tiny_overrides, f"init_from={folder}", *free]))


def test_what_is_no_finished_run_is_refused(source, configured, tiny_overrides, tmp_path):
    with pytest.raises(ConfigError, match=r"init_from: .*nowhere: not a finished run; record\.json is missing"):
        plan(configured([*tiny_overrides, f"init_from={tmp_path / 'nowhere'}"]))
    folder = source()
    path = folder / "adapter" / "state.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(
        ConfigError, match=r"init_from: .*not what this run trained: its hash is not that of the record"
    ):
        plan(configured([*tiny_overrides, f"init_from={folder}"]))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (["variant=dylora", "variant.eval_rank=2"], "dylora can't start from it: eval_rank: 2 has truncated "),
        (PEFT_ADALORA, "peft-adalora can't start from it: method: adalora would allocate again"),
    ],
    ids=["dylora", "peft_adalora"],
)
def test_a_method_that_can_not_go_on_from_what_it_left_says_so(source, carry_out, other_task, method, message):
    folder = source(*method)
    with pytest.raises(ConfigError, match=message):
        carry_out(*other_task, f"init_from={folder}", *method)
