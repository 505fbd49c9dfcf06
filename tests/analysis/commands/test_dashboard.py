"""The W&B workspace as code: what it shows, and that it can be made without an account."""

from __future__ import annotations

import json

import pytest

from analysis.commands import cli, dashboard


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    pytest.importorskip("wandb_workspaces.workspaces")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers there


def panels(section: str) -> list[dict]:
    made = json.loads(dashboard.as_json(dashboard.workspace("p", "e", ("accuracy", "pearson"))))
    sections = made["spec"]["section"]["panelBankConfig"]["sections"]
    (found,) = [each for each in sections if each["name"] == section]
    return [panel["config"] | {"kind": panel["viewType"]} for panel in found["panels"]]


def test_results_stand_against_parameters_memory_and_time():
    shown = {(panel["kind"], panel["xAxis"], panel["yAxis"]) for panel in panels("Result against cost")}
    assert shown == {
        ("Scatter Plot", f"summary:{name}", "summary:metric/value")
        for name in ("params/effective", "memory/optimizer", "time/train")
    }


def test_curves_are_mean_and_sd_of_a_group_of_runs_over_steps():
    curves = panels("Learning curves by group")
    assert {"eval/accuracy", "eval/pearson", "eval/loss", "train/task_loss", "train/penalty"} <= {
        curve["metrics"][0] for curve in curves
    }
    for curve in curves:
        assert curve["xAxis"] == "step"
        assert "groupBy" not in curve, "grouped as the runs are: a mean over tasks would be none"
        assert (curve["groupAgg"], curve["groupArea"]) == ("mean", "stddev")


def test_memory_is_split_into_its_parts():
    bars = [panel for panel in panels("Memory by its parts") if panel["metrics"][0].startswith("memory/")]
    assert [bar["metrics"] for bar in bars] == [
        [f"memory/{part}"] for part in ("weights", "gradients", "optimizer", "activations")
    ]
    assert not any("groupBy" in bar for bar in bars)


def test_ranks_and_effective_parameters_are_shown_over_time_and_ranks_as_maps():
    shown = panels("Ranks and sparsity")
    assert [panel["metrics"] for panel in shown if panel["kind"] == "Run History Line Plot"] == [
        ["budget/total_rank"],
        ["params/effective"],
        ["ranks/min"],
        ["ranks/mean"],
        ["ranks/max"],
        ["sparsity"],
    ]
    assert [panel["mediaKeys"] for panel in shown if panel["kind"] == "Media Browser"] == [["ranks/map"]]


def test_runs_are_grouped_by_variant_task_and_what_else_differs_with_the_best_first():
    made = dashboard.workspace("p", "e", by=("variant.rank",))
    (runs,) = json.loads(dashboard.as_json(made))["spec"]["section"]["runSets"]
    names = ("variant.value.name", "task.value.name", "variant.value.rank")  # as W&B keeps config.variant.name
    assert runs["grouping"] == [{"section": "config", "name": name} for name in names]
    assert {"run:group", "config:seed.value", "config:optim.value.lr"} <= set(runs["runFeed"]["columnPinned"])
    assert runs["sort"]["keys"] == [{"key": {"section": "summary", "name": "metric/value"}, "ascending": False}]
    assert "summary:params/effective" in runs["runFeed"]["columnPinned"]


def test_runs_of_one_study_are_shown_alone():
    made = dashboard.as_json(dashboard.workspace("p", "e", study="families"))
    (runs,) = json.loads(made)["spec"]["section"]["runSets"]
    assert "families" in json.dumps(runs["filters"]) and "group" in json.dumps(runs["filters"])
    (everything,) = json.loads(dashboard.as_json(dashboard.workspace("p", "e")))["spec"]["section"]["runSets"]
    assert "group" not in json.dumps(everything["filters"])


def shown(capsys, *arguments: str) -> tuple[list[str], str, str]:
    """Names of the settings that group the runs, the workspace's name, and its JSON."""
    assert cli.main(["dashboard", *arguments, "--dry-run"]) == 0
    text = capsys.readouterr().out
    (runs,) = json.loads(text)["spec"]["section"]["runSets"]
    return [each["name"] for each in runs["grouping"]], json.loads(text)["displayName"], text


def test_of_runs_it_takes_what_differs_their_study_and_their_metrics(store, capsys):
    for seed in (0, 1):
        for rank in (4, 8):
            settings = {"variant.rank": rank, "variant.alpha": 1}
            store.add("lora", seed, task="opinion", metric__name="pearson", config=settings)
    names, title, text = shown(capsys, "runs")
    assert names == ["variant.value.name", "task.value.name", "variant.value.rank"], "seed and alpha tell none apart"
    assert title.startswith("Loratory: ") and title.removeprefix("Loratory: ") in text.partition("filters")[2]
    assert "eval/pearson" in text and "eval/accuracy" not in text
    assert shown(capsys, "runs", "--by", "optim.lr")[0][-1] == "optim.value.lr", "what is given counts"


def test_runs_of_several_studies_need_one_to_be_named(store, capsys):
    for study in ("one", "three"):
        store.add("lora", 0, study=study, config={"variant.rank": len(study)}, under=f"runs/{study}")
    assert cli.main(["dashboard", "runs", "--dry-run"]) == 2
    assert "--study: not given for runs of one, three; allowed: one of them" in capsys.readouterr().err
    assert shown(capsys, "runs", "--study", "three")[1] == "Loratory: three"


def test_the_project_is_that_of_the_tracker_unless_another_is_named(capsys):
    assert cli.main(["dashboard", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["project"] == "loratory"


def test_dry_run_prints_what_would_be_saved(capsys):
    assert cli.main(["dashboard", "--project", "p", "--entity", "e", "--dry-run"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["entity"], printed["project"], printed["displayName"]) == ("e", "p", "Loratory")


def test_a_workspace_that_does_not_come_back_as_it_was_is_an_error(monkeypatch):
    from wandb_workspaces import workspaces as ws

    made = dashboard.workspace("p", "e")
    back = ws.Workspace._from_model

    def loses(model):
        found = back(model)
        found.sections[0].panels.pop()
        return found

    monkeypatch.setattr(ws.Workspace, "_from_model", staticmethod(loses))
    with pytest.raises(dashboard.AnalysisError, match="does not read this workspace as it was written"):
        dashboard.as_json(made)


def test_without_a_key_it_says_in_one_line_what_to_set(capsys):
    assert cli.main(["dashboard", "--project", "p"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "analysis: no key is configured for http://127.0.0.1:9; "
        "set WANDB_API_KEY or run `wandb login`, or use --dry-run"
    )


def test_a_key_that_is_none_is_not_repeated(capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    assert cli.main(["dashboard", "--project", "p"]) == 2
    error = capsys.readouterr().err
    assert "is none that W&B could have given" in error and "too-short" not in error


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.workspaces", None)
    assert cli.main(["dashboard", "--project", "p", "--dry-run"]) == 2
    assert "pip install 'loratory[workspaces]'" in capsys.readouterr().err
