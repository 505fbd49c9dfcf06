"""A tiny model and a tiny task: a two-layer BERT with random weights, and words that tell the label."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start; `one_thread` says why

import csv
import functools
import gc
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from omegaconf import DictConfig

from trainer.machine import garbage

if TYPE_CHECKING:
    from trainer.record import Record

pytest_plugins = ["tests.browser"]

ROOT = Path(__file__).parents[1]
GOOD, BAD, OTHER = ["fine", "great", "lovely"], ["poor", "awful", "dull"], ["film", "plot", "the", "a", "very"]

# With optim.lr=1e30: settings of a run that begins, and fails while it trains.
DIVERGING = ["train.max_steps=3", "train.max_skipped=0", "optim.max_grad_norm=0"]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Several test processes share the cores; more threads than that only wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_waited_for() -> Iterator[None]:
    """A disk that has written, which no test can tell, and devices that are not there: for each of them torch keeps
    the stack of every `manual_seed` as text, a tenth of the time of tests on toys."""
    import torch

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda file: None)
        for device in (torch.cuda, torch.xpu, torch.mtia):
            if not device.is_available():
                patched.setattr(device, "manual_seed_all", lambda seed: None)
        yield


TESTS = 50
_tests, _modules = 0, 0


def pytest_runtest_setup() -> None:
    """What lasts stays out of garbage collection: every run asks for two whole ones, and a worker imports a million
    objects and keeps thousands of tests and their reports."""
    global _tests, _modules
    if _tests % TESTS == 0 or len(sys.modules) > _modules + 50:
        gc.collect()
        garbage.freeze()
        _modules = len(sys.modules)
    _tests += 1


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of width 16 and two layers, saved without a classification head."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *OTHER]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        initializer_range=0.1,  # wide enough for so narrow a model to tell words apart
    )
    BertModel(config).save_pretrained(folder)
    return folder


def write_csv(path: Path, rows: int, seed: int, header: tuple[str, ...] = ("text", "label")) -> Path:
    """Rows whose label is told by one of their words."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for number in range(rows):
            good = number % 2 == 0
            words = [draw.choice(GOOD if good else BAD), *draw.choices(OTHER, k=draw.randint(1, 4))]
            draw.shuffle(words)
            writer.writerow([" ".join(words), "good" if good else "bad"])
    return path


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(train, validation): csv files of 48 and 24 rows."""
    folder = tmp_path_factory.mktemp("task")
    return write_csv(folder / "train.csv", 48, 1), write_csv(folder / "validation.csv", 24, 2)


@pytest.fixture
def tiny_overrides(tiny_model: Path, tiny_task: tuple[Path, Path], tmp_path: Path) -> list[str]:
    """Overrides of a run that takes a second: tiny model, tiny task, twelve steps."""
    return tiny_run(tiny_model, tiny_task, tmp_path)


def tiny_run(model: Path, task: tuple[Path, Path], folder: Path) -> list[str]:
    """The same, for runs in `folder / "runs"`."""
    return [
        *("model=folder", f"model.path={model}", "model.name=tiny"),
        *("task=file", f"task.source.train_path={task[0]}", f"task.source.validation_path={task[1]}"),
        *("task.name=tiny", "task.metrics=[accuracy]"),
        *("train.batch_size=8", "train.epochs=2", "optim.lr=1e-2"),
        *(f"runs_dir={folder / 'runs'}", "study=test"),
        *("machine.progress=false", "machine.device=cpu"),
    ]


@pytest.fixture
def configured() -> Callable[[list[str]], DictConfig]:
    """Composes the main config with overrides, as train.py does."""
    from tests.composing import composed

    return composed


@pytest.fixture
def carry_out(configured, tiny_overrides):
    """Carries out one tiny run with further overrides; returns its record."""
    from trainer.sweeps.plan import plan

    def carried_out(*overrides: str):
        from trainer.runs.run import run

        everything = [*tiny_overrides, *overrides]
        return run(plan(configured(everything)), everything)

    return carried_out


@pytest.fixture(scope="session")
def kept_run(tiny_model, tiny_task, tmp_path_factory) -> Callable[..., tuple[Record, Path]]:
    """The record of a tiny run with further overrides, and the folder `runs` that it lies in; carried out once."""
    from tests.composing import composed
    from trainer.sweeps.plan import plan

    @functools.cache
    def carried_out(*overrides: str) -> tuple[Record, Path]:
        from trainer.runs.run import run

        place = tmp_path_factory.mktemp("kept")
        everything = [*tiny_run(tiny_model, tiny_task, place), *overrides]
        return run(plan(composed(everything)), everything), place / "runs"

    return carried_out


@pytest.fixture
def finished_run(kept_run, tmp_path) -> Callable[..., Path]:
    """The folder of a finished run, as `carry_out` leaves it, for a test that is not about carrying it out: a copy."""

    def copied(*overrides: str) -> Path:
        record, place = kept_run(*overrides)
        shutil.copytree(place, tmp_path / "runs", dirs_exist_ok=True)
        return folder_of(record, tmp_path)

    return copied


def folder_of(record, tmp_path: Path) -> Path:
    """Where a run of `carry_out` lies."""
    return tmp_path / "runs" / record.study / record.run_id
