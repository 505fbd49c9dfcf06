"""The benchmark of tables measures real studies."""

from __future__ import annotations

from benchmarks import analysis_speed
from trainer.record import Record


def test_its_records_are_records_of_runs_with_distinct_settings():
    rows = list(analysis_speed.rows(300))
    records = [Record.from_row(row) for row in rows]
    assert len({record.run_id for record in records}) == 300
    assert {record.seed for record in records} == set(range(analysis_speed.SEEDS))
    assert len({record.task for record in records}) > 5 and len({record.variant for record in records}) > 1
    assert {record.status for record in records} == {"done", "failed"}
    assert rows == list(analysis_speed.rows(300)), "the same each time"


def test_it_measures_the_floor_and_the_verbs():
    verbs = {name: analysis_speed.VERBS[name] for name in ("table md", "collect csv")}
    found = analysis_speed.measure(20, 1, verbs)
    assert list(found) == ["floor", *verbs]
    assert found["floor"]["ratio"] == 1
    assert all(row["seconds"] > 0 and row["peak_mib"] > 1 for row in found.values())
