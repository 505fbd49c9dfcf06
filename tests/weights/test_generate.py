"""`python -m weights generate`: what a run writes behind prompts is what its evaluation wrote."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
import torch

from weights import generate
from weights.cli import main


@pytest.mark.parametrize("form", ["response", "messages"])
def test_it_writes_what_the_evaluation_wrote(form, finished, capsys):
    from trainer.runs.finished import opened

    folder = finished(form)
    with opened(folder) as run:
        rows = run.objective.content.splits["validation"]
        own = run.predictions(run.context.rows.report["validation"])
        examples = run.context.rows.report["validation"].examples
        asked = [
            rows[place]["prompt"] if form == "response" else rows[place]["messages"][0]["content"] for place in examples
        ]
    capsys.readouterr()
    for prompt, expected in list(zip(asked, own.prediction, strict=True))[:3]:
        assert main(["generate", str(folder), "--prompt", prompt]) == 0
        assert capsys.readouterr().out.strip() == expected


def test_of_a_source_an_encoder_and_a_decoder_write_what_the_evaluation_wrote(finished, capsys):
    from trainer.runs.finished import opened

    folder = finished("seq2seq")
    with opened(folder) as run:
        rows, report = run.objective.content.splits["validation"], run.context.rows.report["validation"]
        own = run.predictions(report).prediction
        asked = [rows[place]["source"] for place in report.examples]
    capsys.readouterr()
    for source, expected in list(zip(asked, own, strict=True))[:3]:
        assert main(["generate", str(folder), "--prompt", source]) == 0
        assert capsys.readouterr().out.strip() == expected


@pytest.mark.parametrize("form", ["text", "choices"])
def test_a_run_that_never_wrote_in_its_evaluation_writes(form, finished, capsys):
    folder = finished(form)
    capsys.readouterr()
    assert main(["generate", str(folder), "--prompt", "a warm film", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_prompts_are_lines_of_standard_input_and_tokens_come_one_by_one(finished, capsys, monkeypatch):
    folder = finished("response")
    capsys.readouterr()
    alone = []
    for prompt in ("1 and 2 is", "4 and 4 is"):
        assert main(["generate", str(folder), "--prompt", prompt]) == 0
        alone.append(capsys.readouterr().out)
    pieces = []
    monkeypatch.setattr("sys.stdin", io.StringIO("1 and 2 is\n\n4 and 4 is\n"))
    monkeypatch.setattr(
        "transformers.TextStreamer.on_finalized_text",
        lambda self, text, stream_end=False: pieces.append(text + ("\n" if stream_end else "")),
    )
    assert main(["generate", str(folder)]) == 0
    assert "".join(pieces) == "".join(alone) and len(pieces) > 4


def test_more_tokens_go_on_from_fewer(finished, capsys):
    folder = finished("response")
    texts = []
    for most in ("2", "12"):
        capsys.readouterr()
        assert main(["generate", str(folder), "--prompt", "1 and 2 is", "--max-new-tokens", most]) == 0
        texts.append(capsys.readouterr().out.rstrip("\n"))
    assert texts[1].startswith(texts[0]) and len(texts[1]) >= len(texts[0])


def test_a_long_prompt_is_cut_and_that_is_said(finished, capsys):
    folder = finished("response")
    capsys.readouterr()
    assert main(["generate", str(folder), "--prompt", "a warm film with " * 20 + "1 and 2 is"]) == 0
    assert "of which the last 32 are read" in capsys.readouterr().err


def test_what_can_not_write_is_one_line(finished, carry_out, tmp_path, capsys):
    folder = finished("response")
    capsys.readouterr()
    for arguments, message in (
        (["--prompt", " "], "--prompt: '', allowed: a text"),
        (["--prompt", "a", "--max-new-tokens", "100000"], "--max-new-tokens: 100000, allowed: below "),
    ):
        assert main(["generate", str(folder), *arguments]) == 2
        out, err = capsys.readouterr()
        assert err.startswith("weights: ") and err.count("\n") == 1 and message in err and not out
    other = finished("token_classification")
    capsys.readouterr()
    assert main(["generate", str(other), "--prompt", "a"]) == 2
    assert capsys.readouterr().err.endswith("allowed: one whose model writes texts\n")


@pytest.mark.parametrize("to", ["peft", "merged"])
@pytest.mark.parametrize("kind", ["response", "text", "seq2seq"])
def test_exported_it_writes_the_same_texts(kind, to, finished, capsys):
    pytest.importorskip("peft")
    folder = finished(kind)
    assert main(["export", str(folder), "--to", to]) == 0
    assert "of 4 texts that both write, 0 differ" in capsys.readouterr().out
    check = json.loads((folder / "export" / to / "handover.json").read_text())["check"]
    assert (check["written"], check["other_texts"]) == (4, 0)


def test_an_export_that_writes_other_texts_says_so(finished, capsys):
    folder = finished("response", "optim.lr=1e-1")
    assert main(["export", str(folder), "--to", "merged", "--rank", "1"]) == 0
    check = json.loads((folder / "export" / "merged-rank1" / "handover.json").read_text())["check"]
    assert check["other_texts"] > 0
    assert f"of 4 texts that both write, {check['other_texts']} differ" in capsys.readouterr().out


def test_a_model_that_writes_nothing_is_named(capsys):
    read = SimpleNamespace(letters=0, cut=None, inputs={})
    kind = SimpleNamespace(prompted=lambda *_: read, written=lambda *_: ["\n"])
    config = SimpleNamespace(train=SimpleNamespace(autocast=False))
    context = SimpleNamespace(tokenizer=None, source=None, max_length=8)
    run = SimpleNamespace(context=context, config=config, model=torch.nn.Identity(), device=torch.device("cpu"))
    generate.write(run, kind, "Q")
    assert capsys.readouterr().err == "weights: the model wrote nothing: its text is blank\n"
