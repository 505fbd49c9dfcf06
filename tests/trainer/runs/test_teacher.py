"""A run that learns from a teacher's outputs beside the labels: its loss, what names it, what it costs, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.composing import composed
from tests.conftest import folder_of, write_csv
from tests.trainer.objectives import language
from tests.trainer.objectives.conftest import llama, tables, trained  # noqa: F401
from tests.trainer.objectives.conftest import overrides as of_language_model
from trainer.errors import ConfigError
from trainer.loop.batches import Batch
from trainer.runs import assemble, dry_run, teaching
from trainer.runs.finished import opened
from trainer.sweeps.plan import plan

QUICK = ["train.max_steps=4", "train.eval_every=4"]


@pytest.fixture
def full(finished_run):
    """Overrides that name a teacher: a full fine-tuning on the tiny task."""
    return f"train.teacher={finished_run('variant=full', 'optim.lr=1e-3', 'study=teachers')}"


def state(record, tmp_path):
    return load_file(folder_of(record, tmp_path) / "adapter/state.safetensors")


def by_hand(logits, taught, labels, temperature, weight):
    """Hinton's loss of rows that all count, from probabilities."""
    student, teacher = ((one / temperature).softmax(-1) for one in (logits, taught))
    distance = (teacher * (teacher / student).log()).sum()
    return (1 - weight) * F.cross_entropy(logits, labels, reduction="sum") + weight * temperature**2 * distance


def lesson_and_parts(everything):
    """The loop of a run on its first batch, and of student and teacher the networks."""
    config = plan(composed(everything)).config
    context = assemble.check(config)
    loop = teaching.loop(context, assemble.load(context), Path(config.runs_dir), torch.device("cpu"))
    loop.model.eval()
    (batch, *_) = next(loop.batches.steps(0))
    return loop, loop.task_loss._teacher, batch


def test_the_loss_of_classes_is_hintons(full, tiny_overrides, tmp_path):
    loop, teacher, batch = lesson_and_parts(
        [*tiny_overrides, full, "train.temperature=3", "train.distillation_weight=0.7"]
    )
    found = loop.forward(batch)
    logits, taught = (net(**batch.inputs).logits for net in (loop.network, teacher))
    assert float(found.sum.detach()) == pytest.approx(float(by_hand(logits, taught, batch.labels, 3, 0.7)), rel=1e-5)
    assert found.weight == len(batch.labels)
    assert not teacher.model.training and not any(p.requires_grad for p in teacher.model.parameters())


@pytest.mark.parametrize("form", ["response", "text"])
def test_the_loss_of_tokens_is_of_those_that_count_alone(form, trained, tables, llama, tmp_path):  # noqa: F811
    teacher = folder_of(trained(form, "variant=full", "optim.lr=1e-3", "study=teachers"), tmp_path)
    everything = [*of_language_model(llama, tmp_path), *tables[form], f"train.teacher={teacher}"]
    loop, network, batch = lesson_and_parts(everything)
    expected, count = 0.0, 0
    for row in range(len(batch.labels)):
        inputs = {"input_ids": batch.inputs["input_ids"][row : row + 1]}
        name = "position_ids" if form == "text" else "attention_mask"
        inputs[name] = batch.inputs[name][row : row + 1]
        logits, taught = (net(**inputs, use_cache=False).logits[0, :-1] for net in (loop.network, network))
        labels = batch.labels[row, 1:]
        kept = labels != -100
        expected += float(by_hand(logits[kept], taught[kept], labels[kept], 2, 0.5))
        count += int(kept.sum())
    found = loop.forward(batch)
    assert float(found.sum.detach()) == pytest.approx(expected, rel=1e-4) and found.weight == count


def test_a_batch_without_a_token_that_counts_brings_nothing(trained, tables, llama, tmp_path):  # noqa: F811
    teacher = folder_of(trained("response", "study=teachers", *QUICK), tmp_path)
    loop, _, batch = lesson_and_parts(
        [*of_language_model(llama, tmp_path), *tables["response"], f"train.teacher={teacher}"]
    )
    loss = loop.forward(Batch(batch.inputs, torch.full_like(batch.labels, -100), 0))
    loss.mean.backward()
    assert float(loss.sum) == 0 and loss.weight == 0


