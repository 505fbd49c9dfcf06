"""The tables of README.md and docs/ are those that the committed records give."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.commands import readme, table
from analysis.records import runs
from tests.conftest import ROOT

REFERENCE = ROOT / "runs" / "reference"
FAMILIES = {path.stem for path in Path(ROOT, "conf", "variant", "families").glob("*.yaml")}


@pytest.mark.parametrize(("study", "rows"), [("families", 14), ("precision", 2)])
def test_the_page_shows_the_table_of_the_records(study: str, rows: int) -> None:
    text, problems = table.render(runs.read([REFERENCE / study]), "md")
    shown = text.partition("\n\n")[0]
    assert shown.count("\n") == rows + 1 and not problems
    assert shown in (ROOT / "docs" / "first_results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "docs/first_results.md"])
def test_no_table_of_a_page_is_out_of_date(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    new = readme.regenerated(text, page, REFERENCE)
    assert new.made and new.text == text


@pytest.mark.parametrize(
    ("study", "what", "rows", "seeds"),
    [
        ("families", lambda record: record.variant, FAMILIES, 3),
        ("precision", lambda record: record.config["model.dtype"], {"float32", "bfloat16"}, 5),
    ],
)
def test_the_records_are_of_one_clean_commit_and_complete(study, what, rows, seeds) -> None:
    found = runs.read([REFERENCE / study])
    assert not (found.failed or found.untrusted or found.duplicates)
    records = [run.record for run in found.done]
    assert {(record.git["commit"], record.git["dirty"]) for record in records} == {(records[0].git["commit"], False)}
    cells = {(what(record), record.task, record.seed) for record in records}
    assert cells == {(row, task, seed) for row in rows for task in ("movie", "opinion") for seed in range(seeds)}
