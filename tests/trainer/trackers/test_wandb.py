"""What W&B is given is what the run's own files say: offline runs, read back with W&B's own tool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from analysis.commands import dashboard
from tests.conftest import DIVERGING, folder_of
from tests.trainer.trackers.inspected import Inspected, runs_in
from trainer.errors import ConfigError, RunFailed
from trainer.record import flatten, read
from trainer.runs.run import run
from trainer.sweeps.plan import plan
from trainer.trackers.tracker import shortened
from trainer.trackers.wandb import Wandb

pytestmark = pytest.mark.slow

WANDB = ["tracker=wandb", "machine.log_every=2"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def only(folder: Path) -> Inspected:
    (found,) = runs_in(folder)
    return found


def without_nulls(row: dict) -> dict:
    return {name: value for name, value in row.items() if value is not None}


def shown_by_the_dashboard() -> set[str]:
    """Every name of a logged number or picture in the workspace."""
    spec = json.loads(dashboard.as_json(dashboard.workspace("p", "e", ("accuracy",))))["spec"]["section"]
    configs = [panel["config"] for part in spec["panelBankConfig"]["sections"] for panel in part["panels"]]
    places = ("xAxis", "yAxis", "zAxis", "metrics", "mediaKeys")
    values = [config[place] for config in configs for place in places if place in config]
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    names += [name for name in spec["runSets"][0]["runFeed"]["columnOrder"] if name.startswith("summary:")]
    assert len(names) > 25
    return {name.removeprefix("summary:") for name in names}


def test_a_run_is_read_back_as_its_own_files_say(carry_out, tmp_path, caplog):
    caplog.set_level("INFO", "trainer")
    record = carry_out("variant=adalora", "tracker.tags=[first]", *WANDB)
    folder = folder_of(record, tmp_path)
    logged = only(folder)

    # Who it is.
    assert logged.run["display_name"] == f"adalora-tiny-0-{record.run_id}"
    assert logged.run["run_id"].startswith(f"{record.run_id}-")
    assert (logged.run["project"], logged.run["run_group"], logged.run["job_type"]) == ("loratory", "test", "train")
    assert logged.run["tags"] == ["adalora", "tiny", "first"]
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert dict(flatten(logged.run["config"])) == dict(flatten(saved))  # nested; W&B drops empty mappings
    assert logged.folder.parent == folder / "wandb"

    # Row by row, in their order.
    axis = {"glob_name": "*", "options": {"defined": True, "step_sync": True}, "step_metric": "step"}
    assert axis in logged.metrics
    assert [row for row in logged.history if "epoch" in row] == lines(folder / "metrics.jsonl")
    ranks = lines(folder / "ranks.jsonl")
    assert len(ranks) > 3
    assert [row for row in logged.history if "ranks/max" in row] == [
        {
            "step": line["step"],
            "ranks/min": min(line["ranks"].values()),
            "ranks/mean": pytest.approx(sum(line["ranks"].values()) / len(line["ranks"])),
            "ranks/max": max(line["ranks"].values()),
        }
        for line in ranks
    ]

    # The end: the record, the table and the picture.
    last, row = logged.history[-1], record.row()
    assert last["step"] == record.steps.done
    assert last["params/effective"] == record.params.effective
    assert last["memory/optimizer"] == record.memory.optimizer
    shown = {name: value for name, value in flatten(logged.summary) if name in row}
    assert shown == row
    table = json.loads((logged.folder / "files" / last["ranks/layers.path"]).read_text())
    assert table["columns"] == ["step", "layer", "rank"]
    assert table["data"] == [[line["step"], layer, rank] for line in ranks for layer, rank in line["ranks"].items()]
    assert (logged.folder / "files" / last["ranks/map.path"]).read_bytes().startswith(b"\x89PNG")
    assert logged.exit_code == 0

    # The dashboard shows nothing that isn't there.
    sparse = lines(folder_of(carry_out("variant=sparse", "study=sparse"), tmp_path) / "metrics.jsonl")
    assert shown_by_the_dashboard() - logged.summary.keys() == {"sparsity"}
    assert any("sparsity" in row for row in sparse)

    # What the terminal and the folder say of it.
    said = [message for message in caplog.messages if message.startswith("tracker")]
    assert said == [
        f"tracker wandb: offline, no key is configured (WANDB_API_KEY or `wandb login`), logs to {folder / 'wandb'}"
    ]
    assert json.loads((folder / "tracker.json").read_text()) == {
        "name": "wandb",
        "project": "loratory",
        "group": "test",
        "run": f"adalora-tiny-0-{record.run_id}",
        "url": None,
        "sent": {"metrics.jsonl": len(lines(folder / "metrics.jsonl")), "ranks.jsonl": len(ranks)},
    }


@pytest.mark.usefixtures("forked_hosts")
def test_two_runs_of_one_process_are_two_runs_and_names_that_are_too_long_for_it_stand_in_full_in_its_config(
    carry_out, tmp_path, caplog
):
    long, others = "an-encoder-" * 13, ["", " ", "t" * 65, "t" * 66]
    named = [f"model.name={long}", "study=" + "s" * 200, f"tracker.tags={others}".replace("'", '"')]
    records = [carry_out("seed=0", *WANDB), carry_out("seed=1", *named, *WANDB)]
    found = [only(folder_of(record, tmp_path)) for record in records]
    assert len({logged.run["run_id"] for logged in found}) == 2
    for record, logged in zip(records, found, strict=True):
        assert logged.run["config"]["seed"] == record.seed
        assert [row for row in logged.history if "epoch" in row] == lines(folder_of(record, tmp_path) / "metrics.jsonl")
    logged = found[1]
    assert not [line for line in caplog.messages if "tracker" in line]
    assert logged.run["config"]["model"]["name"] == long and logged.run["config"]["study"] == "s" * 200
    assert len(logged.run["run_group"]) == 128
    tags = logged.run["tags"]
    assert tags[:2] == ["lora", "tiny"] and [len(tag) for tag in tags[2:]] == [64, 64, 64]
    assert len(set(tags)) == 5  # what is cut is told apart


@pytest.mark.parametrize("most", [64, 128])
def test_a_name_is_shortened_to_what_is_allowed(most):
    assert shortened("x" * most, most) == "x" * most
    names = {shortened(f"{'x' * 100}{number}{'y' * 100}", most) for number in range(20)}
    assert len(names) == 20 and {len(name) for name in names} == {most}


@pytest.mark.usefixtures("forked_hosts")
def test_a_failed_run_ends_as_failed_with_its_error(carry_out, tmp_path):
    with pytest.raises(RunFailed):
        carry_out(*DIVERGING, "optim.lr=1e30", *WANDB)
    (folder,) = (tmp_path / "runs" / "test").glob("[0-9a-f]*")
    record, logged = read(folder), only(folder)
    assert record.status == "failed" and logged.exit_code == 1
    assert logged.summary["error"] == record.error and record.error.startswith("train.max_skipped: ")


@pytest.mark.usefixtures("forked_hosts")
def test_an_interrupted_run_goes_on_with_its_curve(configured, tiny_overrides, tmp_path, monkeypatch):
    overrides = [*tiny_overrides, "variant=adalora", "machine.save_every=4", "machine.log_every=1", *WANDB[:1]]
    from trainer.loop.loop import Loop

    end_step = Loop.end_step

    def interrupt(self, index):
        end_step(self, index)
        if index == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "end_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(plan(configured(overrides)), [])
    folder = plan(configured(overrides)).folder
    (cut,) = runs_in(folder)
    assert cut.exit_code == 255
    record = run(plan(configured(overrides)), [])

    cut, rest = runs_in(folder)
    assert cut.run["run_id"] == rest.run["run_id"]
    rows = lines(folder / "metrics.jsonl")
    sent = [row for logged in (cut, rest) for row in logged.history if "epoch" in row]
    # What was made again came out as it was, and isn't sent again.
    assert sent == rows
    assert [row["step"] for row in cut.history if "epoch" in row][-1] == 7
    assert dict(flatten(rest.summary))["metric.value"] == record.metric.value


@pytest.mark.parametrize(
    "settings", [["tracker=wandb", "tracker.project=x", "tracker.mode=offline"], ["tracker=trackio"]]
)
def test_a_tracker_is_no_part_of_what_a_run_is(settings, configured, tiny_overrides):
    assert plan(configured([*tiny_overrides, *settings])).run_id == plan(configured(tiny_overrides)).run_id


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"mode": "sometimes"}, "tracker.mode: 'sometimes', allowed: online, offline, or null"),
        ({"project": "a/b"}, r"tracker.project: 'a/b', allowed: up to 128 characters without /\#?%:"),
        ({"timeout": 0}, "tracker.timeout: 0, allowed: a number of seconds > 0"),
    ],
)
def test_settings_that_can_not_work_are_refused_by_name(settings, says):
    with pytest.raises(ConfigError) as error:
        Wandb(**settings).check()
    assert str(error.value) == says
