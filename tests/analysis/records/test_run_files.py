"""What lies in a run's folder besides the record: read as it is, or refused with the reason."""

from __future__ import annotations

import json

import pytest

from analysis.records import run_files
from analysis.records.run_files import Kept, Ranks, Unusable


def test_metrics_come_line_by_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/task_loss": 0.5}\n{"step": 2, "eval/accuracy": null}\n')
    assert run_files.metrics(tmp_path) == [{"step": 1, "train/task_loss": 0.5}, {"step": 2, "eval/accuracy": None}]


@pytest.mark.parametrize(
    "text, reason",
    [
        (None, "no metrics.jsonl"),
        ('{"step": 1}\n{"ste', "metrics.jsonl: line 2 is no JSON"),
        ('{"epoch": 1}\n', "metrics.jsonl: line 1 has no step"),
        ("[1]\n", "metrics.jsonl: line 1 has no step"),
        ('{"step": 2}\n{"step": 1}\n', "metrics.jsonl: line 2 goes back to step 1"),
    ],
)
def test_metrics_that_can_not_be_trusted_are_refused(tmp_path, text, reason):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(Unusable) as error:
        run_files.metrics(tmp_path)
    assert str(error.value) == reason


def test_ranks_come_allocation_by_allocation(tmp_path):
    (tmp_path / "ranks.jsonl").write_text(
        '{"step": 0, "ranks": {"a": 8, "b": 8}}\n{"step": 4, "ranks": {"a": 8, "b": 0}}\n'
    )
    assert run_files.ranks(tmp_path) == [Ranks(0, {"a": 8, "b": 8}), Ranks(4, {"a": 8, "b": 0})]


@pytest.mark.parametrize(
    "text, reason",
    [
        (None, "no ranks.jsonl"),
        ("", "ranks.jsonl: empty"),
        ('{"step": 3}\n', "ranks.jsonl: the line of step 3 has no ranks of layers"),
        ('{"step": 3, "ranks": {"a": 1.5}}\n', "ranks.jsonl: the line of step 3 has no ranks of layers"),
        (
            '{"step": 0, "ranks": {"a": 1}}\n{"step": 1, "ranks": {"b": 1}}\n',
            "ranks.jsonl: its lines are about different layers",
        ),
    ],
)
def test_ranks_that_can_not_be_trusted_are_refused(tmp_path, text, reason):
    if text is not None:
        (tmp_path / "ranks.jsonl").write_text(text)
    with pytest.raises(Unusable) as error:
        run_files.ranks(tmp_path)
    assert str(error.value) == reason


def entry(rank: int | None = None, value: object = 0.7, **changes: object) -> dict[str, object]:
    """An entry of `truncation.json`."""
    found = {"metrics": {"accuracy": value, "f1": 0.1}, "loss": 0.5, "relative_error": 0.5, "parameters": 100}
    return found | ({} if rank is None else {"rank": rank}) | changes


def truncated(**changes: object) -> dict[str, object]:
    """A `truncation.json` that can be read."""
    return {"version": 1, "metric": "accuracy", "trained": entry(), "cut": [entry(4)]} | changes


def test_evaluations_at_lower_ranks_come_by_rank(tmp_path):
    cut = [entry(4), entry(2, 0.6, relative_error=0.8, parameters=50, layers={}, something="new")]
    (tmp_path / "truncation.json").write_text(json.dumps(truncated(trained=entry(value=0.9), cut=cut)))
    assert run_files.truncation(tmp_path) == (
        Kept(None, 0.9, 0.5, 100),
        [Kept(2, 0.6, 0.8, 50), Kept(4, 0.7, 0.5, 100)],
    )


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "no truncation.json: the run was not evaluated at lower ranks"),
        ([], "truncation.json: version None, this is version 1"),
        (truncated(version=2), "truncation.json: version 2, this is version 1"),
        (truncated(cut=[]), "truncation.json: cut: no evaluations at lower ranks"),
        (truncated(trained=None), "truncation.json: trained: None is no object"),
        (truncated(cut=[3]), "truncation.json: cut[0]: 3 is no object"),
        (truncated(cut=[entry(rank="4")]), "truncation.json: cut[0].rank: '4' is not a whole number"),
        (truncated(cut=[entry()]), "truncation.json: cut[0].rank: None is not a new whole number"),
        (truncated(cut=[entry(4), entry(4)]), "truncation.json: cut[1].rank: 4 is not a new whole number"),
        (truncated(cut=[entry(4, metrics=0.7)]), "truncation.json: cut[0].metrics: 0.7 is no object"),
        (truncated(cut=[entry(4, None)]), "truncation.json: cut[0].metrics.accuracy: None is not a finite number"),
        (truncated(metric="mcc"), "truncation.json: trained.metrics.mcc: None is not a finite number"),
        (
            truncated(cut=[entry(4, relative_error="x")]),
            "truncation.json: cut[0].relative_error: 'x' is not a finite number",
        ),
        (truncated(cut=[entry(4, parameters=0.5)]), "truncation.json: cut[0].parameters: 0.5 is not a whole number"),
    ],
)
def test_evaluations_that_can_not_be_trusted_are_refused(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "truncation.json").write_text(json.dumps(content))
    with pytest.raises(Unusable) as error:
        run_files.truncation(tmp_path)
    assert str(error.value) == reason


def test_a_broken_file_of_evaluations_says_why(tmp_path):
    (tmp_path / "truncation.json").write_text("[{")
    with pytest.raises(Unusable, match=r"truncation.json: can't be read \(Expecting"):
        run_files.truncation(tmp_path)
