"""Reading many records: as `record.read` reads each of them, whoever wrote the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.bases import Bases, Config
from analysis.points import Groups
from analysis.reading import Reader
from analysis.rebuild import Rebuild
from trainer import record as records
from trainer.record import CorruptRecord, Record


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A done run's row; seeds from `number`, `changes` with `__` for the dot, a None takes a name out."""
    found = {
        "version": records.VERSION,
        "run_id": f"run{number}",
        "study": "demo",
        "variant": "lora",
        "task": "movie",
        "model": "minilm",
        "seed": number,
        "status": "done",
        "overrides": ["variant=lora", f"seed={number}"],
        "config.seed": number,
        "config.data.split_seed": 7,
        "config.variant.rank": 8,
        "config.variant.alpha": 16.0,
        "config.variant.seeded": "seed",
        "config.variant.targets": ["query", "seed"],
        "config.variant.note": 'a "quoted, text": with\n "config.trap": 1',
        "git.commit": "0" * 40,
        "git.dirty": False,
        "versions.torch": "2.13.0",
        "hardware.cores": 2,
        "metric.name": "accuracy",
        "metric.value": 0.8 + number / 100,
        "metrics.accuracy": 0.8 + number / 100,
        "data.protocol": "dev",
        "data.train": 1000,
        "steps.epochs": 3.0,
        "params.head": 770,
        "time.train": 1.5,
    }
    found |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in found.items() if value is not None}


FAILED = {"status": "failed", "error": "no memory", "metric__name": None, "metric__value": None}
FAILED |= {"metrics__accuracy": None, "data__protocol": None, "data__train": None, "steps__epochs": None}


