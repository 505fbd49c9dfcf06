"""The verb `verify`: whatever was changed since a run wrote it is named, and what could not be checked is said."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.commands import cli
from tests.conftest import ROOT, folder_of
from trainer import record as records


@pytest.fixture
def verify(capsys) -> Callable[..., tuple[int, list[str]]]:
    """`python -m analysis verify …`: its exit code and its lines."""

    def call(*arguments: str | Path) -> tuple[int, list[str]]:
        code = cli.main(["verify", *map(str, arguments)])
        output = capsys.readouterr()
        assert output.err == ""
        return code, output.out.splitlines()

    return call


def signed(folder: Path, **changes: object) -> None:
    """Changes a record and signs it anew, as an edit does that knows how."""
    path = folder / records.FILENAME
    row = json.loads(path.read_text()) | {name.replace("__", "."): value for name, value in changes.items()}
    path.write_text(json.dumps(row | {records.CHECKSUM: records.checksum(row)}, indent=1, sort_keys=True))


def edited(folder: Path) -> None:
    path = folder / records.FILENAME
    path.write_text(re.sub(r'"time.train": .*,', '"time.train": 0.5,', path.read_text()))


def predicted(folder: Path) -> None:
    """Other predictions, with a record that has their hash."""
    path = folder / "predictions.parquet"
    rows = pd.read_parquet(path)
    rows["prediction"] = rows["reference"]
    rows.to_parquet(path, index=False)
    from analysis.records.run_files import digest

    signed(folder, files__predictions=digest(path))


def appended(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with open(folder / name, "ab") as file:
            file.write(b" ")

    return change


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def test_a_run_is_what_it_wrote_until_something_is_changed(carry_out, verify, tmp_path):
    record = carry_out("seed=3", "task.metrics=[f1,accuracy]")
    source = folder_of(record, tmp_path)
    assert verify(source) == (0, ["1 run checked, nothing wrong."])
    hashed = "not what the run wrote: its hash is not that of the record"
    cases = {
        "edited": (edited, f"record.json: checksum: '{json.loads((source / 'record.json').read_text())['checksum']}' "),
        "metric": (lambda f: signed(f, metric__value=0.125), "metric.value: 0.125, metrics.f1 is "),
        "other": (lambda f: signed(f, metrics__accuracy=0.125), "metrics.accuracy: 0.125, its predictions give "),
        "seed": (lambda f: signed(f, seed=4), "seed: 4, config.seed is 3"),
        "name": (lambda f: signed(f, identity__seed=4), f"run_id: '{record.run_id}', its identity has "),
        "setting": (lambda f: signed(f, config__seed=4), "identity.seed: 3, config.seed is 4"),
        "weights": (appended("adapter/state.safetensors"), f"adapter/state.safetensors: {hashed}"),
        "outline": (appended("adapter/state.json"), f"adapter/state.json: {hashed}"),
        "predictions": (appended("predictions.parquet"), f"predictions.parquet: {hashed}"),
        "predicted": (predicted, "metrics.accuracy: "),
    }
    for name, (change, reason) in cases.items():
        folder = tmp_path / name / record.run_id
        shutil.copytree(source, folder)
        change(folder)
        code, lines = verify(folder.parent)
        assert code == 1, name
        assert any(line.startswith((f"{folder}: {reason}", f"{folder}/{reason}")) for line in lines), (name, lines)
        assert re.fullmatch(r"1 run checked, \d wrong\.", lines[-1])
    code, lines = verify(tmp_path)
    assert code == 1 and lines[-1].startswith(f"{len(cases) + 1} runs checked, ")


def test_what_is_gone_could_not_be_checked(carry_out, verify, tmp_path):
    folder = folder_of(carry_out(), tmp_path)
    for name in ("adapter/state.safetensors", "predictions.parquet"):
        (folder / name).unlink()
    assert verify(folder) == (
        0,
        [
            f"Not checked, adapter/state.safetensors: not there: {folder}",
            f"Not checked, metrics: no predictions.parquet: {folder}",
            "1 run checked, nothing wrong.",
        ],
    )


def test_a_copy_in_the_folder_of_another_run_is_wrong(store, verify):
    folder = store.add("lora", 0)
    shutil.copytree(folder, "runs/other")
    code, lines = verify("runs")
    assert code == 1
    assert lines[0] == f"runs/other/record.json: run_id: '{folder.name}' in the folder of 'other'"


def test_records_of_version_1_have_less_to_check(verify):
    code, lines = verify(ROOT / "runs" / "reference" / "precision")
    assert code == 0
    assert "Not checked, the record as a whole: version 1 has no checksum: all runs" in lines


def test_no_record_is_an_error(store, capsys):
    assert cli.main(["verify", "nowhere"]) == 2
    assert capsys.readouterr().err == "analysis: no records: nowhere: no such folder\n"


def test_an_edited_record_is_listed_and_never_bold(store, table, capsys):
    """The reader refuses it: no verb has a number of it."""
    for seed in (0, 1):
        store.add("lora", seed, 0.7)
        store.add("sora", seed, 0.6)
    folder = store.add("sora", 2, 0.6)
    path = folder / records.FILENAME
    path.write_text(path.read_text().replace('"metric.value": 0.6', '"metric.value": 0.9990'))
    reason = "checksum: "
    out = table()
    assert out.note("Not used, can't be trusted: ").startswith(f"{path}: {reason}")
    assert out.column("movie") == ["**70.00** ± 0.00 (2)", "60.00 ± 0.00 (2)"]
    for form in ("latex", "html"):
        text = html.unescape(table("runs", "--format", form))
        assert "99.90" not in text and "can't be trusted" in text
    assert cli.main(["compare", "lora", "sora", "runs"]) == 0
    compared = capsys.readouterr().out
    assert "99.90" not in compared and f"can't be trusted: {path}" in compared
    assert cli.main(["report", "runs", "--no-pictures"]) == 0
    page = Path("report.html").read_text()
    assert "0.9990" not in page and "99.90" not in page and str(path) in page
