"""`readme`: tables, verdicts, rates and pictures of a text are those of the committed records."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.commands import cli

ROOT = Path(__file__).parents[3]

TEXT = """\
# Title

<!-- table:families -->
<!-- /table -->

Between.

<!-- table:families --memory --group budget -->
old
<!-- /table -->
behind
"""


@pytest.fixture
def study(store):
    """A reference study and a text with two tables of it."""
    for variant, value in (("lora", 0.8), ("sora", 0.7)):
        store.add(variant, 0, value, under="runs/reference/families")
    Path("README.md").write_text(TEXT)


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["readme", "README.md", *arguments])
    return code, *capsys.readouterr()


def test_tables_are_put_between_their_markers(study, capsys, table):
    assert call(capsys) == (0, "README.md: 2 blocks, now as in runs/reference\n", "")
    plain = table("runs/reference/families")
    split = table("runs/reference/families", "--memory", "--group", "budget")
    assert Path("README.md").read_text() == (
        f"# Title\n\n<!-- table:families -->\n\n{plain}\n<!-- /table -->\n\nBetween.\n\n"
        f"<!-- table:families --memory --group budget -->\n\n{split}\n<!-- /table -->\nbehind\n"
    )


def test_a_second_time_nothing_changes(study, capsys):
    call(capsys)
    before = Path("README.md").stat().st_mtime_ns, Path("README.md").read_bytes()
    assert call(capsys) == (0, "README.md: 2 blocks, as in runs/reference\n", "")
    assert (Path("README.md").stat().st_mtime_ns, Path("README.md").read_bytes()) == before


def test_check_fails_where_a_table_differs_and_shows_how(study, capsys):
    assert call(capsys, "--check")[0] == 1
    assert Path("README.md").read_text() == TEXT, "a check changes nothing"
    call(capsys)
    assert call(capsys, "--check")[0] == 0
    text = Path("README.md").read_text()
    Path("README.md").write_text(text.replace("70.00", "90.00", 1))
    code, out, _ = call(capsys, "--check")
    assert code == 1
    assert any(line.startswith("-| sora") and "90.00" in line for line in out.splitlines())
    assert any(line.startswith("+| sora") and "70.00" in line for line in out.splitlines())
    assert out.endswith("README.md: it differs from runs/reference; without --check it is regenerated\n")


def test_check_fails_where_a_record_changes(study, store, capsys):
    call(capsys)
    store.add("sora", 0, 0.9, under="runs/reference/families")
    assert call(capsys, "--check")[0] == 1


def test_markers_inside_a_sentence_are_words(store, capsys):
    Path("README.md").write_text("Between `<!-- table:STUDY -->` and `<!-- /table -->`.\n")
    assert call(capsys, "--check") == (0, "README.md: 0 blocks, as in runs/reference\n", "")


def test_a_text_without_tables_says_so(store, capsys):
    Path("README.md").write_text("Nothing here.\n")
    assert call(capsys, "--check") == (0, "README.md: 0 blocks, as in runs/reference\n", "")


@pytest.mark.parametrize(
    "text, error",
    [
        (
            "\n<!-- table:famlies -->\n<!-- /table -->",
            "line 2: no study 'famlies' in runs/reference, allowed: families",
        ),
        ("<!-- table:families -->\n", "line 1: no <!-- /table --> for this table"),
        ("a\n<!-- /table -->", "line 2: <!-- /table --> without a table before it"),
        (
            "<!-- table:families -->\n<!-- table:families -->\n<!-- /table -->",
            "line 2: a table inside the table of line 1",
        ),
        (
            "<!-- table:families --> here",
            "line 1: '<!-- table:families --> here', allowed: <!-- table:STUDY --> alone on its line",
        ),
        (
            "<!-- table:families --group task -->\n<!-- /table -->",
            "line 1: argument --group: invalid choice: 'task' (choose from 'budget')",
        ),
        ("<!-- table:families --size 3 -->\n<!-- /table -->", "line 1: unrecognized arguments: --size 3"),
        ("<!-- table: -->\n<!-- /table -->", "line 1: the following arguments are required: study"),
        (
            "<!-- table:families --published lora2022 -->\n<!-- /table -->",
            "--published: lora2022 has no number for movie; it has mnli (accuracy), sst2 (accuracy), mrpc (accuracy), "
            "cola (matthews), qnli (accuracy), qqp (accuracy), rte (accuracy), stsb (pearson)",
        ),
    ],
)
@pytest.mark.parametrize("arguments", [(), ("--check",)])
def test_markers_that_mean_nothing_are_errors(study, capsys, text, error, arguments):
    Path("README.md").write_text(text)
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "") and err.endswith(f"{error}\n") and err.count("\n") == 1
    assert Path("README.md").read_text() == text


def test_a_study_with_a_corrupt_record_is_an_error(study, capsys):
    bad = Path("runs/reference/families/bad/record.json")
    bad.parent.mkdir()
    bad.write_text("{}")
    assert call(capsys) == (
        2,
        "",
        f"analysis: README.md, line 3: study 'families': {bad}: version: None, allowed: a whole number ≥ 1\n",
    )


def test_no_reference_records_at_all(store, capsys):
    Path("README.md").write_text("<!-- table:families -->\n<!-- /table -->\n")
    assert call(capsys)[2] == ("analysis: README.md, line 1: no study 'families' in runs/reference, allowed: none\n")


def test_records_may_lie_elsewhere(store, capsys):
    store.add("lora", 0, under="elsewhere/small")
    Path("README.md").write_text("<!-- table:small -->\n<!-- /table -->\n")
    assert call(capsys, "--reference", "elsewhere")[0] == 0
    assert "80.00 (1)" in Path("README.md").read_text()


def test_a_text_that_is_not_there(store, capsys):
    assert call(capsys) == (2, "", "analysis: can't read README.md: No such file or directory\n")


def test_the_tables_of_this_repository_are_those_of_its_records(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main(["readme", "README.md", "--check"]) == 0, capsys.readouterr().out


def test_verdicts_of_every_row_against_one_are_over_tasks_and_seeds(store, capsys):
    for task in ("movie", "opinion"):
        for seed in range(3):
            store.add("lora", seed, 0.7 + seed / 100, task=task, under="runs/reference/main")
            store.add("sora", seed, 0.8 + seed / 90, task=task, under="runs/reference/main")
    said = "<!-- verdicts:main --all lora -->\n<!-- /verdicts -->\n"
    Path("README.md").write_text("<!-- compare:main --all lora -->\n<!-- /compare -->\n" + said)
    assert call(capsys)[0] == 0
    text = Path("README.md").read_text()
    assert "Over tasks and seeds, in points (movie, opinion):" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| sora")]
    assert [cell.strip() for cell in row.split("|")][2:5] == ["2", "6", "10.11"] and row.endswith(" better |")
    assert "- sora against lora, 2 tasks: better on 2." in text
    assert "\n- Over 2 tasks and 6 pairs of a task and a seed sora is better than lora: 10.11 points (95 % int" in text
    assert "\n- Over tasks and seeds together 0 of 1 comparisons are undecided.\n" in text
    assert call(capsys, "--check")[0] == 0


def test_chosen_rates_are_a_table_of_methods_and_tasks(store, capsys):
    for rate, score in ((1e-4, 0.5), (1e-3, 0.8), (1e-2, 0.7)):
        for task in ("movie", "opinion"):
            edge = 1 - score if task == "opinion" else score
            config = {"optim.lr": rate}
            store.add("lora", 100, score, task=task, under="runs/reference/tune", config=config, select__accuracy=edge)
    Path("README.md").write_text("<!-- choose:tune -->\n<!-- /choose -->\n")
    assert call(capsys)[0] == 0
    (row,) = [line for line in Path("README.md").read_text().splitlines() if line.startswith("| lora")]
    assert [cell.strip() for cell in row.split("|")][1:-1] == ["lora", "1e-3", "1e-4*", "0.0"]


def test_pictures_are_written_beside_the_text_and_compared(store, capsys):
    for seed in range(2):
        store.add("lora", seed, 0.7 + seed / 100, under="runs/reference/main")
    Path("README.md").write_text("<!-- figures:main --only metric-seeds -->\n<!-- /figures -->\n")
    assert call(capsys)[0] == 0
    picture = Path("images/main/metric-seeds.movie.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "![metric-seeds.movie](images/main/metric-seeds.movie.png)" in Path("README.md").read_text()
    assert call(capsys, "--check") == (0, "README.md: 1 block, as in runs/reference\n", "")
    picture.write_bytes(b"other")
    code, out, _ = call(capsys, "--check")
    assert code == 1 and "images/main/metric-seeds.movie.png: the picture differs\n" in out


def test_several_texts_are_checked_at_once(study, capsys):
    Path("other.md").write_text("Nothing here.\n")
    assert call(capsys, "other.md", "--check")[0] == 1
    assert call(capsys, "other.md")[0] == 0
    assert call(capsys, "other.md", "--check")[0] == 0


def test_on_one_task_named_pairs_are_compared_over_seeds(store, capsys):
    for seed in range(3):
        for variant, value in (("lora", 0.7), ("sora", 0.8), ("head", 0.5)):
            store.add(variant, seed, value + seed**2 / 100 * len(variant), under="runs/reference/main")
    Path("README.md").write_text("<!-- compare:main --pair sora lora --pair lora head -->\n<!-- /compare -->\n")
    assert call(capsys)[0] == 0
    text = Path("README.md").read_text()
    assert "Over seeds:" in text and "predictions" not in text
    assert [line.split("|")[1].strip() for line in text.splitlines() if "−" in line][1:] == [
        "sora − lora",
        "lora − head",
    ]
