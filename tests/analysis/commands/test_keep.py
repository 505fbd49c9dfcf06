"""`keep`: what of a run is committed."""

from __future__ import annotations

from pathlib import Path

from analysis.commands import cli
from tests.analysis.plots.conftest import allocate


def test_records_and_final_ranks_are_copied_and_give_the_same_table(store, table, capsys):
    for seed in range(2):
        folder = store.add("adalora", seed, 0.7 + seed / 10)
        allocate(folder, (0, [4] * 6), (9, [8, seed, 1, 1, 1, 1]))
        (folder / "metrics.jsonl").write_text("{}\n")
        store.add("full", seed, error="NonFiniteError: loss is nan" if seed else None)
    assert cli.main(["keep", "runs", "--output", "kept"]) == 0
    assert capsys.readouterr().out.startswith("4 records in kept\n")
    assert sorted(path.name for path in Path("kept").glob("*/*")) == ["ranks.jsonl"] * 2 + ["record.json"] * 4
    assert table("kept") == table("runs").replace("runs/", "kept/")
    for verb in ("agree", "keep"):
        more = ["--output", "again"] if verb == "keep" else []
        assert cli.main([verb, "kept", *more]) == 0
    assert cli.main(["keep", "runs", "--output", "kept"]) == 0, "what is there already stays as it is"


def test_another_record_of_the_run_is_not_overwritten(store, capsys):
    store.add("lora", 0, 0.7)
    assert cli.main(["keep", "runs", "--output", "kept"]) == 0
    store.add("lora", 0, 0.8)
    before = next(Path("kept").glob("*/record.json")).read_bytes()
    assert cli.main(["keep", "runs", "--output", "kept"]) == 2
    assert "record.json: another record.json is there; allowed: the same one, or none" in capsys.readouterr().err
    assert next(Path("kept").glob("*/record.json")).read_bytes() == before


def test_ranks_in_training_are_not_overwritten_by_final_ones(store, capsys):
    """Into the folder that the runs are in."""
    folder = store.add("adalora", 0)
    allocate(folder, (0, [4] * 6), (9, [8, 0, 1, 1, 1, 1]))
    before = (folder / "ranks.jsonl").read_bytes()
    assert cli.main(["keep", "runs", "--output", "runs"]) == 2
    assert "ranks.jsonl: another ranks.jsonl is there; allowed: the same one, or none" in capsys.readouterr().err
    assert (folder / "ranks.jsonl").read_bytes() == before


def test_ranks_that_a_record_counts_and_that_are_not_there_are_named(store, capsys):
    folder = store.add("adalora", 0, rank__end=12)
    assert cli.main(["keep", "runs", "--output", "kept"]) == 0
    assert f"Without its ranks: runs/{folder.name}: no ranks.jsonl\n" in capsys.readouterr().out


def test_a_record_that_cant_be_trusted_is_not_copied(store, capsys):
    store.add("lora", 0)
    store.raw("bad", "{}")
    assert cli.main(["keep", "runs", "--output", "kept"]) == 2
    assert "record.json: version" in capsys.readouterr().err and not Path("kept").exists()
