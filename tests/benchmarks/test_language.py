"""The cost of a step of a language model beside PEFT's, on a toy: what a step is, what its memory counts."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import language, step_cost
from tests.trainer.objectives import language as toys

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return language.LanguageModel(toys.make(tmp_path_factory.mktemp("llama"), vocab_size=8192))


def stepper(source, name, **options):
    return language.LanguageStepper(source, step_cost.METHODS[name](), 2, 16, CPU, **options)


def test_the_loss_is_transformers_own_to_rounding(source):
    taken = stepper(source, "lora")
    ours = taken._loss(None).mean
    taken._own_loss = True
    torch.testing.assert_close(ours, taken._loss(None).mean, rtol=1e-6, atol=0)


def test_transformers_loss_needs_the_logits_of_all_tokens_more(source):
    ours, theirs = (stepper(source, "lora", own_loss=own) for own in (False, True))
    logits = 2 * 15 * 8192 * 4
    assert theirs.saved_bytes() - ours.saved_bytes() > logits / 2
    assert theirs.peak_bytes() > logits


def test_a_run_prints_its_table_and_goes_on_where_its_file_ends(source, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(language, "load", lambda name: source)
    monkeypatch.setattr(language, "SIZES", ((2, 8),))
    monkeypatch.setattr(language, "ROUNDS", 2)
    monkeypatch.setattr("sys.argv", ["step_cost", "--model", "smollm2", "--json", str(tmp_path / "found.json")])
    step_cost.main()
    rows = json.loads((tmp_path / "found.json").read_text())["settings"]["2 × 8"]
    assert list(rows) == list(language.NAMES)
    assert all(row["ms_least"] <= row["ms"] and row["peak_mib"] > 0 for row in rows.values())
    assert rows["floor"]["activations_mib"] < rows["lora"]["activations_mib"] <= rows["peft lora"]["activations_mib"]
    monkeypatch.setattr(language, "measure", lambda *_: pytest.fail("it was measured already"))
    step_cost.main()
    assert capsys.readouterr().out.count("| 2 × 8 | peft dora |") == 2


def test_settings_of_the_encoder_are_refused_beside_a_language_model(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["step_cost", "--model", "smollm2", "--settings", "8x16"])
    with pytest.raises(SystemExit):
        step_cost.main()
    assert "--model smollm2 with --settings or --minutes, allowed: without" in capsys.readouterr().err
