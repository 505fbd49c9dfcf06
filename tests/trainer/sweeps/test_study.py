"""The study of docs/study/protocol.md from end to end, at toy size: tune, choose, report, control, compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from analysis.commands import cli
from tests.trainer.sweeping import sweep

BUDGET = 900  # parameters: rank 2 of the tiny model


@pytest.mark.slow
def test_rates_are_tuned_and_chosen_and_the_report_and_its_controls_train_with_them(
    tiny_overrides, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    tiny = [text for text in tiny_overrides if not text.startswith(("optim.lr", "study", "train.epochs"))]
    toy = [*tiny, "train.max_steps=12", "train.batch_size=2", "data.eval_limit=null"]
    schedule = [("budget", BUDGET), ("initial_steps", 2), ("final_steps", 6), ("interval", 1)]  # within twelve steps
    own = [f"variant.{name}={value}" for name, value in schedule]
    methods = (["variant=study/lora", *own[:1]], ["variant=study/adalora", *own])
    for method in methods:
        sweep([*toy, *method, "experiment=study/tune", "study=tune-toy", "optim.lr=1e-3,1e-2"])
    Path("conf/rates").mkdir(parents=True)
    assert cli.main(["choose", "runs/tune-toy", "--output", "conf/rates/toy.yaml"]) == 0
    written = yaml.safe_load(Path("conf/rates/toy.yaml").read_text())
    chosen = written["choices"]["tiny"]
    for method, rate in (("lora", 3e-3), ("adalora", 7e-3)):  # on a toy, two methods may have the same best rate
        assert chosen[method]["value"] in (1e-3, 1e-2)
        chosen[method]["value"] = rate
    Path("conf/rates/toy.yaml").write_text(yaml.safe_dump(written))
    for method in methods:
        sweep([*toy, *method, "experiment=study/report", "study=toy", "seed=0"])
    controls = [*toy, "experiment=study/controls", "study=toy", "seed=0"]
    sweep([*controls, *own, "variant=study/controls/random_ranks"])
    found = [text.replace("variant.", "variant.ranks_from.variant.") for text in own]
    sweep([*controls, *found, "variant=study/controls/found_ranks"])

    records = [json.loads(path.read_text()) for path in Path("runs/toy").glob("*/record.json")]
    variants = ["adalora", "adalora-random", "adalora-ranks-in-lora", "lora"]
    assert sorted(row["variant"] for row in records) == variants
    for row in records:
        method = "adalora" if row["variant"] in ("adalora", "adalora-random") else "lora"
        assert row["config.optim.lr"] == chosen[method]["value"]
        assert row["data.protocol"] == "split" and row["status"] == "done"
    assert cli.main(["compare", "--all", "lora", "runs/toy"]) == 0
    assert "\n| adalora " in capsys.readouterr().out
