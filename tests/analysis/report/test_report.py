"""The verb `report`: what the file holds, byte for byte the same, and nothing of a record taken for markup."""

from __future__ import annotations

import argparse
import base64
import json
import re
import statistics
from pathlib import Path

import pytest

from analysis.commands import cli
from analysis.records import runs
from analysis.report import verdicts
from analysis.tables import rows
from tests.analysis.interpreter import python

EVIL = "<script>alert(1)</script>"


def two_rows(store, seeds: int = 3, gap: float = 0.1) -> None:
    """Two variants with the same seeds, the second one better."""
    for seed in range(seeds):
        store.add("lora", seed, 0.7 + seed / 100)
        store.add("sora", seed, 0.7 + gap + seed / 101)


# -- the file ---------------------------------------------------------------------------------


def test_the_file_asks_for_nothing_from_elsewhere(store, report):
    two_rows(store)
    page = report("runs", "--only", "memory")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}' in page
    assert all(source.startswith("data:") for source in re.findall(r'\ssrc="([^"]*)"', page))
    assert all(target.startswith(("#", "data:,")) for target in re.findall(r'\shref="([^"]*)"', page))
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|innerHTML|eval\(", page)


def test_the_page_says_what_makes_it_once_more(store, report):
    two_rows(store)
    page = report("runs", "--no-pictures", "--title", "It's ours", "--baseline", "sora", "--memory")
    text = page.section("regenerate")
    command = "python -m analysis report runs '--title=It'\"'\"'s ours' --baseline=sora --no-pictures --memory"
    assert command in text
    assert re.search(r"git checkout [0-9a-f]{40}", text) or "its commit is not known" in text
    assert all(name in text for name in ("python 3.", "matplotlib ", "scipy ", "git.commit 0123456789abcdef"))


def test_that_command_parses_to_the_same_options(store):
    arguments = ["report", "b", "a", "--title", "x y", "--only", "memory", "--group", "budget", "--memory"]
    from analysis.commands.report import _command

    options = cli.parser().parse_args(arguments)
    same = cli.parser().parse_args(_command(options))
    assert vars(same) | {"runs": None} == vars(options) | {"runs": None}
    assert same.runs == sorted(options.runs)


def test_the_default_is_a_file_where_one_is(store, report, capsys):
    two_rows(store)
    report()
    out = capsys.readouterr().out
    assert out.startswith("report.html: 6 runs (6 done); 2 variants; 1 task; 1 model; seeds 0, 1, 2; study demo.")
    assert out.count("\n") == 1


def test_a_terminal_without_unicode_gets_one_line(store):
    store.add("lora", 0, study="低\n秩")
    done = python("-m", "analysis", "report", "runs", "--no-pictures", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr.decode()
    assert "study 低 秩." in done.stdout.decode("utf-8") and done.stdout.count(b"\n") == 1


# -- the table, notes and verdicts ------------------------------------------------------------


def test_the_table_is_that_of_the_verb_table(store, report, table):
    two_rows(store)
    for seed in range(2):
        store.add("lora", seed, 0.5, "opinion")
        store.add("sora", seed, 0.4, "opinion")
    plain = [[cell.replace("**", "") for cell in line] for line in table("runs").cells[1:]]
    assert report().lines == plain


def test_a_cell_is_sorted_by_its_exact_mean_and_a_blank_says_why(store, report):
    for seed, value in enumerate((0.1, 0.2, 0.4)):
        store.add("lora", seed, value)
    store.add("lora", 0, task="opinion", error="no memory")
    store.add("sora", 0, 0.5)
    page = report()
    assert f'data-value="{statistics.mean((0.1, 0.2, 0.4))}"' in page
    assert [line[2] for line in page.lines] == ["1 run failed", "no run"]
    assert 'data-status="failed"' in page and 'data-status="blank"' in page


def test_a_row_without_average_or_rank_says_why(store, report):
    both = {"metrics__accuracy": 0.9, "metrics__f1": 0.5}
    for task in ("mrpc", "rte"):
        store.add("lora", 0, 0.9, task, config={"variant.budget": 1000})
        for variant in ("adalora", "sora"):
            store.add(variant, 0, 0.9, task, config={"variant.budget": 2000}, **both)
    store.add("head", 0, 0.5, "rte", config={"variant.budget": 2000})
    page = report("runs", "--no-pictures", "--group", "budget")
    assert [(line[0], *line[3:5]) for line in page.lines] == [
        ("lora", "a metric is missing", "the only row to rank"),
        ("adalora", "80.00 (1)", "1.50"),
        ("head", "not on every task", "not on every task"),
        ("sora", "80.00 (1)", "1.50"),
    ]


def test_a_cost_that_no_run_measured_says_so(store, report):
    store.add("lora", 0, 0.5, memory__adapter_file=None)
    assert "not measured" in report().lines[0]


def test_what_is_wrong_stands_at_the_top(store, report):
    two_rows(store)
    store.add("sora", 9, 0.5, git__commit="f" * 40, git__dirty=True)
    store.add("sora", 8, error="no memory")
    store.add("dora", 0, 0.5, metric__checkpoint="last", versions__torch="2.7")
    store.add("dora", 1, 0.5, metric__checkpoint="last", versions__torch="2.8")
    store.raw("bad", "{")
    text = report().section("flags")
    assert "Mixed code in one comparison: commit 0123456789" in text
    assert "1 run of 9 from a tree with uncommitted changes" in text
    assert 'Mixed library versions in one comparison: torch "2.7", "2.8"' in text
    assert "Unequal protocols on movie: checkpoint best (7 runs), last (2 runs)." in text
    assert "Failed: sora checkpoint=best on movie, seed 8: no memory" in text
    assert "Not used, can't be trusted: runs/bad/record.json" in text


def test_where_nothing_is_wrong_the_top_says_that(store, report):
    two_rows(store)
    assert "Nothing is flagged" in report().section("flags")


def test_every_row_is_compared_with_lora(store, report):
    two_rows(store)
    store.add("adalora", 0, 0.6)
    text = report().section("verdicts")
    assert "Every row against lora (the method that the others are variants of" in text
    assert "What weakens these comparisons" in text
    assert "Unpaired, not used, adalora and lora on movie: lora seeds 1, 2." in text
    assert "sora is better than lora on movie by 9.99 ± 0.01 points" in text
    assert "On movie the data don't say: adalora" in text


def test_what_stands_at_the_top_is_not_said_again_below_the_verdicts(store, report):
    two_rows(store)
    store.raw("bad", "{")
    page = report()
    assert "can't be trusted" in page.section("flags") and "can't be trusted" not in page.section("verdicts")


def test_ranks_that_can_be_tested_are_drawn(store, report):
    for number, variant in enumerate(("lora", "sora", "adalora")):
        for task in "abcde":
            for seed in range(2):
                store.add(variant, seed, 0.5 + number / 10 + seed / 100, task)
    page = report("runs", "--only", "memory")
    assert "critical-difference . Average ranks of all rows" in page.section("verdicts")
    assert "critical-difference ." not in report("runs", "--no-pictures").section("verdicts")


def test_without_lora_the_row_with_the_most_seeds_in_common_is_the_baseline(store):
    for variant, seeds in (("a", (0,)), ("b", (0, 1, 2)), ("c", (1, 2)), ("d", (7,))):
        for seed in seeds:
            store.add(variant, seed)
    row, why = verdicts.choose(rows.build(runs.read(["runs"])))
    assert row.label == "b" and why.startswith("of all rows it has the most seeds in common")


def test_of_several_loras_the_one_with_the_most_partners_is_the_baseline(store):
    for rank, seeds in ((4, (0,)), (8, (0, 1))):
        for seed in seeds:
            store.add("lora", seed, config={"variant.rank": rank})
    for seed in (0, 1):
        store.add("sora", seed)
    row, _ = verdicts.choose(rows.build(runs.read(["runs"])))
    assert row.label == "lora rank=8"


def test_rows_that_share_no_seed_are_not_compared(store, report):
    store.add("lora", 0)
    store.add("sora", 1)
    assert "Nothing is compared: no two rows have done runs on one task with one seed." in report().section("verdicts")


def test_many_rows_are_compared_when_asked_alone(store, report):
    for number in range(verdicts.MOST_ROWS + 1):
        store.add(f"v{number}", 0)
    assert "there are 101 rows, and --baseline names none of them" in report().section("verdicts")
    assert "Of 100 comparisons" in report("runs", "--no-pictures", "--baseline", "v7").section("verdicts")


# -- pictures ---------------------------------------------------------------------------------


def images(page: str) -> dict[str, bytes]:
    """The pictures in a page by format and number."""
    found = re.findall(r'<img src="data:image/([a-z+]+);base64,([^"]*)"', page)
    return {f"{number} {form}": base64.b64decode(content) for number, (form, content) in enumerate(found)}


def test_pictures_are_in_the_page_with_captions_and_reasons(store, report):
    two_rows(store)
    page = report("runs", "--only", "metric-time,rank-map")
    ((name, content),) = images(page).items()
    assert name == "0 svg+xml" and b"<svg" in content
    text = page.section("pictures")
    assert "metric-time.movie . accuracy on movie" in text
    assert "rank-map no ranks.jsonl" in text


def test_a_picture_that_is_large_as_svg_is_a_png(store, report, monkeypatch):
    from analysis.report import images as drawing

    two_rows(store)
    monkeypatch.setattr(drawing, "LARGE", 1000)
    small = next(iter(images(report("runs", "--only", "memory")).items()))
    assert small[0] == "0 png" and small[1].startswith(b"\x89PNG")


def test_pictures_beyond_the_most_are_named_with_the_command_that_draws_them(store, report, monkeypatch):
    from analysis.report import images as drawing

    monkeypatch.setattr(drawing, "MOST", 1)
    for task in ("a", "b", "c"):
        store.add("lora", 0, task=task)
    page = report("runs", "--only", "memory")
    assert len(images(page)) == 1
    more = "the page holds 1 pictures of a kind; `figures --only memory` draws all (memory.b, memory.c)"
    assert more in page.section("pictures")


# -- untrusted text and odd inputs ------------------------------------------------------------


def test_nothing_from_a_record_becomes_markup(store, report):
    for seed in range(2):
        store.add(EVIL, seed, task=f'"{EVIL}', model=f"'{EVIL}", config={f"x.{EVIL}": f"</script>{EVIL}<!--"})
    store.add("lora", 0, task=f'"{EVIL}', error=f"</ScRiPt>{EVIL}", overrides=[f"x={EVIL}"], study=EVIL)
    (store.add("sora", 0) / "tracker.json").write_text(json.dumps({"name": EVIL, "url": f"javascript:{EVIL}"}))
    page = report("runs", "--only", "memory", "--title", EVIL)
    assert "<script>alert" not in page and "<!--" not in page
    assert page.count("<script") == page.count("</script>") == 5 and page.lower().count("</script") == 5
    assert EVIL in page.column("variant") and EVIL in page.section("flags")
    assert page.lines[0][0] == EVIL or any(line[0].startswith(EVIL) for line in page.lines)


@pytest.mark.parametrize(
    "name", ["低秩 🙂 Ünïcödé", "v" * 3000, "two\nlines", "a\u202eb", " x", "{{ 7 * 7 }}", "&amp;"]
)
def test_strange_names_are_shown_letter_by_letter(store, report, name):
    store.add(name, 0)
    store.add("w", 1)
    page = report()
    assert name in page.column("variant")
    assert sorted(line[0] for line in page.lines) == sorted([" ".join(name.split()), "w"])


def test_one_seed_has_no_spread_and_one_row_no_verdict(store, report):
    store.add("lora", 0)
    page = report("runs", "--only", "memory,learning-curves")
    assert page.lines[0][:2] == ["lora", "80.00 (1)"] and "±" not in page.lines[0][1]
    assert "Nothing is compared" in page.section("verdicts")


def test_a_study_of_failures_is_a_page_of_reasons(store, report):
    store.add("lora", 0, error="no memory")
    store.add("sora", 0, task="opinion", error="no memory")
    page = report("runs")
    assert "No run is done: there are no numbers." in page.section("table")
    assert "No run is done." in page.section("pictures")
    assert [line[1:3] for line in page.lines] == [["1 run failed", "no run"], ["no run", "1 run failed"]]


def test_a_failed_run_that_may_belong_to_several_rows_is_one_run_of_each(store, report):
    for rank in (4, 8):
        store.add("lora", 0, config={"variant.rank": rank})
    store.without_config(store.add("lora", 1, error="early"))
    page = report()
    assert page.data("runs")["count"] == 3
    assert page.data("runs")["row"] == {"all": [[0], [0, 1], [1]]} or page.data("runs")["row"]["all"][1] == [0, 1]


def test_two_hundred_variants_make_a_table(store, report):
    for number in range(200):
        store.add(f"v{number}", 0, number / 200)
    page = report()
    assert [line[0] for line in page.lines] == [f"v{number}" for number in range(200)]


def test_groups_and_published_numbers_are_in_the_table(store, report):
    store.add("lora", 0, 0.9, "rte", config={"variant.budget": 1000})
    store.add("sora", 0, 0.9, "rte", config={"variant.budget": 2000})
    text = report("runs", "--no-pictures", "--group", "budget", "--published", "adalora2023").section("table")
    assert "budget 1,000" in text and "published by others, another protocol" in text


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "no records: nowhere: no such folder"),
        (["runs", "--baseline", "sra"], "compare: no row is called 'sra'; rows: 'lora', 'sora'"),
        (["runs", "--only", "rank-mop"], "--only: 'rank-mop', allowed: metric-seeds, metric-parameters"),
        (["runs", "--no-pictures", "--output", "no/where.html"], "can't write no/where.html: No such file"),
    ],
)
def test_an_error_is_one_line_and_leaves_no_file(store, capsys, arguments, message):
    two_rows(store)
    assert cli.main(["report", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"analysis: {message}") and err.count("\n") == 1
    assert not list(Path().glob("*.html"))


def test_pictures_are_chosen_or_left_out_but_not_both(store, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", "runs", "--only", "memory", "--no-pictures"])
    assert stop.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_the_options_are_those_of_the_table():
    options = cli.parser().parse_args(["report", "runs", "--group", "budget", "--memory"])
    assert isinstance(options, argparse.Namespace) and options.group == "budget" and options.memory
