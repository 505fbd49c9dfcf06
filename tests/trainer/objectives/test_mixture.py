"""A task made of several: shares in training, and metrics of each task, whose mean is the run's."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.composing import composed
from tests.conftest import folder_of, write_csv
from tests.trainer.objectives import language
from tests.trainer.objectives.conftest import _rows
from trainer import config_files
from trainer.errors import ConfigError
from trainer.runs import assemble
from trainer.sweeps.plan import plan

FILES = "trainer.data.sources.files.Files"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Tasks of one's own, each a file in the user's folder of configs."""
    folder = tmp_path / "conf" / "task"
    folder.mkdir(parents=True)
    monkeypatch.setenv(config_files.VARIABLE, str(tmp_path / "conf"))

    def write(name: str, kind: str | None, rows: object, **source: object) -> None:
        path = tmp_path / f"{name}.jsonl"
        if isinstance(rows, list):
            language.write(path, rows)
        else:
            path = rows
        own = {"_target_": FILES, "train_path": str(path), "holdout": 0.3, **source}
        (folder / f"{name}.yaml").write_text(json.dumps({"name": name, "kind": kind, "metrics": [], "source": own}))

    forms = _rows()
    for form, columns in (("choices", ("prompt", "choices")), ("response", ("prompt", "response"))):
        write(form, "causal_lm", forms[form], **{name: name for name in columns})
    write("more", "causal_lm", forms["choices"][:9], prompt="prompt", choices="choices")
    write("text", "causal_lm", forms["text"], label=None)
    write("prose", "causal_lm", forms["text"][:6], label=None)
    return write


@pytest.fixture
def told(llama, tmp_path):
    """Overrides of a run on a mixture."""

    def overrides(tasks: str, *more: str) -> list[str]:
        return [
            *("model=folder", f"model.path={llama}", "model.name=tiny", "task=mixture", f"task.source.tasks={tasks}"),
            *("train.batch_size=4", "train.max_steps=6", "optim.lr=1e-2", "data.max_length=32"),
            *(f"runs_dir={tmp_path / 'runs'}", "study=test", "machine.progress=false", "machine.device=cpu", *more),
        ]

    return overrides


@pytest.fixture
def carried_out(files, told):
    def carry_out(tasks: str, *more: str):
        from trainer.runs.run import run

        everything = told(tasks, *more)
        return run(plan(composed(everything)), everything)

    return carry_out


def test_the_mean_over_tasks_is_the_runs_metric_and_analysis_computes_it_again(carried_out, tmp_path):
    from analysis.comparison import predictions
    from analysis.records import other_metric
    from analysis.records.runs import Run

    record = carried_out("{choices: 1, more: 2}")
    assert list(record.metrics) == [
        *("accuracy", "accuracy_norm", "accuracy_choices", "accuracy_more"),
        *("accuracy_norm_choices", "accuracy_norm_more"),
    ]
    folder = folder_of(record, tmp_path)
    found = pd.read_parquet(folder / "predictions.parquet")
    by_task = (
        found.assign(right=found.reference == found.prediction).groupby(found.id.str.partition("-")[0]).right.mean()
    )
    assert record.metrics["accuracy_choices"] == pytest.approx(by_task["choices"])
    assert record.metrics["accuracy_more"] == pytest.approx(by_task["more"])
    assert record.metric.value == pytest.approx(by_task.mean()) == record.metrics["accuracy"]
    run = Run(str(folder), record)
    again = predictions.read(run)
    assert {name: again.score(name) for name in record.metrics} == pytest.approx(record.metrics)
    (shown,), _ = other_metric.chosen([run], "accuracy_norm_more")
    assert (shown.record.metric.value, shown.record.metric.higher_is_better) == (
        record.metrics["accuracy_norm_more"],
        True,
    )


def test_a_repeated_example_counts_once(files, told):
    rows = assemble.check(plan(composed(told("{choices: 1, more: 9}"))).config).rows
    assert rows.counts["train"] == len(set(rows.train.indices)) < len(rows.train)


def test_perplexities_of_blocks_are_of_each_task(carried_out):
    record = carried_out("{text: 1, prose: 1}", "task.metrics=[perplexity,bits_per_byte]")
    pair = [record.metrics[f"perplexity_{name}"] for name in ("prose", "text")]
    assert record.metric.value == pytest.approx(sum(pair) / 2) and pair[0] != pair[1]


