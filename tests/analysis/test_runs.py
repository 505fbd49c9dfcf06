"""Runs that wait in a file are the runs that are in memory."""

from __future__ import annotations

import math
import random
import tempfile
from pathlib import Path

import pytest

from analysis import brief, cli, costs, grid, runs, spool, table
from trainer import record as records


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


@pytest.mark.parametrize("form", table.FORMATS)
@pytest.mark.parametrize("in_memory", [1, 2**20], ids=["on disk", "small"])
def test_a_table_of_them_is_the_same(study, form, in_memory, monkeypatch):
    monkeypatch.setattr(spool, "_IN_MEMORY", in_memory)
    held = table.render(runs.read(["."]), form)
    with runs.stored(["."]) as found:
        assert table.render(found, form) == held


def test_a_run_is_its_record_and_its_folder(study):
    with runs.stored(["runs"]) as found:
        for status in records.STATUSES:
            own = [run for point in found.having(status) for run in runs.Runs(found, [point])]
            assert len(own) == found.count(status) > 0
            for run in own:
                assert run.record == records.read(run.folder) and run.record.status == status
                assert run.folder == Path("runs") / run.record.run_id
    held = runs.read(["runs"])
    assert [run.record for run in held.done] == [records.read(run.folder) for run in held.done]


def test_runs_are_by_seed_then_by_run_id(store):
    d, b, c = (store.add("lora", seed).name for seed in (3, 1, 2))
    ids = [b, c, d]
    with runs.stored(["runs"]) as found:
        (point,) = found.having("done")
        stored = runs.Runs(found, [point])
        assert [run.record.run_id for run in stored] == ids
        assert stored[0].record.run_id == ids[0] and stored[-1].record.run_id == d and len(stored) == 3
        assert [run.record.run_id for run in stored[1:3]] == ids[1:3]
        assert [values[0] for values in stored.brief()] == [1, 2, 3]
    assert [run.record.run_id for run in runs.Runs(runs.read(["runs"]), [point])] == ids


def test_the_brief_of_a_run_is_what_its_row_has(study):
    with runs.stored(["runs"]) as found:
        (point, *_) = found.having("done")
        for run, values in zip(runs.Runs(found, [point]), runs.Runs(found, [point]).brief(), strict=True):
            row = run.record.row()
            assert dict(zip(brief.NAMES, values, strict=True)) == {name: row.get(name) for name in brief.NAMES}
            assert brief.of(run.record) == values


def test_folders_that_are_named_twice_count_once(study):
    once, twice = runs.read(["."]), runs.read([".", "runs", Path("runs").resolve(), "./runs/../copy"])
    assert [run.record for run in twice.done] == [run.record for run in once.done]
    assert [each.run_id for each in twice.duplicates] == [each.run_id for each in once.duplicates]
    assert len(once.duplicates) == 1 and not once.duplicates[0].differs


def test_sums_are_exact_however_many_and_in_whatever_order():
    draw = random.Random(0)
    name = "time.train"
    cost = next(cost for cost in costs.COSTS if cost.names == (name,))
    values = [draw.uniform(-1, 1) * 10.0 ** draw.randrange(-12, 13) for _ in range(2000)]
    for _ in range(3):
        draw.shuffle(values)
        totals = costs.Totals()
        blank = {name: [] for each in costs.COSTS for name in each.names}
        for start in range(0, len(values), 37):
            totals.add(costs.values(blank | {name: values[start : start + 37]}))
        assert totals.means().of(cost) == math.fsum(values) / len(values)


def test_a_cost_without_all_of_its_parts_is_none(study):
    row = next(row for row in grid.build(_rows()).rows if row.variant == "lora")
    (cell,) = grid.build(_rows(), every_cost=True).cells[1]
    assert cell.n == len(row.runs["movie"]) == 4 and cell.seeds == (1, 2, 3, 4)
    memories = [costs.training_memory(run.record.memory) for run in row.runs["movie"]]
    known = [memory for memory in memories if memory is not None]
    assert len(known) == 3 and cell.costs.of(costs.MEMORY) == sum(known) / 3
    assert cell.costs.of(costs.CUDA) is None


def _rows():
    from analysis import rows

    return rows.build(runs.read(["runs"]))


@pytest.mark.parametrize("verb", ["table", "collect", "report"])
def test_a_full_disk_is_named_in_one_line(study, verb, monkeypatch, capsys):
    monkeypatch.setattr(spool, "_IN_MEMORY", 1)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *_, **__: open("/dev/full", "w+b"))  # noqa: SIM115
    assert cli.main([verb, "."]) == 2
    line = f"analysis: TMPDIR: {tempfile.gettempdir()}, allowed: a folder with room for the rows of all runs\n"
    assert capsys.readouterr() == ("", line)
