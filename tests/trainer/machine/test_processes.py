"""Several processes for one run: they do what one process does with their batches put together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from filelock import FileLock

from tests.composing import composed
from tests.conftest import ROOT
from tests.trainer.machine import alike, pair
from trainer.machine import launch
from trainer.runs import finished
from variants.core import state_files, training_state
from variants.lora import LoRA
from variants.testing import toys

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def in_two(tmp_path_factory) -> dict[str, Any]:
    """What came of every variant's settings in two processes; made once for all the workers of xdist."""
    place = tmp_path_factory.getbasetemp()
    folder = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "alike"
    with FileLock(f"{folder}.lock"):
        if not (folder / "found.json").exists():
            with pair.started(alike.all_cases, folder) as two:
                assert two.ends() == [0, 0]
    return state_files.load(folder / "found")


def tensors(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {name: leaf for key, part in tree.items() for name, leaf in tensors(part, f"{path}/{key}").items()}
    if isinstance(tree, list):
        return tensors(dict(enumerate(tree)), path)
    return {path: tree}


@pytest.mark.parametrize("name", alike.named())
def test_two_processes_train_every_variant_as_one_does_with_the_whole_batch(in_two, name):
    case, parts = alike.named()[name]
    if not case.cls.same_in_batches:
        pytest.skip("it draws for each batch, so a whole batch is another step")
    one = toys.train(case.attached(torch.float64), parts=parts)
    two = in_two[name]
    assert two["ranks"] == one.variant.ranks()
    expected = tensors(toys.through_disk(training_state.weights(one.model, one.variant, one.optimizer)))
    found = tensors(two["weights"])
    assert found.keys() == expected.keys()
    # Adam divides a gradient by its own size, and one of ElaLoRA's that is next to zero by what was rounded.
    atol = 1e-7 if case.cls.__name__ == "ElaLoRA" else 1e-9
    for place, value in expected.items():
        if isinstance(value, torch.Tensor):  # places and masks are whole numbers, which have to be equal
            torch.testing.assert_close(found[place], value, rtol=1e-9, atol=atol, msg=lambda m, p=place: f"{p}: {m}")
        else:
            assert found[place] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), place


def test_a_divided_backbone_changes_no_bit_of_any_variant_or_is_refused(in_two):
    found = {name.split()[1].split("(")[0]: line["sharded"] for name, line in in_two.items() if "sharded" in line}
    assert set(found) == {case.cls.__name__ for case, _ in alike.named().values()}
    assert {name: line for name, line in found.items() if line != "equal"} == {
        "SHiRA": "machine.fsdp: true with variant.mask: snip, allowed: false; it reads weights between passes",
        "Allocated": "machine.fsdp: true with variant.score: weight_gradient, allowed: false; "
        "it reads weights between passes",
        "GoRA": "machine.fsdp: true with variant.importance: product_mean, allowed: false; "
        "it reads weights between passes",
        "AROMA": "machine.fsdp: true with variant.outer_tolerance: 1e-06, allowed: false; "
        "it reads weights between passes",
        "LoSiA": "machine.fsdp: true with variant.interval: 2, allowed: false; it reads weights between passes",
        "Masked": "machine.fsdp: true with variant.source: activation, allowed: false; it reads weights between passes",
        "LIFT": "machine.fsdp: true with variant.filter_rank: 1, allowed: false; it reads weights between passes",
        "Full": "machine.fsdp: true with full, allowed: false; it leaves no weight frozen",
    }


# -- whole runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steady_model(tiny_model, tmp_path_factory) -> Path:
    """The tiny model without dropout, which is drawn anew for every way to divide a batch."""
    folder = tmp_path_factory.mktemp("steady") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def steady(steady_model, tiny_overrides) -> list[str]:
    """Overrides of a tiny run without dropout; two of three evaluations end in the middle of a batch."""
    return [
        *tiny_overrides,
        f"model.path={steady_model}",
        "train.eval_batch_size=5",
        "data.limit=43",
        "model.dtype=float64",
    ]


def folder_of_run(tmp_path: Path, study: str) -> Path:
    (found,) = (path.parent for path in (tmp_path / "runs" / study).glob("*/config.yaml"))
    return found


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


METHODS = [
    ["variant=adalora", "variant.rank=4", "variant.target_rank=2", "variant.initial_steps=1", "variant.final_steps=2"],
    ["variant=elalora", "variant.rank=4", "variant.interval=3", "variant.dropout=0"],
    ["variant=rosa", "variant.warmup_steps=2", "variant.collect_steps=3", "variant.dropout=0", "train.accumulate=2"],
    ["variant=gora", "variant.min_rank=1", "variant.max_rank=6", "variant.batches=3"],
    ["variant=eva", "variant.rank=2", "variant.batches=3", "variant.passes=7"],
    ["variant=fish", "variant.samples=11"],
]


