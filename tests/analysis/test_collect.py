"""`collect`: one row for each run, nothing lost silently."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from analysis.commands import cli, collect
from analysis.errors import AnalysisError
from trainer import record as records


@pytest.fixture
def rows(capsys):
    """The rows of `collect … ` as csv, which must succeed, and what it says on standard error."""

    def call(*arguments: str) -> tuple[list[dict[str, str]], list[str]]:
        assert cli.main(["collect", *(arguments or ("runs",))]) == 0
        output = capsys.readouterr()
        return list(csv.DictReader(output.out.splitlines(keepends=True))), output.err.splitlines()

    return call


EXACT = """\
run_id,study,variant,task,model,seed,status,error,version,overrides,metric.name,metric.value,metric.higher_is_better,\
metric.split,metric.checkpoint,metrics.accuracy,metrics.f1,data.protocol,steps.total,params.head,params.adapter_start,\
params.effective,memory.weights,memory.gradients,memory.optimizer,memory.activations,memory.adapter_file,\
memory.peak_rss,time.train,time.tokens_per_second,git.commit,git.dirty,config.model.name,config.optim.lr,config.seed,\
config.task.name,config.variant.name,config.variant.rank,config.variant.targets
{lora},demo,lora,movie,minilm,0,done,,2,"[""variant=lora"", ""seed=0""]",accuracy,0.8,true,validation,best,0.8,0.75,\
dev,100,770,331776,331776,94371840,2097152,4194304,52428800,1572864,734003200,12.5,4321.4,0123456789abcdef,false,\
minilm,0.001,0,movie,lora,8,"[""query"", ""größe""]"
{sora},demo,sora,movie,minilm,1,failed,"no memory, none
at all",2,"[""variant=sora"", ""seed=1""]",,,,,,,,,,,,,,,,,,,,,0123456789abcdef,false,\
minilm,0.001,1,movie,sora,8,all-linear
"""


def test_the_exact_text(store, capsys):
    sora = store.add("sora", 1, error="no memory, none\nat all", config={"variant.targets": "all-linear"})
    lora = store.add(
        "lora",
        0,
        metrics__accuracy=0.8,
        metrics__f1=0.75,
        config={"variant.targets": ["query", "größe"]},
    )
    assert cli.main(["collect", "runs"]) == 0
    assert capsys.readouterr() == (EXACT.format(lora=lora.name, sora=sora.name), "")


def test_every_name_and_value_of_a_record_is_there(store, rows):
    folder = store.add("lora", 3, rank__end=64, versions__torch="2.13.0", config={"variant.rslora": True})
    record = records.read(folder)
    assert record is not None
    (row,), _ = rows()
    written = {name: value if isinstance(value, str) else json.dumps(value) for name, value in record.row().items()}
    assert row == written


def test_parquet_has_the_same_with_types(store, rows):
    store.add("lora", 0, config={"variant.alpha": 8, "variant.rslora": True})
    store.add("lora", 1, config={"variant.alpha": 8.5, "variant.rslora": False})
    store.add("sora", 0, error="no memory", config={"variant.alpha": "none"})
    assert cli.main(["collect", "runs", "--output", "runs.parquet"]) == 0
    table = pq.read_table("runs.parquet")
    kinds = {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types, strict=True)}
    assert kinds["seed"] == "int64" and kinds["metric.value"] == "double" and kinds["git.dirty"] == "bool"
    assert kinds["overrides"] == "list<element: string>" and kinds["error"] == "string"
    assert kinds["config.variant.rslora"] == "bool"
    assert kinds["config.variant.alpha"] == "string", "a number in one run, a text in another"
    frame = table.to_pandas()
    lines, _ = rows()
    assert list(frame) == list(lines[0])
    assert list(frame["run_id"]) == [line["run_id"] for line in lines]
    assert list(frame["config.variant.alpha"]) == ["8", "8.5", "none"]
    assert frame["metric.value"].isna().tolist() == [False, False, True]
    assert list(frame["overrides"][0]) == ["variant=lora", "seed=0"]


def test_numbers_of_both_kinds_are_one_column_of_numbers(store):
    store.add("lora", 0, config={"variant.alpha": 8})
    store.add("lora", 1, config={"variant.alpha": 8.5})
    frame = collect.frame(["runs"])
    assert frame["config.variant.alpha"].tolist() == [8.0, 8.5]


def test_the_frame_is_what_the_file_has(store):
    for seed in range(3):
        store.add("lora", seed, 0.5 + seed / 10)
    store.raw("bad", "{")
    frame = collect.frame(["runs"])
    assert frame["metric.value"].tolist() == [0.5, 0.6, 0.7] and frame["seed"].dtype == "int64"
    (problem,) = frame.attrs["problems"]
    assert problem.startswith("Not used, can't be trusted: runs/bad/record.json: ")
    assert cli.main(["collect", "runs", "--output", "runs.parquet"]) == 0
    pd.testing.assert_frame_equal(pd.read_parquet("runs.parquet"), frame, check_dtype=False)


def test_rows_are_sorted_by_variant_model_task_settings_and_seed(store, rows):
    for variant in ("lora10", "lora2"):
        for task in ("sst2", "movie"):
            for lr in (0.01, 2e-05):
                for seed in (10, 9):
                    store.add(variant, seed, task=task, config={"optim.lr": lr})
    lines, _ = rows()
    found = [(line["variant"], line["task"], line["config.optim.lr"], line["seed"]) for line in lines]
    assert found[:5] == [
        ("lora2", "movie", "2e-05", "9"),
        ("lora2", "movie", "2e-05", "10"),
        ("lora2", "movie", "0.01", "9"),
        ("lora2", "movie", "0.01", "10"),
        ("lora2", "sst2", "2e-05", "9"),
    ]
    assert len(found) == 16 and found[8][0] == "lora10"


def test_corrupt_foreign_and_half_written_folders_are_left_out_and_listed(store, rows):
    folder = store.add("lora", 0)
    text = (folder / "record.json").read_text()
    store.raw("half", text[:200])
    store.raw("foreign", '{"epoch": 3}')
    (store.raw("killed", "").parent / "config.yaml").write_text("seed: 0")
    (store.root / "runs" / "killed" / "record.json").unlink()
    store.raw("spoilt", json.dumps(json.loads(text) | {"run_id": "x", "metric.value": "good"}))
    lines, told = rows("runs", "tpyo")
    assert [line["run_id"] for line in lines] == [folder.name]
    assert told == [
        "Not used, can't be trusted: runs/foreign/record.json: version: None, this is version 1",
        told[1],
        "Not used, can't be trusted: runs/spoilt/record.json: metric.value: 'good' is not a finite number",
        "Not ended, or killed: runs/killed: no record.json",
        "Nothing found: tpyo: no such folder",
    ]
    assert told[1].startswith("Not used, can't be trusted: runs/half/record.json: ")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_folder_named_in_another_encoding_is_no_error(store, form):
    shutil.copytree(store.add("lora", 0), "runs/caf\udce9")
    path = store.raw("spoilt", "{")
    os.rename(path.parent, "runs/th\udce9")
    assert cli.main(["collect", "runs", "--output", f"frame.{form}"]) == 0
    assert cli.main(["table", "runs", "--output", "table.md"]) == 0
    assert "runs/th\\udce9/record.json" in Path("table.md").read_text(encoding="utf-8")


def test_a_folder_that_can_not_be_looked_into_is_listed(store, rows, monkeypatch):
    store.add("lora", 0)
    (store.root / "runs" / "secret").mkdir()
    scandir = os.scandir

    def refuse(folder):
        if os.path.basename(folder) == "secret":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    lines, told = rows()
    assert len(lines) == 1
    assert told == ["Not used, can't be trusted: runs/secret: Permission denied"]


def test_a_run_in_several_places_is_one_row(store, rows):
    store.add("lora", 0, 0.7, under="old", finished="2026-01-01T00:00:00Z")
    used = store.add("lora", 0, 0.8, under="new", finished="2026-02-01T00:00:00Z")
    other = store.add("lora", 1, under="new")
    shutil.copytree(other, Path("copy") / other.name)
    for roots in (("old", "new", "copy"), ("copy", "new", "old")):
        lines, told = rows(*roots)
        assert [(line["seed"], line["metric.value"]) for line in lines] == [("0", "0.8"), ("1", "0.8")]
        assert len(told) == 2 and told[0].startswith("Counted once: 1 run that was found in more than one place: ")
        assert told[1] == (
            f"Counted once, with different records: run {used.name}: used {used}, left out old/{used.name}."
        )


def test_mixed_code_libraries_machines_and_protocols_are_flagged(store, rows):
    store.add("lora", 0, git__commit="a" * 40, versions__torch="2.13.0", hardware__cores=2)
    store.add("lora", 1, git__commit="b" * 40, git__dirty=True, versions__torch="2.14.0", hardware__cores=8)
    store.add("sora", 0, git__commit="b" * 40, versions__torch="2.14.0", hardware__cores=8, data__protocol="split")
    store.add("sora", 1, git__commit="b" * 40, error="no memory", versions__torch="2.14.0", hardware__cores=8)
    _, told = rows()
    assert told == [
        "Mixed code in one comparison: commit aaaaaaaaaa (1 run), commit bbbbbbbbbb (3 runs); "
        "1 run of 4 from a tree with uncommitted changes.",
        "Mixed library versions in one comparison: torch 2.13.0, 2.14.0.",
        "Mixed hardware in one comparison: cores 2, 8.",
        "Unequal protocols on movie: protocol dev (2 runs), split (1 run).",
    ]


def test_a_dirty_tree_alone_is_flagged_and_a_clean_one_is_silent(store, rows):
    store.add("lora", 0)
    assert rows()[1] == []
    store.add("lora", 1, git__dirty=True)
    assert rows()[1] == ["Code: commit 0123456789; 1 run of 2 from a tree with uncommitted changes."]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_same_records_give_the_same_bytes(store, form):
    for seed in range(3):
        for variant in ("lora", "sora"):
            store.add(variant, seed, under=f"part{seed}", config={"optim.lr": seed / 10})
    texts = set()
    for order in ((0, 1, 2), (2, 0, 1)):
        assert cli.main(["collect", *(f"part{n}" for n in order), "--format", form, "--output", "out"]) == 0
        texts.add(Path("out").read_bytes())
    assert len(texts) == 1


def test_the_file_names_the_format(store, capsys):
    store.add("lora", 0)
    assert cli.main(["collect", "runs", "--output", "runs.csv"]) == 0
    assert Path("runs.csv").read_text().startswith("run_id,study,")
    assert cli.main(["collect", "runs", "--output", "runs.parquet"]) == 0
    assert Path("runs.parquet").read_bytes()[:4] == b"PAR1"
    assert sorted(os.listdir()) == ["runs", "runs.csv", "runs.parquet"], "and nothing half-written"
    assert cli.main(["collect", "runs", "--format", "parquet"]) == 2
    assert capsys.readouterr().err == "analysis: --format: 'parquet' needs --output\n"


@pytest.mark.parametrize("name", ["nowhere/runs.csv", "nowhere/runs.parquet"])
def test_an_output_that_can_not_be_written_is_one_line(store, capsys, name):
    store.add("lora", 0)
    assert cli.main(["collect", "runs", "--output", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"analysis: can't write {name}: ") and error.count("\n") == 1


def test_a_number_that_no_column_takes_is_one_line(store, capsys):
    store.add("lora", 0, config={"variant.seed": 2**70})
    assert cli.main(["collect", "runs", "--output", "runs.csv"]) == 0
    assert cli.main(["collect", "runs", "--output", "runs.parquet"]) == 2
    assert capsys.readouterr().err.startswith("analysis: config.variant.seed: does not fit into a column: ")
    assert not Path("runs.parquet").exists()


def test_nothing_to_collect(store, capsys):
    assert cli.main(["collect", "empty"]) == 2
    assert capsys.readouterr() == ("", "analysis: no records: empty: no such folder\n")
    store.raw("bad", "{}")
    assert cli.main(["collect", "runs"]) == 2
    assert capsys.readouterr().err.endswith("analysis: no record that can be trusted; 1 that can't\n")
    with pytest.raises(AnalysisError):
        collect.frame(["empty"])


def test_rows_are_by_settings_then_by_seed(store):
    for seed in range(5):
        store.add("lora", seed, config={"optim.lr": seed % 2})
    assert cli.main(["collect", "runs", "--output", "runs.parquet"]) == 0
    frame = pq.read_table("runs.parquet").to_pandas()
    assert list(zip(frame["config.optim.lr"], frame["seed"], strict=True)) == [(0, 0), (0, 2), (0, 4), (1, 1), (1, 3)]


FORMULAS = ['=HYPERLINK("http://x","y")', "+1+cmd", "-2+3", "@SUM(A1)", "\tx"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_is_a_formula_and_numbers_are_numbers(store, rows, text):
    store.add(text, 0, -0.25, config={"variant.note": text}, error=None)
    store.add("lora", 0, error=text)
    found, _ = rows()
    cells = [cell for row in found for cell in row.values()]
    assert cells.count(f"'{text}") == 4, "variant, its name, its note, an error"
    assert text not in cells and "-0.25" in cells
    store.add("lora", 1, -0.5)
    store.add(text, 1, -0.75, config={"variant.note": text})
    for verb in (["table"], ["compare", "--all", "lora"]):
        assert cli.main([*verb, "runs", "--format", "csv", "--output", "out.csv"]) == 0
        with open("out.csv", encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert f"'{text}" in cells and text not in cells and "-0.5" in cells