def as_written(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def put(folder: Path, text: str) -> str:
    folder.mkdir(parents=True)
    (folder / records.FILENAME).write_text(text, encoding="utf-8")
    return str(folder)


def read(*folders: str) -> tuple[dict[str, Record], dict[str, str]]:
    refused: dict[str, str] = {}
    found: dict[str, Record] = {}
    bases, groups = Bases(), Groups()
    for rows in Reader(bases).rows(folders, refused.__setitem__):
        rebuild = Rebuild(rows.names)
        numbers = list(groups.numbers(0, rows))
        for folder, values, base, number in zip(rows.folders, rows.values, rows.bases, numbers, strict=True):
            made = groups.made[groups.groups[number].made]
            found[folder] = rebuild((*values, None), bases, base, made)
    return found, refused


WRITERS = {
    "as written": as_written,
    "on one line": json.dumps,
    "other order": lambda content: json.dumps(dict(reversed(content.items())), indent=1),
    "indented by four": lambda content: json.dumps(content, indent=4, sort_keys=True),
    "escaped": lambda content: json.dumps(content, indent=1, sort_keys=True) + "\n",
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("changes", [{}, FAILED, {"variant": "größe | 低秩"}, {"rank__end": 64}, {"overrides": None}])
def test_a_record_is_what_the_plain_reader_says(tmp_path, write, changes):
    folders = [put(tmp_path / str(number), write(row(number, **changes))) for number in range(3)]
    found, refused = read(*folders)
    assert not refused
    assert found == {folder: records.read(folder) for folder in folders}


def test_files_of_several_kinds_at_once(tmp_path):
    kinds = ({}, FAILED, {"rank__end": 64}, {"git__commit": None}, {"steps__epochs": 3})
    folders = []
    for number, write in enumerate(WRITERS.values()):
        for place, changes in enumerate(kinds):
            folders.append(put(tmp_path / f"{number}{place}", write(row(number, **changes))))
    found, refused = read(*folders)
    assert not refused and found == {folder: records.read(folder) for folder in folders}


SPOILT = {
    "version": {"version": 2},
    "version as text": {"version": "1"},
    "version as a list": {"version": [1]},
    "version true": {"version": True},
    "no run_id": {"run_id": None},
    "seed": {"seed": 1.5},
    "status": {"status": "running"},
    "status failed": {"status": "failed"},
    "no value": {"metric__value": None},
    "value": {"metric__value": "0.8"},
    "nan": {"metric__value": float("nan")},
    "inf": {"time__train": float("inf")},
    "nan among all": {"metrics__accuracy": float("nan")},
    "text among all": {"metrics__accuracy": "good"},
    "unknown": {"surprise": 1},
    "unknown in a group": {"params__surprise": 1},
    "no group": {"seed__x": 1},
    "a group": {"metric": 1},
    "overrides": {"overrides": ["a", 3]},
    "unhashable": {"task": ["movie"]},
    "commit": {"git__commit": 5},
    "no settings' name": {"config.": 5},
}


@pytest.mark.parametrize("changes", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_what_the_plain_reader_refuses_is_refused_with_its_words_among_good_ones(tmp_path, changes, first):
    good = [put(tmp_path / f"good{number}", as_written(row(number))) for number in range(3)]
    bad = put(tmp_path / "bad", as_written(row(9, **changes)))
    with pytest.raises(CorruptRecord) as error:
        records.read(bad)
    found, refused = read(*([bad, *good] if first else [*good, bad]))
    assert refused == {bad: str(error.value)}
    assert set(found) == set(good)


BROKEN = {
    "half": as_written(row())[:300],
    "half of the rest": as_written(row())[:-40],
    "nothing": "",
    "a list": "[]",
    "no comma": as_written(row()).replace('"lora",\n "version"', '"lora"\n "version"'),
    "a setting that is cut": as_written(row()).replace('"config.variant.rank": 8,', '"config.variant.rank": ,'),
    "more behind": as_written(row()) + "{}",
    "a space that JSON does not know": as_written(row()) + "\u00a0",
    "a line break in a text": as_written(row()).replace('"dev"', '"d\nev"'),
    "a setting twice": as_written(row()).replace(' "config.seed"', ' "config.variant.rank": 99,\n "config.seed"'),
    "a setting behind": as_written(row()).replace('\n "data.', '\n "config.variant.rank": 99,\n "data.'),
    "a setting among the rest": as_written(row()).replace(' "seed": 0,', ' "seed": 0, "config.variant.rank": 99,'),
    "a setting twice on a line": as_written(row()).replace('"config.seed": 0,', '"config.seed": 0, "config.seed": 4,'),
    "a value twice": as_written(row()).replace(' "seed": 0,', ' "seed": 0, "metric.value": 0.9,'),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_text_is_refused_with_the_place_of_the_error(tmp_path, text):
    folder = put(tmp_path / "bad", text)
    put(tmp_path / "good", as_written(row()))
    with pytest.raises(CorruptRecord) as error:
        records.read(folder)
    found, refused = read(str(tmp_path / "good"), folder)
    assert refused == {folder: str(error.value)} and len(found) == 1


ODD = {
    "an object inside": as_written(row(config__variant__deep={"config.seed": 1, "a": 2})),
    "an object with names at the margin": as_written(row()).replace(
        '"config.variant.rank": 8', '"config.variant.rank": {\n "config.seed": 5,\n "b": 1\n }'
    ),
    "names of settings in a list": as_written(row(overrides=['"config.x": 1', "{"])),
    "no settings": as_written({name: value for name, value in row().items() if not name.startswith("config.")}),
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_an_odd_text_means_what_json_says(tmp_path, text):
    folders = [put(tmp_path / "usual", as_written(row(1))), put(tmp_path / "odd", text)]
    found, refused = read(*folders)
    assert not refused
    assert found == {folder: records.read(folder) for folder in folders}


def test_one_true_and_one_point_zero_are_not_mixed_up(tmp_path):
    values = (1, True, 1.0, [1], [True], "1")
    folders = [put(tmp_path / str(n), as_written(row(n, config__x=value))) for n, value in enumerate(values)]
    found, _ = read(*folders)
    kept = [found[folder].config["x"] for folder in folders]
    assert [(type(value), value) for value in kept] == [(type(value), value) for value in values]
    assert type(kept[4][0]) is bool


def test_runs_that_differ_in_their_seed_share_their_settings(tmp_path):
    found, _ = read(*(put(tmp_path / str(number), as_written(row(number))) for number in range(3)))
    configs = [record.config for record in found.values()]
    assert all(isinstance(config, Config) for config in configs)
    assert len({config.place for config in configs}) == 1
    assert [config["seed"] for config in configs] == [0, 1, 2]
    assert set(configs[0].seeds) == {"seed", "data.split_seed", "variant.seeded"}, "by their names, whatever is in them"


def test_sums_that_overflow_are_no_error(tmp_path):
    folders = [put(tmp_path / str(number), as_written(row(number, time__train=1.7e308))) for number in range(3)]
    found, refused = read(*folders)
    assert not refused and len(found) == 3


def test_more_folders_than_are_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(Reader, "_AT_ONCE", 2)
    folders = [put(tmp_path / str(number), as_written(row(number))) for number in range(7)]
    found, _ = read(*folders)
    assert found == {folder: records.read(folder) for folder in folders}


def test_every_file_with_other_names_and_settings(tmp_path):
    folders = [
        put(tmp_path / str(n), as_written(row(n, **{f"config__x{n}": n, f"metrics__m{n}": n}))) for n in range(6)
    ]
    found, _ = read(*folders)
    assert found == {folder: records.read(folder) for folder in folders}


def test_a_record_that_vanishes_is_told(tmp_path):
    (tmp_path / "gone").mkdir()
    found, refused = read(str(tmp_path / "gone"))
    assert not found
    assert refused == {str(tmp_path / "gone"): f"{tmp_path}/gone/record.json: vanished while the folders were read"}


def test_rows_have_everything_but_the_base(tmp_path):
    content = row(3)
    bases = Bases()
    (rows,) = Reader(bases).rows([put(tmp_path / "a", as_written(content))], print)
    base = {f"config.{name}": value for name, value in bases.items(rows.bases[0]).items()}
    assert dict(zip(rows.names, rows.values[0], strict=True)) | base == content
    assert [column[0] for column in rows.columns] == list(rows.values[0])
