"""Records → runs in points: which count, which belong together, and in what order."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from analysis.records import runs
from analysis.tables import cells, costs
from trainer import record as records
from trainer.machine import garbage


@pytest.fixture
def study(store):
    """Two variants with seeds, failed and pruned runs, a run in two places, and a part without a number."""
    for number, variant in enumerate(("lora", "adalora")):
        for seed in (3, 1, 2):
            store.add(variant, seed, 0.7 + seed / 100, config={"data.seed": seed}, time__train=0.1 * seed + number)
        store.add(variant, 9, error=f"no memory {number}")
    store.add("lora", 4, memory__gradients=None, params__adapter_end=300_000)
    store.add("lora", 5, None, status="pruned", metric__value=None, **_without_metric())
    store.add("lora", 1, 0.71, under="copy", config={"data.seed": 1}, time__train=0.1)
    return store


def _without_metric():
    return {f"metric__{name}": None for name in ("name", "higher_is_better", "split", "checkpoint")}


def test_a_run_is_its_record_and_its_folder(study):
    found = runs.read(["runs"])
    for status in records.STATUSES:
        own = [run for point in found.having(status) for run in point.runs]
        assert len(own) == found.count(status) > 0
        for run in own:
            read = records.read(run.folder)
            assert run.folder == Path("runs") / run.record.run_id
            assert read is not None and run.record.row() == read.row() and run.record.status == status


def test_what_a_process_has_frozen_stays_out_of_its_collections(study):
    garbage.freeze()
    before = gc.get_freeze_count()
    runs.read(["runs"])
    assert gc.isenabled() and gc.get_freeze_count() >= before > 0


def test_runs_are_by_seed_then_by_run_id(store):
    for seed, name in ((2, "c"), (1, "b"), (1, "a"), (3, "d")):
        store.add("lora", seed, run_id=name, config={"seed": seed})
    (point,) = runs.read(["runs"]).having("done")
    assert [run.record.run_id for run in point.runs] == ["a", "b", "c", "d"]
    assert [run.record.run_id for run in runs.ordered([point])] == ["a", "b", "c", "d"]


def test_what_many_records_say_is_held_once(study):
    point = max(runs.read(["runs"]).points, key=lambda point: len(point.runs))
    first, *others = [run.record for run in point.runs]
    for other in others:
        assert other.git is first.git and other.versions is first.versions
        assert other.config.shared is first.config.shared


def test_an_option_that_came_later_and_is_at_its_default_splits_no_row(store):
    leaves = {"variant.kind": "LoRA", "seed": 0}
    store.add("lora", 0, **{f"identity.{name}": value for name, value in leaves.items()})
    store.add("lora", 1, config={"variant.later": 3}, **{f"identity.{n}": v for n, v in (leaves | {"seed": 1}).items()})
    (point,) = runs.read(["runs"]).points
    assert [run.record.seed for run in point.runs] == [0, 1]


def test_a_setting_at_its_default_is_shown_beside_one_that_is_not(store):
    store.add("lora", 0, **{"identity.seed": 0})
    store.add("lora", 0, config={"variant.rank": 4}, **{"identity.seed": 0, "identity.variant.rank": 4})
    from analysis.tables import rows

    labels = [row.label for row in rows.build(runs.read(["runs"])).rows]
    assert labels == ["lora rank=4", "lora rank=8"]


def test_folders_that_are_named_twice_count_once(study):
    once, twice = runs.read(["."]), runs.read([".", "runs", Path("runs").resolve(), "./runs/../copy"])
    assert [run.record for run in twice.done] == [run.record for run in once.done]
    assert [each.run_id for each in twice.duplicates] == [each.run_id for each in once.duplicates]
    assert len(once.duplicates) == 1 and not once.duplicates[0].differs


def test_a_cost_without_all_of_its_parts_is_none(study):
    row = next(row for row in cells.build(_rows()).rows if row.variant == "lora")
    (cell,) = cells.build(_rows(), every_cost=True).cells[1]
    assert cell.n == len(row.runs["movie"]) == 4 and cell.seeds == (1, 2, 3, 4)
    memories = [costs.training_memory(run.record.memory) for run in row.runs["movie"]]
    known = [memory for memory in memories if memory is not None]
    assert len(known) == 3 and cell.costs.of(costs.MEMORY) == sum(known) / 3
    assert cell.costs.of(costs.CUDA) is None


def _rows():
    from analysis.tables import rows

    return rows.build(runs.read(["runs"]))
