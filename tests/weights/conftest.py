"""Finished runs of kinds of task that write or read texts, with tiny models."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.composing import composed
from tests.conftest import folder_of
from tests.trainer.objectives import language, other_kinds
from trainer.record import Record

SUMS = [(a, b) for a in range(5) for b in range(5)]
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": f"a warm film {a} with a cast {b}"} for a, b in SUMS],
    "response": [{"prompt": f"{a} and {b} is", "response": f"{a + b} warm film"} for a, b in SUMS],
    "messages": [
        {"messages": [{"role": "user", "content": f"{a} {b}"}, {"role": "assistant", "content": str(a + b)}]}
        for a, b in SUMS
    ],
    "choices": [{"prompt": f"{a} and {b}", "choices": [f"film {b}", "dull"], "label": b % 2} for a, b in SUMS],
}
COLUMNS = {
    "text": ["task.source.label=null", "task.metrics=[perplexity]"],
    "response": ["task.source.prompt=prompt", "task.source.response=response", "task.metrics=[token_f1,perplexity]"],
    "messages": ["task.source.messages=messages", "task.metrics=[token_f1]"],
    "choices": ["task.source.prompt=prompt", "task.source.choices=choices", "task.metrics=[accuracy]"],
}


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model for a kind of task."""
    made: dict[str, Path] = {}

    def find(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            causal = kind == "causal_lm"
            make = language.make(folder, template=language.TEMPLATE) if causal else other_kinds.model(kind, folder)
            made[kind] = make
        return made[kind]

    return find


@pytest.fixture(scope="session")
def kept(model_of, tmp_path_factory) -> Callable[..., tuple[Record, Path]]:
    """The record of a run of eight steps of a kind, or of causal_lm on a form of rows, and the folder `runs` that it
    lies in; carried out once."""

    @functools.cache
    def carried_out(kind: str, *more: str) -> tuple[Record, Path]:
        from trainer.runs.run import run
        from trainer.sweeps.plan import plan

        place = tmp_path_factory.mktemp("kept")
        form, kind = (kind, "causal_lm") if kind in ROWS else ("", kind)
        told = [
            *("model=folder", f"model.path={model_of(kind)}", "model.name=tiny", "task=file", f"task.kind={kind}"),
            *("task.source.holdout=0.3", "train.batch_size=4", "train.max_steps=8", "optim.lr=1e-2"),
            *("data.max_length=32", f"runs_dir={place / 'runs'}", "study=test", "machine.progress=false"),
            "machine.device=cpu",
        ]
        if form:
            table = language.write(place / f"{form}.jsonl", ROWS[form])
            told += [f"task.source.train_path={table}", *COLUMNS[form], "task.max_new_tokens=6"]
        else:
            told += [other_kinds.table(kind, place), *other_kinds.KINDS[kind][2]]
        return run(plan(composed([*told, *more])), [*told, *more]), place / "runs"

    return carried_out


@pytest.fixture
def finished(kept, tmp_path) -> Callable[..., Path]:
    """The folder of such a run: a copy."""

    def copied(kind: str, *more: str) -> Path:
        record, place = kept(kind, *more)
        shutil.copytree(place, tmp_path / "runs", dirs_exist_ok=True)
        return folder_of(record, tmp_path)

    return copied
