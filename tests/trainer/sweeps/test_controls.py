"""Controls of adaptive ranks: LoRA at the ranks that another run found, permuted or not, in one sweep with that run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import open_dict

from analysis.commands import cli
from tests.conftest import DIVERGING, folder_of
from tests.trainer.sweeping import finished
from trainer import record
from trainer.errors import ConfigError
from trainer.runs.finished import opened
from trainer.sweeps.plan import plan

ADALORA = ["variant=adalora", "variant.rank=4", "variant.target_rank=2", "variant.interval=2", "variant.final_steps=2"]

FILES = {
    "adalora": """
        defaults: [/variant/adalora@variant, _self_]
        variant: {rank: 4, target_rank: 2, interval: 2, final_steps: 4}
        optim: {lr: 1e-2}
    """,
    "found": """
        defaults: [/variant/lora@variant, /variant/tiny/adalora@variant.ranks_from, _self_]
        variant: {name: found}
    """,
    "permuted": """
        defaults: [/variant/lora@variant, /variant/tiny/adalora@variant.ranks_from, _self_]
        variant: {name: permuted, permute_seed: "${seed}"}
    """,
    "failing": """
        defaults: [/variant/adalora@variant, _self_]
        variant: {rank: 4, target_rank: 2}
    """,
    "of_failing": """
        defaults: [/variant/lora@variant, /variant/tiny/failing@variant.ranks_from, _self_]
        variant: {name: of-failing}
    """,
    "peak_cut": """
        defaults: [/variant/para@variant, _self_]
        variant: {name: peak-cut, rank: 4, target_rank: 2}
    """,
}


@pytest.fixture
def told(tiny_overrides, tmp_path):
    """Exit code and output of a sweep over the variants above."""
    folder = tmp_path / "conf" / "variant" / "tiny"
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        lines = [line.strip() for line in text.strip().splitlines()]
        (folder / f"{name}.yaml").write_text("\n".join(["# @package _global_", *lines]) + "\n")

    def call(*overrides: str, flags: tuple[str, ...] = ("-m",)) -> tuple[int, str]:
        return finished(
            [*tiny_overrides, "train.checkpoint=last", *overrides], tmp_path / "log",
            (*flags, "--config-dir", str(tmp_path / "conf")),
        )  # fmt: skip

    return call


@pytest.fixture
def origin(finished_run) -> Path:
    """The folder of a run of AdaLoRA."""
    return finished_run(*ADALORA)


def records(tmp_path: Path) -> dict[tuple[str, int], dict]:
    """The records below the folder, by variant and seed."""
    rows = [json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("record.json")]
    return {(row["variant"], row["seed"]): row | {"ranks": ranks(tmp_path, row)} for row in rows}


def ranks(tmp_path: Path, row: dict) -> dict[str, int]:
    path = tmp_path / "runs" / row["study"] / row["run_id"] / "ranks.jsonl"
    return json.loads(path.read_text().splitlines()[-1])["ranks"]


@pytest.mark.slow
def test_one_sweep_carries_out_a_method_and_its_controls(told, tmp_path, capsys):
    command = ["variant=tiny/permuted,tiny/found,tiny/peak_cut,tiny/adalora", "seed=0,1"]
    code, output = told(*command)
    assert code == 0, output
    assert "8 runs: 8 ran, 0 done already, 0 failed" in output
    found = records(tmp_path)
    assert len(found) == 8
    for seed in (0, 1):
        method = found["adalora", seed]
        for control in ("found", "permuted"):
            row = found[control, seed]
            assert row["config.variant.ranks_from.run_id"] == method["run_id"]
            assert row["config.variant.ranks_from.seed"] == seed
            # The triplets of AdaLoRA have one number more than LoRA's components.
            assert row["params.effective"] == method["params.effective"] - method["rank.end"]
            assert sorted(row["ranks"].values()) == sorted(method["ranks"].values())
            assert row["started"] >= method["finished"]
        assert found["found", seed]["ranks"] == method["ranks"] != found["permuted", seed]["ranks"]
        assert sum(found["peak-cut", seed]["ranks"].values()) == sum(method["ranks"].values())
    code, output = told(*command)
    assert code == 0 and "8 runs: 0 ran, 8 done already, 0 failed" in output
    cli.main(["table", str(tmp_path / "runs")])
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if "(2)" in line]
    assert sorted(rows) == ["adalora", "found", "peak-cut", "permuted"], "both seeds of a control are in one row"


@pytest.mark.slow
def test_a_run_that_no_one_carries_out_is_named_before_anything_starts(told, tmp_path):
    code, output = told("variant=tiny/found", "seed=3")
    assert code == 1 and not list(tmp_path.rglob("record.json"))
    assert "variant.ranks_from: adalora on tiny, seed 3 (" in output
    assert " is not done, allowed: a finished run; carry it out first" in output
    code, output = told("variant=tiny/found", "seed=3", flags=())
    (line,) = output.splitlines()
    assert code == 1 and line.startswith("error: variant.ranks_from: adalora on tiny, seed 3 (")


@pytest.mark.slow
def test_other_settings_of_a_waiting_run_are_checked_before_anything_starts(told, tmp_path):
    code, output = told("variant=tiny/found,tiny/adalora", "variant.targets=[nowhere]")
    assert code == 1 and not list(tmp_path.rglob("record.json"))
    assert "2 of 2 runs can't be carried out" in output


@pytest.mark.slow
def test_a_dry_run_predicts_what_does_not_wait(told, tmp_path):
    code, output = told("variant=tiny/found,tiny/adalora", "machine.dry_run=true")
    assert code == 0 and not (tmp_path / "runs").exists(), output
    assert "found" in output and "not predicted: its ranks are not known before the run " in output


def test_a_control_of_a_run_that_was_repeated_since_says_so(origin, carry_out, configured, tiny_overrides, caplog):
    control = carry_out(*at_ranks_of(origin))
    config = [*tiny_overrides, *at_ranks_of(origin)]
    assert plan(configured(config)).done and "carried out again" not in caplog.text
    again = record.read(origin)
    again.finished = "9" + control.started[1:]
    record.write(again, origin)
    assert plan(configured(config)).done
    assert f"was carried out again since; redo=true repeats the run {control.run_id}" in caplog.text


@pytest.mark.slow
def test_the_controls_of_a_failed_run_say_which_one_is_missing(told, tmp_path):
    code, output = told("variant=tiny/of_failing,tiny/failing", "study=failing", "optim.lr=1e30", *DIVERGING)
    assert code == 1 and "2 runs: 0 ran, 0 done already, 2 failed" in output
    assert "failed: variant.ranks_from: adalora on tiny, seed 0 (" in output


# -- the ranks of a folder -------------------------------------------------------------------------


def at_ranks_of(folder: Path | str, *overrides: str) -> list[str]:
    return ["variant=lora", "variant.name=at-ranks", f"variant.ranks_from={folder}", *overrides]


def test_lora_is_trained_at_the_ranks_of_a_folder(origin, carry_out, tmp_path, configured, tiny_overrides):
    method, control = record.read(origin), carry_out(*at_ranks_of(origin))
    assert ranks(tmp_path, control.row()) == ranks(tmp_path, method.row())
    assert control.params.effective == control.params.closed_form < method.params.effective
    planned = plan(configured([*tiny_overrides, *at_ranks_of(origin)]))
    assert planned.done and planned.run_id == control.run_id
    moved = shutil.copytree(origin, tmp_path / "elsewhere" / origin.name)
    shutil.rmtree(origin)
    assert plan(configured([*tiny_overrides, *at_ranks_of(moved)])).run_id == control.run_id
    shutil.rmtree(moved)
    with opened(folder_of(control, tmp_path)) as run:  # which needs the other no more
        assert run.evaluate().metrics == control.metrics


def test_settings_and_folder_name_the_same_run(origin, configured, tiny_overrides):
    config = configured([*tiny_overrides, *at_ranks_of("null")])
    with open_dict(config):
        config.variant.ranks_from = {"variant": configured([*tiny_overrides, *ADALORA]).variant}
    by_settings = plan(config)
    assert by_settings.run_id == plan(configured([*tiny_overrides, *at_ranks_of(origin)])).run_id
    with open_dict(config):
        config.variant.ranks_from.seed = 7
    assert plan(config).run_id != by_settings.run_id


def test_a_run_without_it_keeps_its_name(configured, tiny_overrides):
    leaves = plan(configured([*tiny_overrides, "variant=lora"])).identity.leaves
    assert not any("ranks_from" in name or "permute" in name for name in leaves)


def test_another_seed_of_the_permutation_is_another_run(origin, configured, tiny_overrides):
    ids = {
        plan(configured([*tiny_overrides, *at_ranks_of(origin, f"variant.permute_seed={s}")])).run_id for s in (0, 1)
    }
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["variant.rank=4"], "variant.rank: 4 with ranks_from, allowed: 8; that run decides the ranks"),
        (["variant.budget=900"], "variant.budget: 900 with ranks_from, allowed: None"),
        (["variant.init=pissa"], "variant.init: 'pissa' with ranks_from, allowed: lora"),
        (["variant.targets=[query]"], "variant.ranks_from: .* is adapted in that run alone, allowed: the same layers"),
        (["variant.permute_seed=-1"], "variant.permute_seed: -1, allowed: a whole number ≥ 0"),
    ],
)
def test_settings_that_the_ranks_decide_are_refused(origin, carry_out, overrides, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        carry_out(*at_ranks_of(origin, *overrides))


def test_what_has_no_ranks_is_refused(origin, carry_out, configured, tiny_overrides, tmp_path):
    with pytest.raises(ConfigError, match=r"^variant\.ranks_from: .*nowhere: not a finished run"):
        plan(configured([*tiny_overrides, *at_ranks_of(tmp_path / "nowhere")]))
    without = folder_of(carry_out("variant=bitfit"), tmp_path)
    with pytest.raises(ConfigError, match=r"^variant\.ranks_from: .*: bitfit has no ranks, allowed: a run of a method"):
        carry_out(*at_ranks_of(without))
    path = origin / "ranks.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:1]) + "\n")  # before anything was pruned
    with pytest.raises(
        ConfigError, match=r"^variant\.ranks_from: .*ranks\.jsonl: 48 ranks in 12 layers, the record has 24"
    ):
        carry_out(*at_ranks_of(origin))
    config = configured([*tiny_overrides, *at_ranks_of("null")])
    for value, message in (
        ({"seed": 1}, "settings of seed, allowed: those of another variant"),
        (3, "3, allowed: the folder"),
    ):
        with open_dict(config):
            config.variant.ranks_from = value
        with pytest.raises(ConfigError, match=rf"^variant\.ranks_from: {message}"):
            plan(config)


def test_the_shipped_controls_compose_and_name_the_run_that_the_sweep_carries_out(configured, tmp_path):
    shared = ["experiment=controls", f"runs_dir={tmp_path}", "seed=1"]
    method = plan(configured([*shared, "variant=families/adalora"]))
    for control in ("found_ranks", "permuted_ranks"):
        leaves = plan(configured([*shared, f"variant=controls/{control}"])).identity.leaves
        assert leaves["variant.ranks_from.run_id"] == method.run_id
    elalora = plan(configured([*shared, "variant=families/elalora"])).run_id
    other = [*shared, "variant=controls/found_ranks", "variant/families@variant.ranks_from=elalora"]
    planned = plan(configured(other))
    assert planned.identity.leaves["variant.ranks_from.run_id"] == elalora
    assert planned.config.variant.name == "elalora-ranks-in-lora"
