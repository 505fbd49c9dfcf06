"""All runs of a sweep are checked before the first one trains, and a run before anything of it is on disk."""

from __future__ import annotations

import pytest

from tests.trainer.sweeping import finished
from trainer import record as records
from trainer.errors import ConfigError

FAST = ["train.max_steps=2", "train.epochs=1"]


def lines(output: str, start: str) -> list[str]:
    return [line.removeprefix(start) for line in output.splitlines() if line.startswith(start)]


def test_every_bad_setting_of_a_sweep_is_named_and_nothing_starts(tiny_overrides, tmp_path):
    ranks = "variant.rank=2,0,-1,99,2.5"
    code, output = finished([*tiny_overrides, *FAST, "variant=lora", ranks, "seed=0,1"], tmp_path / "log")
    assert code == 1
    assert lines(output, "invalid: ") == [
        "lora rank=0 on tiny, seeds 0, 1: variant.rank: 0, allowed: a whole number ≥ 1",
        "lora rank=-1 on tiny, seeds 0, 1: variant.rank: -1, allowed: a whole number ≥ 1",
        "lora rank=99 on tiny, seeds 0, 1: variant.rank: 99 for a layer of size 16×16, allowed: 1 … 16",
        "lora rank=2.5 on tiny, seeds 0, 1: variant.rank: 2.5, allowed: a whole number",
    ]
    assert "error: 8 of 10 runs can't be carried out, and none was started; skip_invalid=true" in output
    assert "running: " not in output and not list((tmp_path / "runs").rglob("*"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["variant=adalora", "train.max_steps=10", "variant.interval=1,100"], "adalora interval=100 on tiny, seed 0: "),
        (["variant.targets=all-linear,[nowhere]"], "lora targets=[nowhere] on tiny, seed 0: variant.targets: "),
        (["task.source.label=label,lable"], "lora label=lable on tiny, seed 0: task.source.train_path: "),
        (["task.metrics=[accuracy],[pearson]"], "lora metrics=[pearson] on tiny, seed 0: task.metrics: "),
        (["variant.budget=null,7"], "lora budget=7 on tiny, seed 0: variant.budget: 7"),
        (["optim.optimizer.betas=[0.9,0.99],[2,0.9]"], "lora betas=[2,0.9] on tiny, seed 0: optim.optimizer.betas: "),
        (["data.limit=null,1"], "lora limit=1 on tiny, seed 0: data.limit: 1 leaves"),
        (["data.max_length=16,2"], "lora max_length=2 on tiny, seed 0: data.max_length: 2"),
        (
            ["machine.kernel=fused,plain", "train.recompute=true"],
            "lora kernel=plain on tiny, seed 0: train.recompute: ",
        ),
    ],
)
def test_what_is_known_without_weights_is_found_first(tiny_overrides, tmp_path, overrides, message):
    given = {text.partition("=")[0] for text in overrides}
    base = [text for text in tiny_overrides if text.partition("=")[0] not in given]
    code, output = finished([*base, *overrides], tmp_path / "log")
    found = lines(output, "invalid: ")
    assert code == 1 and any(line.startswith(message) for line in found), output
    assert not list(records.find(tmp_path / "runs"))


def test_bad_runs_are_left_out_where_that_is_asked_for(tiny_overrides, tmp_path):
    command = [*tiny_overrides, *FAST, "variant=lora", "variant.rank=0,2", "skip_invalid=true"]
    code, output = finished(command, tmp_path / "log")
    assert code == 1
    assert "2 runs: 1 ran, 0 done already, 1 invalid, 0 failed, 0 locked elsewhere" in output
    assert "error: 1 of 2 runs were left out, the first: lora rank=0 on tiny, seed 0: variant.rank: 0" in output
    (done,) = [records.read(path) for path in records.find(tmp_path / "runs")]
    assert done.status == "done"


def test_leaving_runs_out_is_no_part_of_a_name(configured, tiny_overrides):
    from trainer.sweeps.plan import plan

    said = plan(configured([*tiny_overrides, "skip_invalid=true"]))
    assert said.run_id == plan(configured(tiny_overrides)).run_id


def test_a_field_that_a_variant_lacks_names_the_run(tiny_overrides, tmp_path):
    code, output = finished([*tiny_overrides, "variant=lora,head", "variant.rank=4,8"], tmp_path / "log")
    assert code == 1
    assert lines(output, "invalid: ") == [
        f"variant=head variant.rank={rank}: variant.rank: no such field of the variant head, allowed: name"
        for rank in (4, 8)
    ]


def test_a_setting_is_looked_at_once_for_all_its_seeds(configured, tiny_overrides, monkeypatch):
    from trainer.runs import assemble
    from trainer.runs.check import Checks

    asked = []
    for name in ("read", "fit"):
        made = getattr(assemble, name)
        monkeypatch.setattr(assemble, name, lambda *given, made=made, name=name: asked.append(name) or made(*given))
    checks = Checks()
    for seed in range(5):
        for rank in (2, 4):
            checks.check(configured([*tiny_overrides, f"seed={seed}", f"variant.rank={rank}"]))
    assert asked == ["read", "fit", "fit"]


def test_each_seed_is_looked_at_where_it_draws_the_rows(configured, tiny_overrides):
    from trainer.runs.check import Checks

    checks, refused = Checks(), []
    for seed in range(8):
        try:
            checks.check(configured([*tiny_overrides, f"seed={seed}", "data.limit=2"]))
        except ConfigError as error:
            refused.append(str(error))
    assert 0 < len(refused) < 8 and all(line.startswith("data.limit: 2 leaves") for line in refused)


def test_no_weight_is_loaded(configured, tiny_overrides, monkeypatch):
    from trainer.model import backbone
    from trainer.runs.check import Checks

    monkeypatch.setattr(backbone, "load_backbone", lambda *_: pytest.fail("weights were loaded"))
    for variant in ("lora", "adalora", "peft_lora", "svdiff", "full"):
        Checks().check(configured([*tiny_overrides, f"variant={variant}", "train.max_steps=200"]))


@pytest.mark.parametrize("override", ["variant.rank=99", "task.source.label=no", "machine.device=cuda:99"])
def test_a_single_run_that_cant_be_leaves_nothing_behind(tiny_overrides, tmp_path, override):
    code, output = finished([*tiny_overrides, override], tmp_path / "log", flags=())
    field = override.partition("=")[0].replace("label", "train_path")
    assert code == 1 and "running: " not in output
    assert output.splitlines()[-1].startswith(f"error: {field}: ")
    assert not (tmp_path / "runs").exists()


def test_an_unexpected_error_of_a_check_is_no_refusal(carry_out, monkeypatch):
    from trainer.runs import assemble

    def broken(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(assemble, "fit", broken)
    with pytest.raises(ZeroDivisionError):
        carry_out()
