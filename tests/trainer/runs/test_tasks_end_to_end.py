"""Real texts and the real encoder, a few steps each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import ROOT
from trainer.data.sources.unavailable import Unavailable
from trainer.sweeps.plan import plan

pytestmark = pytest.mark.slow

GLUE = Path(os.environ.get("LORATORY_GLUE", ROOT.parent / "shared" / "glue"))
SHORT = ["train.max_steps=2", "data.limit=16", "data.eval_limit=16", "train.batch_size=8", "machine.progress=false"]


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("cola", {"matthews"}),
        ("sst2", {"accuracy"}),
        ("mrpc", {"accuracy", "f1"}),
        ("stsb", {"pearson", "spearman"}),
        ("rte", {"accuracy"}),
    ],
)
def test_glue_from_a_local_mirror(configured, tiny_model, tmp_path, task, metrics):
    if not (GLUE / task).is_dir():
        pytest.skip(f"no GLUE mirror: {GLUE / task} is not there (set LORATORY_GLUE)")
    from trainer.runs.run import run

    model = ["model=folder", f"model.path={tiny_model}", "model.name=tiny"]
    config = configured([*model, f"task={task}", f"glue.path={GLUE}", f"runs_dir={tmp_path}", *SHORT])
    record = run(plan(config), [])
    assert set(record.metrics) == metrics
    assert (record.data.train, record.data.report) == (16, 16)


@pytest.mark.network
@pytest.mark.parametrize(
    ("task", "variant"), [("movie", "lora"), ("movie_pair", "peft_lora"), ("opinion", "bitfit"), ("boolq", "head")]
)
def test_packaged_texts_with_the_real_encoder(configured, tmp_path, task, variant):
    from trainer.runs.run import run

    try:
        config = configured([f"task={task}", f"variant={variant}", f"runs_dir={tmp_path}", *SHORT])
        record = run(plan(config), [])
    except Unavailable as error:
        pytest.skip(f"the package index can't be reached: {error}")
    assert record.params.total > 22_700_000 and record.params.head == 384 * 385 + 385 * max(1, record.data.labels)
    assert record.status == "done"
