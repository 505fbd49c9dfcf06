"""The benchmark of tables measures real studies."""

from __future__ import annotations

import pytest

from benchmarks import analysis_speed
from trainer.record import Record

pytestmark = pytest.mark.slow


def test_its_records_are_records_of_runs_with_distinct_settings():
    rows = list(analysis_speed.rows(300))
    records = [Record.from_row(row) for row in rows]
    assert len({record.run_id for record in records}) == 300
    assert {record.seed for record in records} == set(range(analysis_speed.SEEDS))
    assert len({record.task for record in records}) > 5 and len({record.variant for record in records}) > 1
    assert {record.status for record in records} == {"done", "failed"}
    assert rows == list(analysis_speed.rows(300)), "the same each time"


def test_a_study_of_as_many_records_may_have_more_seeds_of_fewer_settings():
    few, many = (list(analysis_speed.rows(300, seeds)) for seeds in (5, 30))
    assert {row["seed"] for row in many} == set(range(30))
    settings = [len({(row["variant"], row["task"], row["config.optim.lr"]) for row in own}) for own in (few, many)]
    assert settings == [60, 10]
    assert all(Record.from_row(row).seed == row["seed"] for row in many)


def test_memory_is_shown_by_number_of_records_with_its_growth_for_a_run():
    peaks = {1000: 20.0, 3000: 20.5, 10_000: 20.0 + 9000 * 100 / 2**20}
    measured = {count: {"table md": {"peak_mib": peak}} for count, peak in peaks.items()}
    assert list(analysis_speed.memory("more seeds", measured)) == [
        "| more seeds, peak MiB | 1,000 | 3,000 | 10,000 | bytes a run |",
        "|---|---:|---:|---:|---:|",
        "| table md | 20.0 | 20.5 | 20.9 | 100 |",
    ]


def test_it_measures_the_floor_and_the_verbs():
    verbs = {name: analysis_speed.VERBS[name] for name in ("table md", "collect csv")}
    found = analysis_speed.measure(20, 1, verbs)
    assert list(found) == ["floor", *verbs]
    assert found["floor"]["ratio"] == 1
    assert all(row["seconds"] > 0 and row["peak_mib"] > 1 for row in found.values())
