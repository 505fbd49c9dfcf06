"""`python -m weights evaluate`: lm-evaluation-harness on a trained model, with a task in local files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.weights.conftest import ROWS
from weights.cli import main

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow


def task(folder, name, rows, **settings):
    """A task of the harness on rows in a file; its folder."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    own = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(folder / f"{name}.jsonl")}},
        "validation_split": "validation",
        "doc_to_text": "{{prompt}}",
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(own))
    return folder


CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
WRITTEN = {
    "output_type": "generate_until",
    "doc_to_target": "{{response}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.mark.parametrize("method", [[], ["variant=peft_lora"], ["variant=full"]], ids=" ".join)
def test_it_chooses_as_the_runs_own_evaluation_does(method, finished, tmp_path, capsys):
    from trainer.runs.finished import opened

    folder = finished("choices", "task.metrics=[accuracy,accuracy_norm]", *method)
    with opened(folder) as run:
        table = run.objective.content.splits["validation"]
        rows = [{name: row[name] for name in ("prompt", "choices", "label")} for row in table]
    capsys.readouterr()
    tasks = task(tmp_path / "tasks", "local_choices", rows, **CHOICES)
    assert main(["evaluate", str(folder), "--tasks", "local_choices", "--include", str(tasks)]) == 0
    out = capsys.readouterr().out
    record = json.loads((folder / "record.json").read_text())
    found = json.loads((folder / "evaluation.json").read_text())
    metrics = found["tasks"]["local_choices"]["metrics"]
    assert metrics["acc"]["value"] == pytest.approx(record["metrics.accuracy"])
    assert metrics["acc_norm"]["value"] == pytest.approx(record["metrics.accuracy_norm"])
    assert found["tasks"]["local_choices"]["examples"] == len(rows) and found["limit"] is None
    assert found["run_id"] == folder.name and found["adapter"] == record["files.weights"]
    assert "| local_choices | acc" in out and f"{metrics['acc']['value']:.4f}" in out and "not all examples" not in out


def test_what_it_writes_is_what_the_run_writes(finished, tmp_path, capsys):
    folder = finished("response")
    prompts = [row["prompt"] for row in ROWS["response"][:4]]
    rows = []
    for prompt in prompts:
        capsys.readouterr()
        assert main(["generate", str(folder), "--prompt", prompt]) == 0
        rows.append({"prompt": prompt, "response": capsys.readouterr().out.rstrip("\n")})
    tasks = task(tmp_path / "tasks", "local_answers", [*rows, {"prompt": "1 and", "response": "nothing"}], **WRITTEN)
    assert main(["evaluate", str(folder), "--tasks", "local_answers", "--include", str(tasks)]) == 0
    found = json.loads((folder / "evaluation.json").read_text())["tasks"]["local_answers"]
    assert found["metrics"]["exact_match"]["value"] == pytest.approx(4 / 5)


def test_a_limit_is_said(finished, tmp_path, capsys):
    folder = finished("response")
    tasks = task(tmp_path / "tasks", "local_choices", ROWS["choices"], **CHOICES)
    arguments = ["--tasks", "local_choices", "--include", str(tasks), "--limit", "3"]
    assert main(["evaluate", str(folder), *arguments]) == 0
    assert "not all examples, so not the number that others report: local_choices" in capsys.readouterr().out
    found = json.loads((folder / "evaluation.json").read_text())["tasks"]["local_choices"]
    assert (found["examples"], found["of"]) == (3, len(ROWS["choices"]))


def test_what_can_not_be_evaluated_is_one_line(finished, tmp_path, capsys, monkeypatch):
    other = finished("token_classification")
    tasks = task(tmp_path / "tasks", "local_choices", ROWS["choices"], **CHOICES)
    task(tasks, "broken", ROWS["choices"], **{**CHOICES, "validation_split": "dev"})
    capsys.readouterr()
    for arguments, message in (
        (["--tasks", "local_choices", "--include", str(tasks)], "allowed: one of a language model"),
        (["--tasks", "broken", "--include", str(tasks)], "--tasks: broken: can't be loaded: "),
        (["--tasks", ","], "--tasks: ',', allowed: names separated by commas"),
        (["--tasks", "a", "--include", str(tmp_path / "none")], "allowed: a folder of YAML files"),
    ):
        assert main(["evaluate", str(other), *arguments]) == 2
        out, err = capsys.readouterr()
        last = err.splitlines()[-1]
        assert last.startswith("weights: ") and message in last and "Traceback" not in err and not out
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["evaluate", str(other), "--tasks", "a"]) == 2
    assert capsys.readouterr().err.endswith("is not here: pip install 'loratory[lm-eval]'\n")
    assert not (other / "evaluation.json").exists()


def test_a_task_that_nobody_has_is_named(finished, tmp_path, capsys, monkeypatch):
    from lm_eval.tasks import TaskManager

    # Of its own tasks, thousands that take seconds to list, those of GLUE.
    own = sys.modules[TaskManager.__module__]
    monkeypatch.setattr(own, "__file__", str(Path(own.__file__).parent / "glue" / "here.py"))
    assert "cola" in TaskManager().all_tasks
    folder = finished("response")
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--tasks", "no_such_task"]) == 2
    assert "--tasks: 'no_such_task', allowed: tasks of lm-evaluation-harness" in capsys.readouterr().err
