"""`python -m weights predict` for kinds of task other than classes and numbers of texts."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from tests.trainer.objectives import language, other_kinds
from tests.weights.conftest import ROWS
from weights import predict_rows
from weights.cli import main

RIGHT = {"response": "response", "choices": "label", "seq2seq": "target", "token_classification": "tags"}
RIGHT |= {"extractive_qa": "answers"}


def rows_of(kind):
    return ROWS[kind] if kind in ROWS else other_kinds.rows(kind)


@pytest.mark.parametrize(
    "kind", ["text", "response", "messages", "choices", "seq2seq", "token_classification", "extractive_qa"]
)
def test_on_the_runs_own_rows_it_says_what_the_run_said(kind, finished, tmp_path, monkeypatch, capsys):
    """In the order of the file, with the columns of predictions.parquet and the run's metrics, a few rows at a time."""
    from trainer.runs.finished import opened

    monkeypatch.setattr(predict_rows, "AT_ONCE", 4)
    folder = finished(kind)
    own = pd.read_parquet(folder / "predictions.parquet")
    with opened(folder) as run:
        split = run.objective.content.splits["validation"]
    rows = [{name: value for name, value in row.items() if name != "id"} for row in split]
    if kind == "token_classification":
        rows = [{**row, "tags": [run.context.rows.labels[tag] for tag in row["tags"]]} for row in rows]
    data, output = language.write(tmp_path / "data.jsonl", rows), tmp_path / "out.parquet"
    assert main(["predict", str(folder), "--data", str(data), "--output", str(output)]) == 0
    found, record = pd.read_parquet(output), json.loads((folder / "record.json").read_text())
    assert list(found.columns) == [name for name in own.columns if name != "split"]
    known = own.set_index("id").loc[split["id"]].reset_index()
    assert found.reference.tolist() == known.reference.tolist()
    assert found.prediction.tolist() == known.prediction.tolist()
    for name in found.columns:
        if name.startswith("stats."):
            np.testing.assert_allclose(found[name], known[name], rtol=1e-4)
    about = json.loads((tmp_path / "out.parquet.json").read_text())
    expected = {name.removeprefix("metrics."): value for name, value in record.items() if name.startswith("metrics.")}
    assert about["metrics"] == pytest.approx(expected, rel=1e-4) and about["data"]["rows"] == len(rows)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("kind", [*RIGHT, "messages"])
def test_without_what_is_right_there_are_the_same_predictions_alone(kind, finished, tmp_path, capsys):
    folder = finished(kind)
    rows = rows_of(kind)[:6]
    bare = [{name: value for name, value in row.items() if name != RIGHT.get(kind)} for row in rows]
    if kind == "messages":
        bare = [{"messages": row["messages"][:-1]} for row in rows]
    found = []
    for name, own in (("whole", rows), ("bare", bare)):
        data = language.write(tmp_path / f"{name}.jsonl", own)
        assert main(["predict", str(folder), "--data", str(data), "--output", str(tmp_path / f"{name}.csv")]) == 0
        found.append(pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False))
    assert list(found[1].columns) == ["id", "unit", "prediction"]
    assert found[1].prediction.tolist() == found[0].prediction.tolist()
    assert "nothing says what is right, so no metrics" in capsys.readouterr().out
    # and the same where what is right is there and not to be read
    last = ["--data", str(tmp_path / "whole.jsonl"), "--label", "", "--output", str(tmp_path / "again.csv")]
    assert main(["predict", str(folder), *last]) == 0
    again = pd.read_csv(tmp_path / "again.csv", keep_default_na=False)
    assert again.prediction.tolist() == found[1].prediction.tolist() and list(again.columns) == list(found[1].columns)


def test_a_run_that_never_wrote_in_its_evaluation_writes(finished, tmp_path):
    folder = finished("response", "task.metrics=[perplexity]")
    data = language.write(tmp_path / "data.jsonl", ROWS["response"][:3])
    assert main(["predict", str(folder), "--data", str(data), "--output", str(tmp_path / "out.csv")]) == 0
    found = pd.read_csv(tmp_path / "out.csv")
    assert found.prediction.notna().any() and {"stats.token_f1", "stats.nll"} <= set(found.columns)


FILES = {"image_classification": ("images", "png"), "audio_classification": ("sounds", "wav")}


