"""`python -m weights predict`: a finished run on other data is the run, row by row."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from scipy.special import softmax

from tests.conftest import BAD, GOOD, folder_of, write_csv
from trainer.data.sources import glue as sources
from trainer.hashing import sha256
from trainer.runs.run import run
from trainer.sweeps.plan import plan
from weights import glue
from weights.cli import main

ADALORA = ["variant=adalora", "variant.rank=4", "variant.target_rank=1", "variant.interval=2"]


@pytest.fixture
def trained(finished_run):
    """The folder of a tiny run."""
    return functools.partial(finished_run, "train.max_steps=6")


def predicted(folder: Path, *arguments: str, output: Path) -> pd.DataFrame:
    assert main(["predict", str(folder), *map(str, arguments), "--output", str(output)]) == 0
    return pd.read_csv(output) if output.suffix == ".csv" else pd.read_parquet(output)


@pytest.mark.parametrize(
    "method", [[], ADALORA, ["variant=full", "optim.lr=1e-3"], ["variant=peft_lora"]], ids=" ".join
)
def test_on_the_runs_own_rows_it_says_what_the_run_said(trained, tiny_task, tmp_path, method, capsys):
    folder = trained(*method)
    found = predicted(folder, "--data", tiny_task[1], output=tmp_path / "out.parquet")
    own = pd.read_parquet(folder / "predictions.parquet").set_index("id").loc[found.id]
    names = np.asarray(["bad", "good"])
    assert list(found.columns) == ["id", "label", "prediction", "probability of bad", "probability of good"]
    assert (found.label == names[own.reference]).all() and (found.prediction == names[own.prediction]).all()
    probabilities = softmax(np.stack(own.outputs).astype(np.float64), axis=1)
    assert (found.iloc[:, 3:].to_numpy() == probabilities).all()
    record = json.loads((folder / "record.json").read_text())
    about = json.loads((tmp_path / "out.parquet.json").read_text())
    assert about["metrics"] == {"accuracy": record["metric.value"]}
    assert about["run_id"] == folder.name and about["adapter"] == record["files.weights"]
    assert about["data"] == {"name": "validation.csv", "sha256": sha256(tiny_task[1]), "rows": 24, "cut": 0}
    out = capsys.readouterr().out
    assert f"accuracy {record['metric.value']:.4f}" in out and "24 predictions" in out


def test_rows_keep_the_order_of_the_file(trained, tiny_task, tmp_path):
    folder = trained()
    with tiny_task[1].open() as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    path = tmp_path / "texts.csv"
    path.write_text("review\n" + "\n".join(reversed(texts)) + "\n")
    found = predicted(folder, "--data", path, "--text", "review", output=tmp_path / "out.csv")
    own = predicted(folder, "--data", tiny_task[1], output=tmp_path / "own.csv")
    assert list(found.columns) == ["id", "prediction", "probability of bad", "probability of good"]
    assert found.prediction.tolist() == own.prediction.tolist()[::-1]
    assert [text for text in found.id if "-" not in text] and set(found.id) == set(own.id)


def test_the_same_numbers_go_into_either_format(trained, tiny_task, tmp_path):
    folder = trained()
    parquet, table = (
        predicted(folder, "--data", tiny_task[1], output=tmp_path / f"out.{n}") for n in ("parquet", "csv")
    )
    pd.testing.assert_frame_equal(parquet, table, check_exact=True)


def test_without_labels_there_are_predictions_alone(trained, tiny_task, tmp_path, capsys):
    folder = trained()
    capsys.readouterr()
    found = predicted(folder, "--data", tiny_task[1], "--label", "", output=tmp_path / "out.csv")
    assert "label" not in found and "no labels, so no metrics" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.csv.json").read_text())["metrics"] is None


def test_a_regression_gives_numbers(trained, tmp_path):
    path = write_csv(tmp_path / "train.csv", 32, 1)
    path.write_text(path.read_text().replace(",good", ",1.5").replace(",bad", ",-2"))
    paths = [f"task.source.train_path={path}", f"task.source.validation_path={path}"]
    folder = trained(*paths, "task.source.kind=regression", "task.metrics=[pearson,rmse]")
    found = predicted(folder, "--data", path, output=tmp_path / "out.parquet")
    own = pd.read_parquet(folder / "predictions.parquet").set_index("id").loc[found.id]
    assert list(found.columns) == ["id", "label", "prediction"]
    assert (found.prediction.to_numpy() == own.prediction.to_numpy()).all()
    metrics = json.loads((tmp_path / "out.parquet.json").read_text())["metrics"]
    record = json.loads((folder / "record.json").read_text())
    assert metrics == {name: record[f"metrics.{name}"] for name in ("pearson", "rmse")}


def test_pairs_take_two_columns(trained, tmp_path, capsys):
    path = write_csv(tmp_path / "train.csv", 32, 1, ("text", "label"))
    rows = list(csv.DictReader(path.open()))
    lines = [f"{row['text']},the film,{row['label']}" for row in rows]
    path.write_text("one,two,label\n" + "\n".join(lines) + "\n")
    own = ["task.source.text=one", "task.source.text_pair=two"]
    paths = [f"task.source.train_path={path}", f"task.source.validation_path={path}"]
    folder = trained(*paths, *own)
    found = predicted(folder, "--data", path, output=tmp_path / "out.parquet")  # columns as in the run's task
    assert len(found) == 32
    other = tmp_path / "other.csv"
    other.write_text(path.read_text().replace("one,two", "first,second"))
    assert main(["predict", str(folder), "--data", str(other)]) == 2
    assert "has no column 'one'; found: 'first', 'second', 'label'" in capsys.readouterr().err
    again = predicted(
        folder, "--data", other, "--text", "first", "--text-pair", "second", output=tmp_path / "b.parquet"
    )
    pd.testing.assert_frame_equal(found, again)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("text,label\nfine,great\n", [], "column 'label': row 1 is 'great'; allowed: 'bad', 'good', or --label ''"),
        ("text,label\nfine,\n", [], "column 'label': row 1 is ''; allowed: a name or a whole number"),
        ("text\n,\n", [], "line 2 has 2 fields, the header has 1"),
        ("text\n", [], "has no rows; allowed: one or more"),
        ("words\nfine\n", [], "has no column 'text'; found: 'words'"),
        ("text\nfine\n", ["--label", "stars"], "has no column 'stars'; found: 'text'"),
        ("text\nfine\n", ["--text-pair", "text"], "--text-pair: 'text', allowed: none; tiny has no pairs"),
        ("text\nfine\n", ["--output", "out.txt"], "--output: 'out.txt', allowed: a file that ends in .parquet or .csv"),
    ],
)
def test_what_can_not_be_predicted_is_one_line(trained, tmp_path, capsys, content, arguments, message):
    folder = trained()
    path = tmp_path / "data.csv"
    path.write_text(content)
    capsys.readouterr()
    assert main(["predict", str(folder), "--data", str(path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("weights: ") and err.count("\n") == 1 and message in err and not out
    assert not (folder / "predict").exists()


def test_nothing_is_written_over(trained, tiny_task, capsys):
    folder = trained()
    arguments = ["predict", str(folder), "--data", str(tiny_task[1])]
    assert main(arguments) == 0 and (folder / "predict" / "validation.parquet").is_file()
    assert main(arguments) == 2
    assert "validation.parquet is there already; name another file, or remove it" in capsys.readouterr().err


# GLUE. Its tasks are as small here as they can be.

CLASSES = {"cola": 2, "mnli": 3, "stsb": None, "rte": 2}


@pytest.fixture
def tiny_glue(tmp_path, monkeypatch):
    """A folder in the Hub's layout with some of GLUE's tasks, and what trains on them."""
    folder = tmp_path / "glue"

    def write(task: str, split: str, columns: tuple[str, ...], labels: list[float], order: list[int] | None = None):
        place = folder / task
        place.mkdir(parents=True, exist_ok=True)
        rows = range(len(labels)) if order is None else order
        words = [GOOD if number % 2 else BAD for number in rows]
        data = {name: [f"{words[i][n % 3]} {name} {n}" for i, n in enumerate(rows)] for name in columns}
        table = pyarrow.table({**data, "label": labels, "idx": pyarrow.array(rows, pyarrow.int32())})
        pyarrow.parquet.write_table(table, place / f"{split}-00000-of-00001.parquet")

    for task, count in CLASSES.items():
        known = sources.TASKS[task]
        small = dict.fromkeys(known.sizes, 16)
        monkeypatch.setitem(sources.TASKS, task, sources._Task(known.columns, known.labels, small))
        for split in small:
            write(task, split, known.columns, [n % count if count else float(n % 6) for n in range(16)])
        tests = ["test_matched", "test_mismatched"] if task == "mnli" else ["test"]
        for split in tests:
            write(task, split, known.columns, [-1] * 6, order=[3, 0, 5, 1, 4, 2])
    write("ax", "test", sources.TASKS["mnli"].columns, [-1] * 6)
    return folder


@pytest.mark.parametrize(
    ("task", "files", "values"),
    [
        ("cola", ["CoLA.tsv"], {"0", "1"}),
        ("rte", ["RTE.tsv"], {"entailment", "not_entailment"}),
        ("mnli", ["AX.tsv", "MNLI-m.tsv", "MNLI-mm.tsv"], {"entailment", "neutral", "contradiction"}),
    ],
)
def test_glues_test_sets_go_out_as_its_server_takes_them(
    configured, tiny_overrides, tiny_glue, tmp_path, capsys, task, files, values
):
    own = [text for text in tiny_overrides if not text.startswith("task")]
    everything = [*own, f"task={task}", f"glue.path={tiny_glue}", "train.max_steps=4"]
    folder = folder_of(run(plan(configured(everything)), everything), tmp_path)
    capsys.readouterr()
    output = tmp_path / "submission"
    assert main(["predict", str(folder), "--glue", str(tiny_glue), "--output", str(output)]) == 0
    assert sorted(path.name for path in output.iterdir()) == files
    for file in files:
        head, *lines = (output / file).read_text().splitlines()
        assert head == "index\tprediction" and [line.split("\t")[0] for line in lines] == list("012345")
        assert {line.split("\t")[1] for line in lines} <= values
    assert "so its server refuses this file" in capsys.readouterr().out
    # Row by row the same as for a file with the same texts.
    known, name = sources.TASKS[task], "test" if task != "mnli" else "test_matched"
    table = pd.read_parquet(tiny_glue / task / f"{name}-00000-of-00001.parquet").sort_values("idx")
    table[[*known.columns]].to_csv(tmp_path / "texts.csv", index=False)
    columns = ["--text", known.columns[0], *(["--text-pair", known.columns[1]] if len(known.columns) == 2 else [])]
    found = predicted(folder, "--data", tmp_path / "texts.csv", *columns, output=tmp_path / "out.csv").prediction
    shown = [str(known.labels.index(name)) for name in found] if task == "cola" else list(found)
    file = "MNLI-m.tsv" if task == "mnli" else files[0]
    assert [line.split("\t")[1] for line in (output / file).read_text().splitlines()[1:]] == shown
    assert main(["predict", str(folder), "--glue", str(tiny_glue), "--output", str(output)]) == 2


def test_scores_of_stsb_lie_on_its_scale():
    text, moved = glue.rows("stsb/test", [-0.25, 2.5, 5.5], None)
    assert text == "index\tprediction\n0\t0.000000\n1\t2.500000\n2\t5.000000\n" and moved == 2


@pytest.mark.parametrize("name", glue.SETS)
def test_every_set_is_one_of_a_known_task(name):
    task, _, split = name.partition("/")
    assert split.startswith("test") and (task == "ax" or task in sources.TASKS)


def test_a_run_on_another_task_has_no_test_set_of_glue(trained, tiny_glue, capsys):
    folder = trained()
    assert main(["predict", str(folder), "--glue", str(tiny_glue)]) == 2
    assert "weights: --glue: the run's task is tiny, allowed: one of GLUE's: cola, sst2, " in capsys.readouterr().err
    assert main(["predict", str(folder), "--glue", str(tiny_glue), "--text", "x"]) == 2
    assert "weights: --text: with --glue, allowed: none" in capsys.readouterr().err
