"""What an adapter costs in use, on a toy: its forms compute the same, and the table says what each takes."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks import inference, language
from tests.trainer.objectives import language as toys

CPU = torch.device("cpu")
UNMERGED, IN_PEFT, CUT = (f"unmerged, {what}" for what in ("rank 8", "rank 8, in PEFT", "truncated to rank 2"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return language.LanguageModel(toys.make(tmp_path_factory.mktemp("llama")))


def test_the_forms_of_an_adapter_compute_the_same_and_weigh_what_they_hold(source):
    found = inference.subjects(source.backbone, CPU)
    rows = inference.measure(found, 2, 8, 2, writes=True)
    assert list(rows) == ["base", UNMERGED, IN_PEFT, CUT, "merged"]
    assert max(rows[name]["difference"] for name in ("merged", IN_PEFT)) < 1e-5 < rows["base"]["difference"]
    assert rows[CUT]["difference"] > 1e-5
    base, unmerged = rows["base"], rows[UNMERGED]
    assert rows["merged"]["weights_mib"] == base["weights_mib"] == rows["merged"]["file_mib"]
    assert unmerged["weights_mib"] - base["weights_mib"] == pytest.approx(unmerged["file_mib"])
    assert rows[CUT]["file_mib"] == pytest.approx(unmerged["file_mib"] / 4)
    for row in rows.values():
        assert 0 < row["read_least"] <= row["read"] and 0 < row["token_least"] <= row["token"] and row["peak_mib"] > 0
    assert base["read_slower"] == base["token_slower"] == 1


def test_the_table_stands_between_its_marks(source, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(inference, "__file__", str(tmp_path / "inference.py"))
    (tmp_path / "README.md").write_text("before\n<!-- inference smollm2 -->\nold\n<!-- /inference smollm2 -->\nafter\n")
    monkeypatch.setattr(language, "load", lambda name: source)
    monkeypatch.setattr(inference, "SIZES", ((1, 4),))
    monkeypatch.setattr("sys.argv", ["inference", "--model", "smollm2", "--rounds", "1", "--write"])
    inference.main()
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {12} and len(lines) == 2 + 5
    assert re.search(
        r"Medians and minima over 1 rounds\. Logits, merged and unmerged, differ by at most \d\.\de-0\d;", text
    )
    assert capsys.readouterr().out.count("| 1 × 4 | merged |") == 1


def test_an_encoder_writes_nothing():
    row = {"read": 1.0, "read_least": 1.0, "read_slower": 1.0, "weights_mib": 1.0, "peak_mib": 1.0, "file_mib": 1.0}
    head, _, line = inference.table({"1 × 4": {"base": row}}, writes=False)
    assert "a batch: ms" in head and "token" not in head and line.count("|") == head.count("|")


def test_rounds_are_at_least_one(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["inference", "--rounds", "0"])
    with pytest.raises(SystemExit):
        inference.main()
    assert "--rounds 0, allowed: 1 or more" in capsys.readouterr().err
