"""A tiny language model and runs on each form of rows that it can have."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.composing import composed
from tests.conftest import folder_of
from tests.trainer.objectives import language

WORDS = ["a", "warm", "film", "with", "bright", "cast", "dull", "plot", "slow", "hollow", "ending", "pale", "hero"]


def _rows() -> dict[str, list[dict[str, Any]]]:
    draw = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    sums = [(draw.randint(0, 9), draw.randint(0, 9)) for _ in range(24)]
    return {
        "text": [{"text": words(2, 30)} for _ in range(24)],
        "response": [{"prompt": f"{words(1, 4)}: {a} and {b} is", "response": str(a + b)} for a, b in sums],
        "messages": [
            {"messages": [{"role": "user", "content": f"{a} {words(1, 3)}"}, {"role": "assistant", "content": str(b)}]}
            for a, b in sums
        ],
        "choices": [
            {"prompt": words(2, 5), "choices": [words(1, 3) for _ in range(draw.randint(2, 4))], "label": n % 2}
            for n in range(24)
        ],
    }


FORMS = {
    "text": ["task.source.label=null", "task.metrics=[perplexity,bits_per_byte]"],
    "response": ["task.source.prompt=prompt", "task.source.response=response"],
    "messages": ["task.source.messages=messages"],
    "choices": ["task.source.prompt=prompt", "task.source.choices=choices", "task.metrics=[accuracy,accuracy_norm]"],
}
FORMS["response"] += ["task.metrics=[token_f1,exact_match,perplexity]", "task.max_new_tokens=4"]
FORMS["messages"] += ["task.metrics=[perplexity]"]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language.make(tmp_path_factory.mktemp("llama"), template=language.TEMPLATE)


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """By form the overrides that name a table of such rows and its columns."""
    folder = tmp_path_factory.mktemp("tables")
    return {
        form: [f"task.source.train_path={language.write(folder / f'{form}.jsonl', rows)}", *FORMS[form]]
        for form, rows in _rows().items()
    }


def overrides(model: Path, folder: Path) -> list[str]:
    """Of a run of eight steps with the model, without its rows."""
    return [
        *("model=folder", f"model.path={model}", "model.name=tiny", "task=file", "task.kind=causal_lm"),
        *("task.source.holdout=0.3", "train.batch_size=4", "train.max_steps=8", "optim.lr=1e-2", "data.max_length=32"),
        *(f"runs_dir={folder / 'runs'}", "study=test", "machine.progress=false", "machine.device=cpu"),
    ]


@pytest.fixture
def trained(llama, tables, tmp_path) -> Callable[..., Any]:
    """Carries out a run on a form of rows; its record."""

    def carried_out(form: str, *more: str):
        from trainer.runs.run import run
        from trainer.sweeps.plan import plan

        everything = [*overrides(llama, tmp_path), *tables[form], *more]
        return run(plan(composed(everything)), everything)

    return carried_out


@pytest.fixture(scope="session")
def learned(llama, tables, tmp_path_factory) -> Callable[[str], tuple[Any, Path, list[str]]]:
    """The record, the folder and the overrides of a longer run on a form of rows; carried out once."""

    @functools.cache
    def carried_out(form: str) -> tuple[Any, Path, list[str]]:
        from trainer.runs.run import run
        from trainer.sweeps.plan import plan

        place = tmp_path_factory.mktemp(form)
        everything = [*overrides(llama, place), *tables[form], "machine.log_every=4", "train.max_steps=16"]
        record = run(plan(composed(everything)), everything)
        return record, folder_of(record, place), everything

    return carried_out


@pytest.fixture
def checked(llama, tmp_path) -> Callable[..., Any]:
    """The parts of a run on rows of one's own, before any weight is loaded."""

    def check(rows: list[dict[str, Any]], *more: str, model: Path = llama):
        from trainer.runs import assemble

        table = language.write(tmp_path / "rows.jsonl", rows)
        files = [f"task.source.{name}_path={table}" for name in ("train", "validation")]
        return assemble.check(composed([*overrides(model, tmp_path), *files, *more]))

    return check
