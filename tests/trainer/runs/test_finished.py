"""A finished run, opened again: it is the run of the record, or one line says why not."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import folder_of, write_csv
from tests.trainer.edited import signed, without_hashes
from trainer import record as records
from trainer.config import Config
from trainer.errors import ConfigError
from trainer.record import Record
from trainer.runs.finished import opened
from trainer.sweeps.plan import identify

pytestmark = pytest.mark.slow

ADALORA = ["variant=adalora", "variant.rank=4", "variant.target_rank=1", "variant.interval=2"]
PEFT_ADALORA = ["variant=peft_adalora", *(f"variant.options.{name}=2" for name in ("tinit", "tfinal", "target_r"))]


@pytest.mark.parametrize(
    "overrides",
    [
        ["variant.init=pissa", "variant.rank=2"],
        [*ADALORA, "data.protocol=split", "data.select_share=0.25"],
        ["variant=sora", "variant.threshold=0.05", "train.checkpoint=last"],
        ["variant=svft", "variant.pattern=random", "variant.off_diagonals=1", "data.eval_limit=16"],
        ["variant=shira", "variant.mask=gradient", "model.dtype=bfloat16"],
        ["variant=full", "optim.lr=1e-3", "train.autocast=true"],
        PEFT_ADALORA,
    ],
    ids=" ".join,
)
def test_its_evaluation_is_the_one_of_the_record(carry_out, tmp_path, overrides):
    record = carry_out(*overrides)
    folder = folder_of(record, tmp_path)
    with opened(folder) as run:
        assert run.record == record and not run.model.training
        assert run.variant.ranks() == {} or sum(run.variant.ranks().values()) == record.rank.end
        found = run.evaluate()
    assert found.metrics[record.metric.name] == record.metric.value
    kept = pd.read_parquet(folder / "predictions.parquet").outputs.map(list).tolist()
    assert found.predictions.outputs.astype(np.float32).tolist() == kept


def test_a_regression_too(carry_out, tmp_path):
    path = write_csv(tmp_path / "train.csv", 32, 1)
    path.write_text(path.read_text().replace(",good", ",1.5").replace(",bad", ",-2"))
    paths = [f"task.source.train_path={path}", f"task.source.validation_path={path}"]
    record = carry_out(*paths, "task.source.kind=regression", "task.metrics=[pearson,rmse]")
    with opened(folder_of(record, tmp_path)) as run:
        assert run.evaluate().metrics == record.metrics
        assert run.context.objective.outputs == 1


def test_nothing_in_the_folder_is_touched_and_nothing_in_the_process(carry_out, tmp_path):
    folder = folder_of(carry_out("machine.threads=2"), tmp_path)

    def files() -> dict[Path, tuple[bytes, int]]:
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}

    before = files()
    threads, drawn = torch.get_num_threads(), torch.get_rng_state()
    with opened(folder) as run:
        assert torch.get_num_threads() == 2
        run.evaluate()
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()
    } == before
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), drawn)


def test_a_run_that_was_moved_is_found_by_what_it_is(carry_out, tmp_path):
    record = carry_out("train.max_steps=2")
    shutil.move(folder_of(record, tmp_path), tmp_path / "elsewhere")
    with opened(tmp_path / "elsewhere") as run:
        assert run.evaluate().metrics == record.metrics


@pytest.fixture
def finished(finished_run) -> Path:
    """The folder of a run, which a test may change."""
    return finished_run("train.max_steps=2")


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught, opened(folder):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_a_finished_run_is_refused(finished, tmp_path):
    assert refusal(tmp_path / "nothing") == f"{tmp_path / 'nothing'}: not a finished run; record.json is missing"
    path = finished / "record.json"
    row = json.loads(path.read_text())
    path.write_text("{")
    assert refusal(finished).startswith(f"{path}: ")
    failed = {name: value for name, value in row.items() if not name.startswith("metric")}
    records.write(Record.from_row(signed(failed | {"status": "failed", "error": "out of luck"})), finished)
    assert refusal(finished) == f"{finished}: the run has failed: out of luck"


def test_a_run_whose_model_is_another_one_now_is_refused(carry_out, tiny_model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    folder = folder_of(carry_out(f"model.path={copy}", "train.max_steps=2"), tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    name = random.Random(0).choice(sorted(weights))
    save_file(weights | {name: weights[name] + 1}, copy / "model.safetensors", metadata={"format": "pt"})
    assert refusal(folder).startswith(f"{folder}: model.content.model.safetensors is '")
    shutil.rmtree(copy)
    assert refusal(folder).startswith(f"model.path: '{copy}' is not a folder")


def test_a_run_whose_texts_are_others_now_is_refused(carry_out, tmp_path):
    path = write_csv(tmp_path / "own.csv", 16, 3)
    folder = folder_of(carry_out(f"task.source.train_path={path}", "train.max_steps=2"), tmp_path)
    write_csv(path, 16, 4)
    assert refusal(folder).startswith(f"{folder}: task.source.")


def test_a_config_that_is_another_runs_is_refused(finished):
    path = finished / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("rank: 8", "rank: 4"))
    assert refusal(finished) == f"{finished}: variant.rank is 4, the run was made with 8"
    path.write_text("variant: [")
    assert refusal(finished).startswith(f"{path}: not the config of a run: ")
    path.write_text("seed: 1\n")
    assert refusal(finished).startswith(f"{path}: not the config of a run: ")
    path.unlink()
    assert refusal(finished).startswith(f"{path}: not the config of a run: ")


class Opened:
    """A class that tells when it is called, and is neither a task's source nor a model's."""

    called = False

    def __init__(self, **settings):
        type(self).called = True


def call(**settings):
    """A function that tells when it is called."""
    Opened.called = True


STRANGE = [f"{__name__}.call", f"{__name__}.Opened", "pandas.read_pickle", "joblib.load", "torch.load", "numpy.load"]


@pytest.mark.parametrize("target", STRANGE)
@pytest.mark.parametrize("place", ["task.source", "model.sources.0", "variant", "task.source.text"])
@pytest.mark.parametrize("known", [False, True], ids=["the config alone", "the record too"])
def test_nothing_but_a_class_of_the_right_kind_is_called(finished, target, place, known):
    Opened.called = False
    path = finished / "config.yaml"
    config = OmegaConf.load(path)
    node = {"_target_": target, "file": str(path), "name": "lora"}
    if place == "model.sources.0":
        config.model.sources[0] = node
    elif place == "variant":
        config.variant._target_ = target
    else:
        OmegaConf.update(config, place, node, merge=False, force_add=True)
    OmegaConf.save(config, path)
    if known:  # a stranger writes both
        row = json.loads((finished / "record.json").read_text())
        row |= {"config.task.source._target_": config.task.source._target_}
        if place == "variant":
            row |= {"config.variant._target_": target, "run_id": identify(OmegaConf.merge(Config, config)).run_id}
        (finished / "record.json").write_text(json.dumps(signed(row)))
    text = refusal(finished)
    assert target in text or repr(target.rpartition(".")[2]) in text
    assert not Opened.called


def test_a_tracker_and_a_judge_of_those_who_made_the_run_are_not_called(finished):
    Opened.called = False
    path = finished / "config.yaml"
    config = OmegaConf.load(path)
    config.tracker = config.machine.judge = {"_target_": f"{__name__}.Opened"}
    OmegaConf.save(config, path)
    with opened(finished) as run:
        run.evaluate()
    assert not Opened.called


def test_a_changed_bit_of_the_adapter_is_refused(finished):
    weights = finished / "adapter" / "state.safetensors"
    content = bytearray(weights.read_bytes())
    content[-50] ^= 1
    weights.write_bytes(content)
    assert refusal(finished) == f"{weights}: not what this run trained: its hash is not that of the record"


def test_a_field_that_has_come_since_has_its_default(finished):
    path = finished / "config.yaml"
    config = OmegaConf.load(path)
    del config.machine["kernel"]
    OmegaConf.save(config, path)
    with opened(finished) as run:
        assert run.context.config.machine.kernel == "fused"


def test_weights_that_are_not_there_or_of_another_shape_are_refused(finished):
    from variants.core import state_files

    state = state_files.load(finished / "adapter" / "state")
    name = next(iter(state["parameters"]))
    state["parameters"][name] = state["parameters"][name][:1]
    state_files.save(state, finished / "adapter" / "state")
    weights = finished / "adapter" / "state.safetensors"
    assert refusal(finished) == f"{weights}: not what this run trained: its hash is not that of the record"
    without_hashes(finished)
    assert refusal(finished).startswith(f"{finished / 'adapter'}: not what this run trained: {name}: shape ")
    shutil.rmtree(finished / "adapter")
    assert refusal(finished).startswith(f"{finished / 'adapter'}: not what this run trained: ")


def test_a_device_that_is_not_there_is_refused(finished):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with (
        pytest.raises(ConfigError, match=r"machine\.device: 'cuda', allowed without a CUDA device"),
        opened(finished, "cuda"),
    ):
        pass
