"""Exported adapters of several runs, served together above one backbone as docs/kinds.md shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from weights.cli import main

pytest.importorskip("peft")

DOCS = Path(__file__).parents[2] / "docs" / "kinds.md"


def test_the_documents_example_answers_as_each_run_does(finished, model_of, capsys):
    (section,) = re.findall(r"## Several adapters on one backbone\n.*?```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    folders = {"sums": finished("response"), "news": finished("response", "variant.rank=3", "optim.lr=3e-2")}
    adapters, expected = {}, {}
    for name, folder in folders.items():
        assert main(["export", str(folder), "--to", "peft"]) == 0
        adapters[name] = str(folder / "export" / "peft")
        capsys.readouterr()
        assert main(["generate", str(folder), "--prompt", "1 and 2 is", "--max-new-tokens", "8"]) == 0
        expected[name] = capsys.readouterr().out.strip()
    assert all(expected.values()) and expected["sums"] != expected["news"]
    there = {"adapters": adapters, "backbone": str(model_of("causal_lm"))}
    exec(section, there)
    found = {name: text.strip() for name, text in there["answers"].items()}
    assert found == expected
    texts = there["tokenizer"].batch_decode(there["mixed"], skip_special_tokens=True)
    assert all(text.endswith(expected[name]) for text, name in zip(texts, ("sums", "news"), strict=True))