@pytest.fixture
def of_files(tmp_path):
    """Carries out a run on files of a kind; its folder, and the folder of the files."""
    from tests.composing import composed
    from tests.conftest import folder_of
    from trainer.runs.run import run
    from trainer.sweeps.plan import plan

    def carried_out(kind):
        model = other_kinds.model(kind, tmp_path / "model")
        told = [*other_kinds.overrides(kind, model, tmp_path), other_kinds.table(kind, tmp_path)]
        return folder_of(run(plan(composed(told)), told), tmp_path), tmp_path / FILES.get(kind, [""])[0]

    return carried_out


@pytest.mark.parametrize("kind", list(FILES))
def test_files_of_a_folder_are_named_by_their_classes(kind, of_files, tmp_path, capsys):
    folder, images = of_files(kind)
    ending = FILES[kind][1]
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in sorted(images.rglob(f"*.{ending}")):
        (flat / f"{file.parent.name}-{file.name}").write_bytes(file.read_bytes())
    for name, data in (("known", images), ("bare", flat)):
        assert main(["predict", str(folder), "--data", str(data), "--output", str(tmp_path / f"{name}.parquet")]) == 0
    known, bare = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("known", "bare"))
    assert known.prediction.tolist() == bare.prediction.tolist() and "reference" not in bare
    assert set(known.reference) == {one.name for one in images.iterdir()} >= set(known.prediction)
    shares = known[[name for name in known.columns if name.startswith("probability of ")]]
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    said = json.loads((tmp_path / "known.parquet.json").read_text())["metrics"]["accuracy"]
    assert said == pytest.approx((known.reference == known.prediction).mean())
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / f"broken.{ending}").write_bytes(b"none")
    capsys.readouterr()
    assert main(["predict", str(folder), "--data", str(tmp_path / "odd"), "--output", str(tmp_path / "no.csv")]) == 2
    err = capsys.readouterr().err
    assert f"broken.{ending}" in err and err.count("\n") == 1 and not (tmp_path / "no.csv").exists()


@pytest.mark.parametrize("kind", ["ctc", "rating"])
def test_rows_of_other_kinds_are_refused(kind, of_files, tmp_path, capsys):
    folder, _ = of_files(kind)
    capsys.readouterr()
    table = other_kinds.table(kind, tmp_path).partition("=")[2]
    assert main(["predict", str(folder), "--data", table, "--output", str(tmp_path / "no.csv")]) == 2
    err = capsys.readouterr().err
    assert "predict: the run's task has rows of" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "rows", "arguments", "message"),
    [
        ("response", [{"text": "a"}], [], "has no column 'prompt'"),
        ("response", [{"prompt": " "}], [], "column 'prompt': row 1 is empty; allowed: a text in every row"),
        ("response", [{"prompt": "a"}], ["--text", "prompt"], "--text: 'prompt' for a language model of responses"),
        ("response", [{"prompt": "a"}], ["--label", "x"], "--label: 'x' for a language model of responses"),
        ("choices", [{"prompt": "a", "choices": ["b"]}], [], "row 1 of the file: 1 choice; allowed: two or more"),
        ("choices", [{"prompt": "a", "choices": ["b", "c"], "label": 2}], [], "its label is 2; allowed: the number"),
        ("messages", [{"messages": []}], [], "row 1 of the file: fewer than two messages"),
        ("token_classification", [{"tokens": ["a"], "tags": ["X"]}], [], "row 1 is 'X'; allowed: 'B-LOC'"),
        (
            "extractive_qa",
            [{"context": "a b", "question": "who", "answers": {"text": ["c"], "start": [0]}}],
            [],
            "is not in its context at 0",
        ),
    ],
)
def test_what_can_not_be_predicted_is_one_line(kind, rows, arguments, message, finished, tmp_path, capsys):
    folder = finished(kind)
    data = language.write(tmp_path / "data.jsonl", rows)
    capsys.readouterr()
    assert main(["predict", str(folder), "--data", str(data), *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("weights: --") and err.count("\n") == 1 and message in err and not out
    assert not list((folder / "predict").glob("*"))


def test_no_folder_of_glue_for_another_kind(finished, tmp_path, capsys):
    folder = finished("response")
    capsys.readouterr()
    assert main(["predict", str(folder), "--glue", str(tmp_path)]) == 2
    assert "--glue: the run's task is a language model of responses, allowed: --data" in capsys.readouterr().err