def test_a_low_rank_student_of_a_full_teacher(full, carry_out, tmp_path):
    """It learns, its record says what the teacher cost, and it can be opened when the teacher is no more."""
    record = carry_out(full, "train.distillation_weight=1", "train.accumulate=2", "optim.lr=3e-2", "train.epochs=4")
    folder = folder_of(record, tmp_path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/task_loss"] for line in lines if "train/task_loss" in line]
    assert losses[-1] < losses[0]
    assert record.steps.teacher == 4 * 6  # batches, of 8 of 48 rows
    assert 0 < record.memory.teacher < record.memory.weights < 3 * record.memory.teacher
    teacher = full.partition("=")[2]
    assert record.config["teacher.run_id"] == teacher[-12:] and "train.teacher" not in record.config
    assert teacher not in json.dumps(record.identity)
    shutil.rmtree(teacher)
    with opened(folder) as run:
        assert run.evaluate().metrics == record.metrics


def test_its_content_names_the_run_and_not_its_folder(full, tiny_overrides, configured, tmp_path):
    teacher = full.partition("=")[2]
    moved = shutil.copytree(teacher, tmp_path / "elsewhere" / teacher[-12:])
    more = [[], [full], [f"train.teacher={moved}"], [full, "train.temperature=4"]]
    names = [plan(configured([*tiny_overrides, *one])).run_id for one in more]
    assert names[1] == names[2] and len({names[0], names[1], names[3]}) == 3


def test_the_folder_of_a_model_with_a_trained_head_teaches(full, carry_out, tmp_path):
    from weights import cli

    run = full.partition("=")[2]
    assert cli.main(["export", run, "--to", "merged"]) == 0
    folder = f"{run}/export/merged"
    (one, two) = (carry_out(f"train.teacher={path}", *QUICK) for path in (run, folder))
    assert one.run_id != two.run_id and one.metrics == pytest.approx(two.metrics)
    for name, tensor in state(one, tmp_path).items():
        torch.testing.assert_close(tensor, state(two, tmp_path)[name], rtol=1e-4, atol=1e-6)


def test_interrupted_it_ends_with_the_same_bits(full, carry_out, monkeypatch, tmp_path):
    from trainer.loop.loop import Loop

    settings = [full, "variant.dropout=0.2", "machine.save_every=2", "train.max_steps=6"]
    straight = carry_out(*settings, "study=straight")
    step = Loop.make_step

    def dies(self, index, batches):
        if index == 4:
            raise KeyboardInterrupt
        step(self, index, batches)

    monkeypatch.setattr(Loop, "make_step", dies)
    with pytest.raises(KeyboardInterrupt):
        carry_out(*settings, "study=cut")
    monkeypatch.undo()
    resumed = carry_out(*settings, "study=cut")
    one, two = state(straight, tmp_path), state(resumed, tmp_path)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (resumed.metrics, resumed.steps) == (straight.metrics, straight.steps)


def test_batches_that_are_accumulated_weigh_by_their_tokens(trained, tmp_path):  # noqa: F811
    teacher = folder_of(trained("response", "variant=full", "study=teachers", *QUICK), tmp_path)
    same = [f"train.teacher={teacher}", "train.max_steps=3", "train.group_by_length=false", "variant.dropout=0"]
    whole = trained("response", *same, "train.batch_size=8")
    parts = trained("response", *same, "train.batch_size=2", "train.accumulate=4")
    for name, tensor in state(whole, tmp_path).items():
        torch.testing.assert_close(state(parts, tmp_path)[name], tensor, rtol=1e-4, atol=1e-5)
    assert parts.steps.teacher > whole.steps.teacher >= 3


@pytest.mark.slow
def test_two_processes_weigh_tokens_as_one_does(trained, tables, llama, tmp_path):  # noqa: F811
    from tests.trainer.machine import pair
    from trainer import record as records

    teacher = folder_of(trained("response", "variant=full", "study=teachers", *QUICK), tmp_path)
    settings = [f"train.teacher={teacher}", "variant.dropout=0", "optim.lr=1e-3", "optim.optimizer.eps=1e-4"]
    one = trained("response", *settings, "train.batch_size=8")
    everything = [*of_language_model(llama, tmp_path), *tables["response"], *settings, "study=two"]
    with pair.started(pair.run, composed(everything), tmp_path) as both:
        assert both.ends() == [0, 0], [path.read_text() for path in tmp_path.glob("error-*")]
    (folder,) = (Path(place) for place in records.find(tmp_path / "runs" / "two"))
    two = load_file(folder / "adapter/state.safetensors")
    for name, tensor in state(one, tmp_path).items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    assert records.read(folder).steps.teacher == one.steps.teacher


def test_a_dry_run_counts_the_teachers_memory(full, carry_out, tiny_overrides, configured):
    planned = plan(configured([*tiny_overrides, full, *QUICK, "train.group_by_length=false"]))
    found = dry_run.predict(planned)
    record = carry_out(full, *QUICK, "train.group_by_length=false")
    assert (found.weights, found.teacher) == (record.memory.weights, record.memory.teacher)
    assert found.activations == record.memory.activations
    assert any("of which the teacher" in line for line in found.lines())


@pytest.fixture
def refused(configured, tiny_overrides):
    def line(*overrides: str) -> str:
        config = configured([*tiny_overrides, *overrides])
        with pytest.raises(ConfigError) as caught:
            teaching.check(assemble.check(plan(config).config))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return line


def test_a_teacher_that_is_not_there_is_named_before_anything_begins(tiny_overrides, configured):
    with pytest.raises(ConfigError, match=r"train\.teacher: runs/none: not a finished run; record.json is missing"):
        plan(configured([*tiny_overrides, "train.teacher=runs/none"]))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["train.temperature=2"], "train.temperature: 2.0 without train.teacher, allowed: null"),
        (["train.distillation_weight=0.1"], "train.distillation_weight: 0.1 without train.teacher, allowed: null"),
        (["train.teacher=x", "train.temperature=0"], "train.temperature: 0.0, allowed: a number > 0, or null"),
        (
            ["train.teacher=x", "train.distillation_weight=1.5"],
            "train.distillation_weight: 1.5, allowed: 0 < weight ≤ 1, or null",
        ),
    ],
)
def test_a_wrong_setting_is_one_line(overrides, line, refused):
    assert refused(*overrides) == line