def assert_same_runs(one: Path, two: Path) -> None:
    """A run in one process and in two: all that it writes, but for the order of sums."""
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert (one / "ranks.jsonl").read_text() == (two / "ranks.jsonl").read_text()
    first, second = (tensors(state_files.load(folder / "adapter" / "state")) for folder in (one, two))
    assert first.keys() == second.keys()
    for place, value in first.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(second[place], value, rtol=1e-6, atol=1e-6, msg=lambda m, p=place: f"{p}: {m}")
    logs = [pd.read_json(folder / "metrics.jsonl", lines=True) for folder in (one, two)]
    pd.testing.assert_frame_equal(*logs, rtol=1e-6)
    predictions = [pd.read_parquet(folder / "predictions.parquet").drop(columns="outputs") for folder in (one, two)]
    pd.testing.assert_frame_equal(*predictions)
    rows = [record_of(folder) for folder in (one, two)]
    assert [row["config.train.processes"] for row in rows] == [None, 2]
    for name, value in rows[0].items():
        if name.startswith(("metric", "params", "rank", "steps", "data", "method")):
            assert rows[1][name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name


def test_runs_in_two_processes_are_those_in_one_with_twice_the_batch(carry_out, steady, tmp_path):
    settings = {method[0].removeprefix("variant="): [*steady, *method, "machine.save_every=4"] for method in METHODS}
    jobs = [composed([*own, f"study=two-{name}", "train.batch_size=4"]) for name, own in settings.items()]
    with pair.started(pair.sweep, jobs, tmp_path) as two:  # one after the other, in the same two processes
        for name, own in settings.items():
            carry_out(*own, f"study=one-{name}", "train.batch_size=8")
        assert two.ends() == [0, 0], [path.read_text() for path in tmp_path.glob("error-*")]
    differing = {}
    for name in settings:
        try:
            assert_same_runs(*(folder_of_run(tmp_path, f"{count}-{name}") for count in ("one", "two")))
        except AssertionError as error:
            differing[name] = str(error)
    assert not differing


def test_three_processes_whose_last_batches_have_twelve_and_two_rows_make_the_steps_of_one_batch(
    carry_out, steady, tmp_path
):
    methods = ["lora", "adalora"]  # with a penalty, too
    settings = [*steady, "data.limit=38", "train.checkpoint=last", "machine.log_every=1"]
    settings += ["variant.dropout=0", "train.group_by_length=false"]
    divided = [*settings, "train.batch_size=4", "train.accumulate=2"]
    jobs = [composed([*divided, f"variant={method}", f"study=three-{method}"]) for method in methods]
    with pair.started(pair.sweep, jobs, tmp_path, count=3) as three:
        for method in methods:
            carry_out(*settings, f"variant={method}", f"study=one-{method}", "train.batch_size=24")
        assert three.ends() == [0, 0, 0], [path.read_text() for path in tmp_path.glob("error-*")]
    for method in methods:
        one, three = (folder_of_run(tmp_path, f"{count}-{method}") for count in ("one", "three"))
        first, second = (state_files.load(folder / "adapter" / "state")["parameters"] for folder in (one, three))
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-7, atol=1e-9, msg=f"{method} {name}")
        logs = [pd.read_json(folder / "metrics.jsonl", lines=True) for folder in (one, three)]
        pd.testing.assert_frame_equal(*logs, rtol=1e-6, obj=method)