def test_an_epoch_has_the_shares_of_the_tasks(files, told):
    def tasks_of(*more: str, tasks: str = "{choices: 1, more: 3}"):
        parts = assemble.check(plan(composed(told(tasks, *more))).config)
        table, rows = parts.objective.content.splits["train"]["task"], parts.rows.train.indices
        return [table[row] for row in rows], [table.count(name) for name in ("choices", "more")]

    drawn, sizes = tasks_of()
    assert (drawn.count("choices"), drawn.count("more")) == (sizes[0], 3 * sizes[0])
    drawn, _ = tasks_of("data.limit=8")
    assert (drawn.count("choices"), drawn.count("more")) == (2, 6)
    drawn, sizes = tasks_of("task.source.sampling=proportional", tasks="{choices: 1, more: 1}")
    assert [drawn.count("choices"), drawn.count("more")] == sizes
    drawn, sizes = tasks_of(
        "task.source.sampling=temperature", "task.source.temperature=2", tasks="{choices: 1, more: 1}"
    )
    assert drawn.count("choices") / drawn.count("more") == pytest.approx((sizes[0] / sizes[1]) ** 0.5, rel=0.1)


def test_interrupted_it_ends_with_the_same_bits(carried_out, monkeypatch, tmp_path):
    from trainer.loop.loop import Loop

    straight = carried_out("{choices: 1, more: 2}", "machine.save_every=2", "study=straight")
    step = Loop.make_step

    def dies(self, index, batches):
        if index == 4:
            raise KeyboardInterrupt
        step(self, index, batches)

    monkeypatch.setattr(Loop, "make_step", dies)
    with pytest.raises(KeyboardInterrupt):
        carried_out("{choices: 1, more: 2}", "machine.save_every=2", "study=cut")
    monkeypatch.undo()
    monkeypatch.setenv(config_files.VARIABLE, str(tmp_path / "conf"))
    resumed = carried_out("{choices: 1, more: 2}", "machine.save_every=2", "study=cut")
    one, two = (load_file(folder_of(record, tmp_path) / "adapter/state.safetensors") for record in (straight, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one) and resumed.metrics == straight.metrics


def test_its_tasks_name_the_run_and_their_order_does_not(files, told, tmp_path):
    def name(tasks: str) -> str:
        return plan(composed(told(tasks))).run_id

    first = name("{choices: 1, more: 2}")
    assert first == name("{more: 2, choices: 1}") != name("{choices: 1, more: 1}")
    files("more", "causal_lm", _rows()["choices"][:10], prompt="prompt", choices="choices")
    assert name("{choices: 1, more: 2}") != first


def test_classes_that_are_the_same_make_a_mixture(files, tiny_model, tmp_path):
    from trainer.runs.run import run
    from weights.cli import main

    for number, name in enumerate(("one", "two")):
        files(name, None, write_csv(tmp_path / f"{name}.csv", 40, number))
    everything = [
        *("model=folder", f"model.path={tiny_model}", "model.name=tiny", "task=mixture", "task.kind=null"),
        *("task.source.tasks={one: 1, two: 1}", "task.metrics=[accuracy]", "train.max_steps=4"),
        *(f"runs_dir={tmp_path / 'runs'}", "study=test", "machine.progress=false", "machine.device=cpu"),
    ]
    record = run(plan(composed(everything)), everything)
    assert record.metric.value == pytest.approx((record.metrics["accuracy_one"] + record.metrics["accuracy_two"]) / 2)
    assert main(["predict", str(folder_of(record, tmp_path)), "--data", str(tmp_path / "one.csv")]) == 0
    with pytest.raises(ConfigError, match=r"task\.metrics: 'f1' in a mixture of tasks; allowed: accuracy"):
        assemble.check(plan(composed([*everything, "task.metrics=[f1]"])).config)


@pytest.mark.parametrize(
    ("tasks", "line"),
    [
        ("{choices: 1}", "allowed: two or more tasks and their weights"),
        ("{choices: 1, none: 1}", "task.source.tasks: 'none'; allowed: the name of a file in conf/task"),
        ("{choices: 1, more: 0}", "task.source.tasks.more: 0; allowed: a number above 0"),
        ("{choices: 1, response: 1}", "of choices and id, prompt, response of response; allowed: the same"),
        ("{choices: 1, words: 1}", "choices is causal_lm, words classes or numbers of texts; allowed: one kind"),
    ],
)
def test_what_is_no_mixture_is_one_line(tasks, line, files, told, tmp_path):
    files("words", None, write_csv(tmp_path / "words.csv", 20, 0))
    config = composed(told(tasks))
    with pytest.raises(ConfigError) as caught:
        assemble.check(plan(config).config)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_temperature_is_given_with_its_sampling_alone(files, told):
    for more in (["task.source.temperature=2"], ["task.source.sampling=temperature"]):
        config = composed(told("{choices: 1, more: 2}", *more))
        with pytest.raises(ConfigError, match=r"task\.source\.temperature: "):
            plan(config)
