"""`record.json`: what is written is what is read, and nothing half-written is ever read."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from trainer import record as records
from trainer.record import CorruptRecord, Data, Memory, Metric, Params, Rank, Record, Steps, Time

IDENTITY = {
    "run_id": "a1b2",
    "study": "demo",
    "variant": "lora",
    "task": "movie",
    "model": "minilm",
    "seed": 3,
}


def done(**changes: object) -> Record:
    """The least that a finished run has."""
    return Record(**{**IDENTITY, "metric": Metric(value=0.8), **changes})


def full() -> Record:
    """A record with something in every group, and values that JSON could spoil."""
    return done(
        started="2026-01-02T03:04:05Z",
        finished="2026-01-02T03:05:05Z",
        overrides=["variant=lora", "task.name=größe | 低秩"],
        config={
            "variant.rank": 8,
            "variant.alpha": 16.0,
            "variant.targets": ["query", "value"],
            "variant.rank_pattern.layer.0.query": 4,
            "optim.lr": 1e-05,
            "optim.bias": False,
            "seed": 3,
        },
        git={"commit": "0" * 40, "dirty": False},
        versions={"python": "3.11.7", "torch": "2.13.0"},
        hardware={"cpu": "two cores", "cpus": 2},
        metric=Metric(
            name="accuracy",
            value=0.1 + 0.2,
            higher_is_better=True,
            split="validation",
            checkpoint="best",
            step=120,
        ),
        metrics={"accuracy": 0.1 + 0.2, "loss": 1e-300},
        data=Data(protocol="dev", train=1500, select=300, report=300, labels=2, truncated=0),
        steps=Steps(total=120, done=120, epochs=3.0, skipped=0),
        params=Params(total=22_713_216, head=770, adapter_start=331_776, effective=331_776),
        rank=Rank(layers=12, start=96, end=64),
        memory=Memory(weights=2**40, gradients=0, optimizer=1, activations=2, peak_rss=3),
        time=Time(train=12.5, eval=1.25, tokens_per_second=4321.0),
    )


def failed() -> Record:
    return Record(**IDENTITY, status="failed", error="ValueError: rank 0\n  is not allowed: “1 …”")


EVERY_KIND = pytest.mark.parametrize("make", [done, full, failed])


@EVERY_KIND
def test_row_and_back(make):
    assert Record.from_row(json.loads(json.dumps(make().row()))) == make()


@EVERY_KIND
def test_written_and_read(make, tmp_path):
    path = records.write(make(), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "record.json"
    assert records.read(path.parent) == make()


def test_a_row_is_flat_and_names_are_paths():
    row = full().row()
    assert row["metric.value"] == 0.1 + 0.2
    assert row["config.variant.rank_pattern.layer.0.query"] == 4
    assert row["memory.optimizer"] == 1
    assert not any(isinstance(value, dict) for value in row.values())


def test_what_was_not_measured_is_absent_and_zero_is_kept():
    row = full().row()
    assert row["memory.gradients"] == 0 and row["data.truncated"] == 0
    assert "memory.cuda_train_allocated" not in row
    assert None not in row.values()


def test_a_setting_that_is_null_is_kept_so_that_its_absence_means_an_option_of_later_times():
    assert done(config={"variant.budget": None}).row()["config.variant.budget"] is None


def test_a_file_can_be_read_by_others_and_by_people(tmp_path):
    path = records.write(full(), tmp_path)
    assert path.stat().st_mode & 0o777 == 0o644
    text = path.read_text(encoding="utf-8")
    assert '"task.name=größe | 低秩"' in text and text.endswith("}\n")
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_the_same_record_gives_the_same_bytes(tmp_path):
    one, two = (records.write(full(), tmp_path / name).read_bytes() for name in "ab")
    assert one == two


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def control_c(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("happens, error", [(no_space, OSError), (control_c, KeyboardInterrupt)])
def test_a_write_that_stops_leaves_what_was_there(tmp_path, monkeypatch, step, happens, error):
    records.write(done(), tmp_path / "old")
    for folder in ("old", "new"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, happens)
            with pytest.raises(error):
                records.write(full(), tmp_path / folder)
    assert os.listdir(tmp_path / "old") == ["record.json"]
    assert records.read(tmp_path / "old") == done()
    assert os.listdir(tmp_path / "new") == []
    assert records.read(tmp_path / "new") is None


def test_a_disk_that_takes_half_of_a_record(tmp_path):
    # The system itself refuses the write in the middle, as a full disk does.
    records.write(done(), tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(OSError):
            records.write(full(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["record.json"]
    assert records.read(tmp_path) == done()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "change",
    [
        lambda number: {"metric": Metric(value=number)},
        lambda number: {"metrics": {"loss": number}},
        lambda number: {"time": Time(train=number)},
        lambda number: {"config": {"optim.lr": number}},
    ],
    ids=["metric.value", "metrics", "time", "config"],
)
def test_a_number_that_is_none_is_refused(tmp_path, change, number):
    with pytest.raises(ValueError):
        records.write(done(**change(number)), tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"metric": Metric()}, "metric.value: missing in a finished run"),
        ({"status": "running"}, "status: 'running', allowed: done, failed, pruned"),
        ({"variant": None}, "variant: None is not text"),
        ({"seed": True}, "seed: True is not a whole number"),
    ],
)
def test_a_record_that_could_not_be_read_is_not_written(tmp_path, change, reason):
    with pytest.raises(CorruptRecord, match=f"^{reason}$"):
        records.write(done(**change), tmp_path)
    assert os.listdir(tmp_path) == []


def test_no_record_yet_is_none(tmp_path):
    assert records.read(tmp_path) is None
    assert records.read(tmp_path / "nowhere") is None


GOOD = json.dumps(done().row())


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "Expecting value"),
        (GOOD[: len(GOOD) // 2].encode(), "line 1 column"),
        (b"\x00" * 64, "Expecting value"),
        (b"\xff\xfe{}", "invalid start byte"),
        (b"[]", "not an object"),
        (b"null", "not an object"),
        (GOOD.replace('"lora"', '"lo\\ud800ra"').encode(), "'\\ud800' in a text is a lone surrogate"),
    ],
    ids=["empty", "half", "zeros", "encoding", "list", "null", "surrogate"],
)
def test_a_file_that_is_no_record(tmp_path, content, reason):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(CorruptRecord) as error:
        records.read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'record.json'}: ")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"version": None}, "version: None, allowed: a whole number ≥ 1"),
        ({"version": "1"}, "version: '1', allowed: a whole number ≥ 1"),
        ({"version": 0}, "version: 0, allowed: a whole number ≥ 1"),
        ({"run_id": None}, "run_id"),
        ({"run_id": 7}, "run_id: 7 is not text"),
        ({"task": ["movie"]}, "task: ['movie'] is not text"),
        ({"seed": 1.5}, "seed: 1.5 is not a whole number"),
        ({"seed": True}, "seed: True is not a whole number"),
        ({"status": "running"}, "status: 'running', allowed: done, failed, pruned"),
        ({"metric": 0.8}, "metric: 0.8 is not a group"),
        ({"variant.rank": 8}, "variant.rank: variant is no group"),
        ({"metric.value": None}, "metric.value: missing in a finished run"),
        ({"metric.value": "0.8"}, "metric.value: '0.8' is not a finite number"),
        ({"metric.value": True}, "metric.value: True is not a finite number"),
        ({"metric.value": float("nan")}, "metric.value: nan is not a finite number"),
        ({"metric.value": float("inf")}, "metric.value: inf is not a finite number"),
    ],
    ids=lambda part: json.dumps(part) if isinstance(part, dict) else "",
)
def test_a_record_with_something_wrong_in_it(tmp_path, change, reason):
    row = {name: value for name, value in {**done().row(), **change}.items() if value is not None}
    (tmp_path / "record.json").write_text(json.dumps(row))
    with pytest.raises(CorruptRecord) as error:
        records.read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'record.json'}: ")
    assert reason in str(error.value).removeprefix(str(tmp_path))


OLD = ROOT / "runs" / "reference" / "families" / "01fc83bad605" / "record.json"  # of version 1


def changed(tmp_path: Path, path: Path, **changes: object) -> Path:
    """A copy of a record in which some fields were edited by hand."""
    row = json.loads(path.read_text()) | {name.replace("__", "."): value for name, value in changes.items()}
    (tmp_path / "record.json").write_text(json.dumps(row, indent=1, sort_keys=True))
    return tmp_path


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"metric__value": 0.9}, "metric.value: 0.9 is 0.7348804006494659 in metrics.pearson; one of them was edited"),
        ({"seed": 5}, "seed: 5 is 2 in config.seed; one of them was edited"),
        ({"variant": "lora"}, "variant: 'lora' is 'shira' in config.variant.name; one of them was edited"),
        ({"config.optim.lr": 0.1}, "run_id: '01fc83bad605' is not that of its config, which was edited"),
        ({"run_id": "0" * 12}, "run_id: '000000000000' is not that of its config, which was edited"),
    ],
)
def test_a_record_of_version_1_that_was_edited_is_not_believed(tmp_path, changes, reason):
    with pytest.raises(CorruptRecord) as error:
        records.read(changed(tmp_path, OLD, **changes))
    assert str(error.value).endswith(reason)


@pytest.mark.parametrize("name", ["metric.value", "seed", "study", "params.effective", "time.train", "git.commit"])
def test_a_record_that_was_edited_anywhere_is_not_believed(tmp_path, name):
    path = records.write(full(), tmp_path)
    value = json.loads(path.read_text())[name]
    edited = value + 1 if isinstance(value, int | float) else value + "x"
    with pytest.raises(CorruptRecord, match=r"checksum: .* is not that of the record, which was edited"):
        records.read(changed(tmp_path, path, **{name: edited}))


def test_a_record_of_version_1_is_read_and_what_it_did_not_know_is_blank():
    record = records.read(OLD.parent)
    assert record is not None and record.version == 1 and record.code == {} and record.extra == {}
    assert record.identity["variant._target_"] == "SHiRA" and record.identity["optim.lr"] == 0.001


def test_unknown_fields_of_a_newer_version_are_kept(tmp_path):
    newer = {"version": 9, "metric.interval": [0.1, 0.2], "energy": {"joule": 3}, "data.units": 4}
    row = {name: value for name, value in full().row().items() if name != records.CHECKSUM} | newer
    (tmp_path / "record.json").write_text(json.dumps(row | {records.CHECKSUM: records.checksum(row)}))
    record = records.read(tmp_path)
    assert record is not None and record.version == 9 and record.metric == full().metric
    assert record.extra == {name: newer[name] for name in ("metric.interval", "energy", "data.units")}
    assert records.read(records.write(record, tmp_path / "again").parent) == record


def test_a_failed_run_needs_no_metric(tmp_path):
    records.write(failed(), tmp_path)
    record = records.read(tmp_path)
    assert record is not None and record.metric.value is None and record.error == failed().error


def test_find_goes_through_every_depth_in_sorted_order(tmp_path):
    for name in ("b/run", "a/z", "a/b/c", "a", "b10", "b2"):
        records.write(done(), tmp_path / name)
    (tmp_path / "empty").mkdir()
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / ".record.json.x1y2z3").write_text("{")
    below = [os.path.relpath(folder, tmp_path) for folder in records.find(tmp_path)]
    assert below == ["a", "a/b/c", "a/z", "b/run", "b10", "b2"]
    assert list(records.find(tmp_path / "b", tmp_path / "a" / "z")) == [
        str(tmp_path / "b" / "run"),
        str(tmp_path / "a" / "z"),
    ], "roots in the order in which they are named, themselves included"


def test_escapes_that_make_whole_characters_are_read(tmp_path):
    records.write(done(variant="lo😀ra"), tmp_path)
    path = tmp_path / "record.json"
    path.write_text(path.read_text().replace("😀", "\\ud83d\\ude00"))
    record = records.read(tmp_path)
    assert record is not None and record.variant == "lo😀ra"


def test_a_run_that_has_begun_and_left_no_record_is_told(tmp_path):
    records.write(done(), tmp_path / "done")
    for name in ("done", "killed", ".hydra"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / records.CONFIG).write_text("seed: 0\n")
    (tmp_path / "folder" / "record.json").mkdir(parents=True)
    told: list[str] = []
    found = list(records.find(tmp_path, begun=told.append))
    assert told == [str(tmp_path / "killed")]
    assert found == [str(tmp_path / "done"), str(tmp_path / "folder")], "a record that can't be read is one"
    with pytest.raises(CorruptRecord, match=r"record.json: Is a directory"):
        records.read(tmp_path / "folder")


def test_find_finds_nothing_where_there_is_nothing(tmp_path):
    assert list(records.find(tmp_path, tmp_path / "nowhere")) == []


def test_a_folder_that_can_not_be_looked_into_is_told(tmp_path, monkeypatch):
    records.write(done(), tmp_path / "a")
    (tmp_path / "secret").mkdir()
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if os.path.basename(folder) == "secret":
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    told: list[OSError] = []
    assert list(records.find(tmp_path, unread=told.append)) == [str(tmp_path / "a")]
    assert [error.filename for error in told] == [str(tmp_path / "secret")]


def test_records_need_the_standard_library_and_orjson_alone():
    code = "import sys; import trainer.record; print(*{name.partition('.')[0] for name in sys.modules})"
    plain = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    loaded, before = (
        set(subprocess.run([sys.executable, "-c", text], capture_output=True, env=env, text=True).stdout.split())
        for text in (code, plain)
    )
    assert loaded - before - sys.stdlib_module_names == {"orjson", "trainer", "variants"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": 2024}, "task: 2024 is not text"),
        ({"variant": True}, "variant: True is not text"),
        ({"seed": 1.5}, "seed: 1.5 is not a whole number"),
        ({"config": {"optim.eps": float("nan")}}, "Out of range float values"),
        ({"overrides": ["task.name=caf\udce9"]}, "surrogates not allowed"),
        ({"config": {"variant.pattern": (1, 2)}}, "config.variant.pattern: "),
    ],
)
def test_a_record_that_its_reader_would_refuse_is_found_before_there_is_anything_measured(changes, message):
    blank = Record(**{**IDENTITY, **changes})
    with pytest.raises(CorruptRecord, match=message):
        records.refuse_unreadable(blank)


def test_the_record_of_a_run_that_is_yet_to_be_is_readable():
    records.refuse_unreadable(Record(**IDENTITY, config={"a.b": [1, "x", None]}, hardware={"memory": None}))