def test_a_divided_backbone_takes_less_memory_and_ends_with_the_same_bits_or_is_refused(steady, tmp_path):
    settings = [*steady, "variant=rosa", "variant.warmup_steps=2", "machine.save_every=2", "train.batch_size=4"]
    jobs = [composed([*settings, "study=whole"]), composed([*settings, "study=divided", "machine.fsdp=true"])]
    jobs.append(composed([*steady, "variant=full", "study=refused", "machine.fsdp=true"]))
    with pair.started(pair.sweep, jobs, tmp_path) as two:
        assert two.ends() == [1, 1]
    line = "machine.fsdp: true with full, allowed: false; it leaves no weight frozen"
    assert line in (tmp_path / "error-0").read_text()
    assert line in record_of(folder_of_run(tmp_path, "refused"))["error"]
    one, two = (folder_of_run(tmp_path, study) for study in ("whole", "divided"))
    for name in ("metrics.jsonl", "ranks.jsonl", "predictions.parquet", "adapter/state.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    first, second = record_of(one), record_of(two)
    assert second["memory.weights"] < 0.75 * first["memory.weights"]
    for name in ("activations", "gradients", "optimizer"):
        assert second[f"memory.{name}"] == first[f"memory.{name}"], name
    with finished.opened(two) as run:  # in this process, alone
        assert run.evaluate().metrics["accuracy"] == second["metric.value"]


@dataclass(kw_only=True)
class Troubled(LoRA):
    """LoRA to which `trouble` happens at step 4, in the second process alone."""

    trouble: str = ""

    def on_step_begin(self, step):
        self.now = step.index == 4 and launch.this().rank == 1
        if self.now and self.trouble == "error":
            raise RuntimeError("out of luck")
        if self.now and self.trouble == "death":
            os.kill(os.getpid(), signal.SIGKILL)

    def penalty(self):
        first = next(iter(self.adapters.values())).A
        return first.sum() * (float("nan") if self.now and self.trouble == "no number" else 0.0)

    @torch.no_grad()
    def on_update(self, step):
        if self.now and self.trouble == "drift":
            next(iter(self.adapters.values())).A[0, 0] += 1e-6


def troubled(trouble: str, *overrides: str) -> list[str]:
    return [f"variant._target_={__name__}.Troubled", f"+variant.trouble='{trouble}'", "train.max_steps=8", *overrides]


def test_a_process_that_dies_ends_the_run_and_the_first_process_says_so(steady, tmp_path):
    with pair.started(pair.run, composed([*steady, *troubled("death", "machine.save_every=2")]), tmp_path) as two:
        assert two.ends()[0] == 1 and two.ends()[1] != 0
    record, told = record_of(folder_of_run(tmp_path, "test")), "another process of this run has died without a message"
    assert record["status"] == "failed" and told in record["error"]
    assert told in (tmp_path / "error-0").read_text()


def test_trouble_in_one_process_ends_the_run_the_first_process_says_why_and_the_sweep_goes_on(steady, tmp_path):
    troubles = {
        "error": "process 1: RuntimeError: out of luck",
        "drift": "after step 4, parameters.bert.encoder.layer.0.attention.self.query.A is not the same on",
        "no number": None,  # a gradient that is not finite in one process is skipped by all
        "none": None,
    }
    jobs = [
        composed([*steady, *troubled(trouble), f"study=with {trouble}".replace(" ", "-"), "machine.save_every=2"])
        for trouble in troubles
    ]
    with pair.started(pair.sweep, jobs, tmp_path) as two:
        assert two.ends() == [2, 2]
    records = {trouble: record_of(folder_of_run(tmp_path, f"with {trouble}".replace(" ", "-"))) for trouble in troubles}
    assert {trouble: record["status"] for trouble, record in records.items()} == {
        trouble: "failed" if told else "done" for trouble, told in troubles.items()
    }
    said = (tmp_path / "error-0").read_text()
    for trouble, told in troubles.items():
        assert told is None or (told in records[trouble]["error"] and told in said), trouble
    assert [records[trouble]["steps.skipped"] for trouble in ("no number", "none")] == [1, 0]


def test_after_trouble_in_one_process_a_sweep_with_divided_backbones_ends(steady, tmp_path):
    jobs = [composed([*steady, *troubled(trouble), "machine.fsdp=true"]) for trouble in ("error", "")]
    with pair.started(pair.sweep, jobs, tmp_path) as two:
        assert two.ends() == [1, 1]
    (record,) = (record_of(path.parent) for path in (tmp_path / "runs" / "test").glob("*/record.json"))
    assert record["status"] == "failed" and "process 1: RuntimeError: out of luck" in record["error"]


def test_a_run_whose_processes_died_goes_on_and_ends_with_the_bits_of_the_undisturbed_run(tiny_overrides, tmp_path):
    settings = [*tiny_overrides, "variant=elalora", "variant.rank=4", "variant.interval=3", "variant.dropout=0.1"]
    settings += ["train.epochs=3", "train.batch_size=4", "machine.save_every=1"]
    with pair.started(pair.run, composed([*settings, "study=cut"]), tmp_path) as two:
        until = time.monotonic() + pair.SECONDS
        while not list((tmp_path / "runs" / "cut").glob("*/checkpoints/step-0000000[5-9]")):
            assert time.monotonic() < until and two.processes[0].is_alive()
            time.sleep(0.002)
        two.processes[0].kill()
        assert two.ends()[1] == 1
    jobs = [composed([*settings, f"study={study}"]) for study in ("cut", "straight")]
    with pair.started(pair.sweep, jobs, tmp_path) as two:
        assert two.ends() == [0, 0]
    straight, cut = (folder_of_run(tmp_path, study) for study in ("straight", "cut"))
    for name in ("metrics.jsonl", "ranks.jsonl", "predictions.parquet", "adapter/state.safetensors"):
        assert (straight / name).read_bytes() == (cut / name).read_bytes(), name


def test_torchrun_carries_out_a_sweep_in_which_a_bad_run_is_left_out_and_a_done_one_is_skipped(steady, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py", "-m"]
    command += [*steady, "train.max_steps=2", "variant.rank=2,400,3,2", "skip_invalid=true"]
    environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    environment["OMP_NUM_THREADS"] = "1"
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=pair.SECONDS, check=False
    )
    assert ended.returncode == 1, "one of them can't be"
    told = [line.partition(" on tiny")[0] for line in ended.stderr.splitlines() if line.startswith(("done", "failed"))]
    left_out = "invalid: lora rank=400 on tiny, seed 0: variant.rank: 400 for a layer of size 16×16, allowed: 1 … 16"
    assert left_out in ended.stderr.splitlines()
    ended_well = ["done: [1/4] lora rank=2", "done: [3/4] lora rank=3", "done already: [4/4] lora rank=2"]
    assert told == ended_well, ended.stderr
    records = [record_of(path.parent) for path in (tmp_path / "runs" / "test").glob("*/record.json")]
    assert [row["status"] for row in records] == ["done", "done"]
    assert all(row["config.train.processes"] == 2 for row in records)