def test_a_teacher_of_other_classes_is_refused(full, refused, tmp_path):
    path = write_csv(tmp_path / "other.csv", 48, 3)
    path.write_text(path.read_text().replace(",good", ",yes").replace(",bad", ",no"))
    paths = [f"task.source.{name}_path={path}" for name in ("train", "validation")]
    assert "its classes are bad, good, those of this task no, yes; allowed: the same, in one order" in refused(
        full, *paths
    )


def test_a_teacher_of_a_regression_is_refused(full, refused, tmp_path):
    path = write_csv(tmp_path / "numbers.csv", 48, 3)
    path.write_text(path.read_text().replace(",good", ",1").replace(",bad", ",0.5"))
    paths = [f"task.source.{name}_path={path}" for name in ("train", "validation")]
    line = refused(full, *paths, "task.source.kind=regression", "task.metrics=[rmse]")
    assert line.endswith("in a regression, allowed: null")


def test_a_model_without_a_trained_head_is_refused(carry_out, tiny_model):
    with pytest.raises(ConfigError, match=r"train\.teacher: .*: the checkpoint has no trained head"):
        carry_out(f"train.teacher={tiny_model}")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"vocab_size": 400}, "it has 400 outputs, the student "),
        ({"max_position_embeddings": 16}, "it takes 16 tokens, rows have up to 32"),
    ],
)
def test_a_language_model_of_other_tokens_is_refused(settings, line, llama, tables, tmp_path):  # noqa: F811
    teacher = language.make(tmp_path / "teacher", template=language.TEMPLATE, **settings)
    everything = [*of_language_model(llama, tmp_path), *tables["response"], f"train.teacher={teacher}"]
    with pytest.raises(ConfigError, match=line):
        teaching.check(assemble.check(plan(composed(everything)).config))


def test_a_teacher_whose_virtual_tokens_leave_no_room_for_the_longest_rows_is_refused(
    carry_out, refused, configured, tiny_overrides, tmp_path
):
    prompt = ["variant=peft", "variant.method=prompt_tuning", "+variant.options.num_virtual_tokens=4"]
    teacher = f"train.teacher={folder_of(carry_out(*prompt, *QUICK, 'study=teachers'), tmp_path)}"
    line = refused(teacher)
    assert "it takes 20 tokens beside its 4 virtual ones, rows have up to 24; allowed: a data.max_length within" in line
    teaching.check(assemble.check(plan(configured([*tiny_overrides, teacher, "data.max_length=20"])).config))


def test_another_tokenizer_is_refused(llama, tables, tmp_path):  # noqa: F811
    teacher = language.make(tmp_path / "teacher", template=language.TEMPLATE)
    path = teacher / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(tokenizer))
    everything = [*of_language_model(llama, tmp_path), *tables["response"], f"train.teacher={teacher}"]
    with pytest.raises(ConfigError, match="its tokenizer makes other tokens than the student's"):
        teaching.check(assemble.check(plan(composed(everything)).config))
