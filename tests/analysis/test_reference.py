"""The README's table of the families is the one that the committed records give."""

from __future__ import annotations

from pathlib import Path

from analysis import runs, table
from tests.conftest import ROOT

FAMILIES = ROOT / "runs" / "reference" / "families"


def test_the_readme_shows_the_table_of_the_records() -> None:
    text, problems = table.render(runs.read([FAMILIES]), "md")
    shown = text.partition("\n\n")[0]
    assert shown.count("\n") == 15 and not problems
    assert shown in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_records_are_of_one_clean_commit_and_complete() -> None:
    found = runs.read([FAMILIES])
    assert not (found.failed or found.untrusted or found.duplicates)
    records = [run.record for run in found.done]
    assert {(record.git["commit"], record.git["dirty"]) for record in records} == {(records[0].git["commit"], False)}
    cells = {(record.variant, record.task, record.seed) for record in records}
    variants = {path.stem for path in Path(ROOT, "conf", "variant", "families").glob("*.yaml")}
    assert cells == {(v, task, seed) for v in variants for task in ("movie", "opinion") for seed in range(3)}
