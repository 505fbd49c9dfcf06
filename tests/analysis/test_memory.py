"""The memory of a table and of a frame: it does not grow with the number of runs, but for what this file names."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from analysis import arrow, cli, spool, tally
from analysis.reading import Reader
from tests.analysis.conftest import METRIC
from trainer import identity
from trainer import record as records

TASKS = ("movie", "opinion")
VERBS = {
    "md": ["table", "--format", "md"],
    "csv": ["table", "--format", "csv"],
    "latex": ["table", "--format", "latex", "--group", "budget"],
    "html": ["table", "--format", "html", "--memory"],
    "frame as csv": ["collect", "--format", "csv"],
    "frame as parquet": ["collect", "--format", "parquet"],
}


def write(folder: Path, settings: int, seeds: int) -> int:
    """A run for each of these settings, task and seed, failed ones among them; returns their number."""
    number = 0
    for lr in range(settings):
        for task in TASKS:
            for seed in range(seeds):
                failed = number % 100 == 99
                row = {
                    "version": records.VERSION,
                    "study": "demo",
                    "variant": "lora",
                    "task": task,
                    "model": "minilm",
                    "seed": seed,
                    "status": "failed" if failed else "done",
                    "overrides": [f"seed={seed}", f"optim.lr={lr}"],
                    "config.seed": seed,
                    "config.data.seed": seed,
                    "config.optim.lr": lr,
                    "config.task.name": task,
                    **{f"config.variant.field{place}": place for place in range(20)},
                    "git.commit": "0123456789abcdef",
                    "finished": f"2026-01-01T00:00:{seed:06d}",
                }
                row |= {"error": "no memory"} if failed else {**METRIC, "metric.value": number * 0.37 % 1}
                row |= {} if failed else {"time.train": number * 0.71 % 9, "memory.peak_rss": 700 * 2**20 + number}
                config = {name.removeprefix("config."): row[name] for name in row if name.startswith("config.")}
                row["run_id"] = identity.run_id(config)
                home = folder / row["run_id"]
                home.mkdir(parents=True)
                text = json.dumps(row, indent=1, sort_keys=True)
                (home / records.FILENAME).write_text(text + "\n", encoding="utf-8")
                number += 1
    return number


# Settings and seeds. Both kinds of growth start from the first.
SIZES = {"few": (4, 80), "seeds": (4, 400), "settings": (124, 8)}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """By name, a study's folder and its number of runs."""
    folders = {name: tmp_path_factory.mktemp(name) for name in SIZES}
    return {name: (folders[name], write(folders[name], *size)) for name, size in SIZES.items()}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read, counted and written at once is less than the small study has."""
    monkeypatch.setattr(Reader, "_AT_ONCE", 50)
    monkeypatch.setattr(tally, "_AT_ONCE", 50)
    monkeypatch.setattr(arrow, "_BATCH", 50)
    monkeypatch.setattr(spool, "_IN_MEMORY", 1)


def peak(folder: Path, verb: str, out: Path) -> int:
    """The most bytes that Python's objects took, after a first call that imports."""
    arguments = [VERBS[verb][0], str(folder), *VERBS[verb][1:], "--output", str(out)]
    assert cli.main(arguments) == 0
    tracemalloc.start()
    try:
        assert cli.main(arguments) == 0
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("verb", VERBS)
def test_a_further_seed_takes_no_more_than_its_place_in_an_index(studies, verb, tmp_path):
    (small, few), (large, many) = studies["few"], studies["seeds"]
    growth = peak(large, verb, tmp_path / "out") - peak(small, verb, tmp_path / "out")
    # First the names of all folders, some seventy bytes each; later, where its row is, its seed and its value: forty.
    assert growth / (many - few) < 100


@pytest.mark.parametrize("verb", VERBS)
def test_a_further_setting_takes_little_more_than_its_cells(studies, verb, tmp_path):
    small, large = studies["few"][0], studies["settings"][0]
    growth = peak(large, verb, tmp_path / "out") - peak(small, verb, tmp_path / "out")
    cells = len(TASKS) * (SIZES["settings"][0] - SIZES["few"][0])
    # What it is called, its numbers as they are printed, its runs. A frame has no cells: what its rows have in common.
    assert growth / cells < (1200 if verb.startswith("frame") else 5000 if verb == "html" else 3500)
