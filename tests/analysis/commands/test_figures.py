"""The verb `figures`: files, captions, choices, what is not drawn."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from analysis.commands import cli
from analysis.plots import catalogue
from tests.analysis.plots.conftest import allocate, drawn_in_every_way, log, save_factors
from tests.conftest import folder_of
from weights import cli as handover


def files(folder: str | Path = "out") -> dict[str, str]:
    """The hash of every file in a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


@pytest.fixture
def runs(store) -> None:
    """Two seeds of two methods, with all that a run leaves behind."""
    drawn_in_every_way(store)


def call(*arguments: str) -> int:
    return cli.main(["figures", "runs", "--output", "out", *arguments])


def test_captions_say_what_is_shown_and_what_is_not(runs, capsys):
    assert call("--only", "rank-map,metric-kept-rank", "--format", "png") == 0
    text = Path("out/captions.md").read_text()
    assert "## rank-map.movie.adalora\n\nFinal rank of every layer of adalora on movie: mean of 2 seeds." in text
    assert "([png](rank-map.movie.adalora.png))" in text
    assert "- rank-map: every layer ends at one rank (5): no map is needed (shira on movie)\n" in text
    assert "- metric-kept-rank: no truncation.json" in text
    assert "## The runs\n\n- Code: commit 0123456789.\n" in text


def test_what_is_not_drawn_is_printed_with_the_reason(runs, capsys):
    assert call("--only", "rank-map,metric-kept-rank", "--format", "svg") == 0
    assert capsys.readouterr().out.splitlines() == [
        "out/rank-map.movie.adalora .svg",
        "Not drawn: rank-map: every layer ends at one rank (5): no map is needed (shira on movie)",
        "Not drawn: metric-kept-rank: no truncation.json: the run was not evaluated at lower ranks",
    ]


def test_where_nothing_can_be_drawn_the_command_fails_and_says_why(store, capsys):
    store.add("lora", 0)
    assert call("--only", "rank-map") == 2
    out, err = capsys.readouterr()
    assert out == "Not drawn: rank-map: no ranks.jsonl\n"
    assert err == "analysis: none of these figures can be drawn from the given runs\n"
    assert not Path("out").exists()


def test_kinds_that_lack_the_same_are_one_line_and_of_many_rows_three_are_named(store, capsys):
    for number in range(5):
        allocate(store.add(f"v{number}", 0), (0, [4] * 6))
    store.add("lora", 0)
    assert call("--only", "rank-map,rank-total,memory", "--format", "svg") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("Not drawn: rank-total: ")]
    assert told[1:] == [
        "Not drawn: rank-map, rank-total: no ranks.jsonl (lora on movie)",
        "Not drawn: rank-map: every layer ends at one rank (4): no map is needed "
        "(v0 on movie, v1 on movie, v2 on movie and 2 more)",
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "rank-mop"], "--only: 'rank-mop', allowed: metric-seeds, metric-parameters"),
        (["--only", ","], "--only: ',', allowed: one or more of metric-seeds"),
        (["--format", "pdf"], "--format: 'pdf', allowed: png, svg"),
        (["--pair", "x", "y"], "--pair: 'x', allowed: a folder with one finished run, or a run_id among the runs"),
    ],
)
def test_a_wrong_choice_is_one_line(store, capsys, arguments, message):
    store.add("lora", 0)
    assert call(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"analysis: {message}") and err.count("\n") == 1


def test_no_finished_run_is_one_line(store, capsys):
    store.add("lora", 0, error="no memory")
    assert call() == 2
    assert capsys.readouterr().err == "analysis: no finished run to draw; 1 failed\n"


def test_no_run_at_all_is_one_line(store, capsys):
    assert call() == 2
    assert capsys.readouterr().err == "analysis: no records: runs: no such folder\n"


def test_a_pair_is_given_by_run_id_or_by_folder(store, capsys):
    one, two = store.add("lora", 0), store.add("adalora", 0, under="elsewhere")
    for seed, folder in enumerate((one, two)):
        save_factors(folder, seed)
    assert call("--only", "subspace-similarity", "--format", "svg", "--pair", one.name, str(two)) == 0
    assert set(files()) == {f"subspace-similarity.{one.name}.{two.name}.svg", "captions.md"}


def test_an_output_that_can_not_be_written_is_one_line(store, capsys):
    store.add("lora", 0)
    Path("out").write_text("a file")
    assert call("--only", "memory") == 2
    assert capsys.readouterr().err == "analysis: can't write out/memory.movie.png: File exists\n"


@pytest.mark.filterwarnings("error")  # a glyph that the font has not got is one
def test_long_and_strange_names_give_files_and_labels(store, capsys):
    for variant in ("v" * 300 + "1", "v" * 300 + "2", "變體 $a$ $b$", "_under", "a/b", "A/B"):
        folder = store.add(variant, 0, task="任務\n$x$")
        log(folder, {5: 0.5, 10: 0.7}, {5: 0.7})
        allocate(folder, (0, [1, 2, 3, 4, 5, 6]))
    assert call("--only", "learning-curves,metric-parameters,rank-map,memory", "--format", "svg") == 0
    names = [name for name in files() if name.startswith("rank-map")]
    assert len({name.casefold() for name in names}) == 6
    assert all(len(name) < 100 and name.isascii() for name in names)


def test_failed_runs_are_no_part_of_a_picture_and_are_named_below(store, capsys):
    store.add("lora", 0)
    store.add("lora", 1, error="no memory")
    assert call("--only", "memory", "--format", "png") == 0
    assert "- Failed: lora on movie, seed 1: no memory\n" in Path("out/captions.md").read_text()


@pytest.mark.slow
def test_what_a_real_run_leaves_behind_is_drawn(carry_out, tmp_path):
    settings = ("variant=adalora", "variant.rank=3", "variant.target_rank=2", "variant.final_steps=2")
    for seed in (0, 1):
        record = carry_out(*settings, f"seed={seed}", "machine.log_every=2")
        assert handover.main(["truncate", str(folder_of(record, tmp_path)), "--rank", "1,2"]) == 0
    kinds = "learning-curves,rank-map,rank-total,delta-spectrum,metric-kept-rank,memory,subspace-similarity"
    out = tmp_path / "out"
    arguments = [str(tmp_path / "runs"), "--output", str(out), "--only", kinds, "--format", "svg"]
    assert cli.main(["figures", *arguments]) == 0
    assert {name.partition(".")[0] for name in files(out)} == {*kinds.split(","), "captions"}


def test_help_lists_kinds_that_exist(capsys):
    assert [kind.name for kind in catalogue.kinds()] == list(catalogue.NAMES)
