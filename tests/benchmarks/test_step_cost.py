"""The benchmark of a step: its arithmetic on made-up numbers, its tables to the letter, one run of it on a toy."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from benchmarks import step_cost
from benchmarks.growth import Growth
from benchmarks.stepper import FEWEST
from tests.classifiers import pristine
from tests.conftest import ROOT


def row(ms: float, over: float, saved: float, hooks: float = 0.0) -> step_cost.Row:
    """Of a method in a setting whose floor takes 100 ms."""
    spread = {"ms": ms, "ms_low": ms - 1.6, "ms_high": ms + 2.4, "hooks": hooks, "rounds": 5}
    return spread | {"over_floor": over, "activations_mib": saved, "overhead": over / 100}


def setting(ours: float, adalora: float, saved: float, share: float) -> dict[str, step_cost.Row]:
    """PEFT's lora and adalora cost 40 ms and 50 ms, and save 20 MiB."""
    return {
        "floor": row(100, 0, 10),
        "lora": row(100 + ours, ours, saved),
        "peft lora": row(140, 40, 20),
        "adalora": row(200, adalora, 15, hooks=200 * share),
        "peft adalora": row(150, 50, 20),
        "full": row(260, 161, 30),
    }


RESULTS = {
    "8 × 16": setting(10, 20, 25, 0.01),
    "32 × 16": setting(30, 30, 20, 0.02),
    "8 × 64": setting(20, 65, 15, 0.06),
}


def test_the_overhead_ratio_is_the_median_over_the_settings_beside_its_worst():
    assert step_cost.summary(RESULTS) == {
        "overhead_ratio": {"lora": 0.5, "adalora": 0.6},
        "worst_overhead_ratio": {"lora": 0.75, "adalora": 1.3},
        "activation_ratio": {"lora": 1.25, "adalora": 0.75},
        "allocation_share": pytest.approx(0.02),
        "worst_allocation_share": pytest.approx(0.06),
    }


def test_ratios_are_of_what_every_setting_has():
    some = {"8 × 16": RESULTS["8 × 16"], "32 × 16": {n: RESULTS["32 × 16"][n] for n in ("floor", "lora", "peft lora")}}
    found = step_cost.summary(some)
    assert found["overhead_ratio"] == {"lora": 0.5} and "allocation_share" not in found
    assert "AdaLoRA" not in "\n".join(step_cost.closing(found, {}))


def test_methods_are_measured_some_at_a_time_each_with_floor_and_counterpart(monkeypatch):
    monkeypatch.setattr(step_cost, "TOGETHER", 2)
    names = ["floor", "lora", "peft lora", "svft", "sora"]
    assert list(step_cost.groups(names, {})) == [["floor", "lora", "peft lora", "sora"], ["floor", "svft"]]
    assert list(step_cost.groups(names, {name: {} for name in names if name != "peft lora"})) == [
        ["floor", "lora", "peft lora"]
    ]
    assert list(step_cost.groups(names, {name: {} for name in names})) == []
    assert list(step_cost.groups(["floor"], {})) == [["floor"]]


def test_what_one_alone_has_is_not_compared():
    assert step_cost.shared(RESULTS["8 × 16"]) == ["lora", "adalora"]
    assert step_cost.shared({"floor": {}, "svft": {}, "peft vera": {}}) == []


def test_the_table_says_times_with_quartiles_the_share_over_the_floor_and_the_ratio():
    assert "\n".join(step_cost.table({"8 × 16": RESULTS["8 × 16"]})) == (
        "| batch × length | method | ms a step (quartiles) | over the floor | to PEFT's | saved MiB |\n"
        "|---|---|---|---|---|---|\n"
        "| 8 × 16 | floor | 100 (98 … 102) |  |  | 10.0 |\n"
        "| 8 × 16 | lora | 110 (108 … 112) | +10% | 0.25 | 25.0 |\n"
        "| 8 × 16 | peft lora | 140 (138 … 142) | +40% |  | 20.0 |\n"
        "| 8 × 16 | adalora | 200 (198 … 202) | +20% | 0.40 | 15.0 |\n"
        "| 8 × 16 | peft adalora | 150 (148 … 152) | +50% |  | 20.0 |\n"
        "| 8 × 16 | full | 260 (258 … 262) | +161% |  | 30.0 |"
    )


def test_the_closing_lines_say_ratios_the_share_of_allocation_and_how_cost_grows():
    grown = {
        "rank": Growth({1: 3.04, 8: 24.0}, 3.0, "ms a rank"),
        "width": Growth({128: -1.0, 256: 2.0}, float("nan"), "as the power of the width"),
    }
    assert "\n".join(step_cost.closing(step_cost.summary(RESULTS), grown)) == (
        "| | lora | adalora |\n"
        "|---|---|---|\n"
        "| overhead, ours to PEFT's: median over the settings | 0.50 | 0.60 |\n"
        "| the same: the worst setting | 0.75 | 1.30 |\n"
        "| saved activations, ours to PEFT's: the worst setting | 1.25 | 0.75 |\n"
        "\n"
        "AdaLoRA's scoring and masking: 2.0% of its step (median over the settings), 6.0% in the worst one.\n"
        "LoRA over the floor by rank (1: 3.0, 8: 24.0 ms): 3 ms a rank.\n"
        "LoRA over the floor by width (128: -1.0, 256: 2.0 ms): nan as the power of the width."
    )


def test_the_tables_take_the_place_of_what_stands_between_their_marks_alone(tmp_path):
    file = tmp_path / "README.md"
    text = "before\n<!-- step_cost -->\nold\n<!-- /step_cost -->\nbetween\n"
    text += "<!-- step_cost cuda -->\n<!-- /step_cost cuda -->\n"
    file.write_text(text)
    step_cost.write(file, ["new", "lines"])
    assert file.read_text() == text.replace("old", "new\nlines")
    step_cost.write(file, ["of a GPU"], "step_cost cuda")
    assert file.read_text() == text.replace("old", "new\nlines").replace("cuda -->\n<", "cuda -->\nof a GPU\n<")


@pytest.mark.parametrize("text", ["", "<!-- step_cost -->", 2 * "<!-- step_cost --><!-- /step_cost -->"])
def test_a_file_without_a_pair_of_marks_is_left_as_it_is(tmp_path, text):
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(ValueError, match="allowed: one <!-- step_cost --> and one <!-- /step_cost -->"):
        step_cost.write(file, ["new"])
    assert file.read_text() == text


def test_the_page_has_a_place_for_the_tables_of_a_processor_and_of_a_gpu(tmp_path):
    file = Path(shutil.copy(ROOT / "benchmarks" / "README.md", tmp_path))
    step_cost.write(file, ["of a processor"])
    step_cost.write(file, ["of a GPU"], "step_cost cuda")
    assert "of a processor" in file.read_text() and "of a GPU" in file.read_text()


def test_the_page_has_the_rows_and_columns_for_a_gpu_that_the_benchmark_writes():
    page = (ROOT / "benchmarks" / "README.md").read_text().partition("## On a GPU")[2].splitlines()
    rows = {name: row(1, 1, 1) for name in step_cost.METHODS}
    closing = list(step_cost.closing(step_cost.summary({"": rows}), {}))
    assert {next(step_cost.table({})), closing[0]} < set(page)
    assert all(any(line.startswith(text.partition(":")[0]) for line in page) for text in closing[2:5])
    both = [name for shared in step_cost.shared(rows) for name in (shared, f"peft {shared}")]
    settings = [f"{batch} × {length}" for length in step_cost.LENGTHS for batch in step_cost.BATCHES]
    expected = [f"| {setting} | {name} |" for setting in settings for name in ["floor", *both]]
    assert [line for text in expected for line in page if line.startswith(text)] == [
        f"{text}  |  |  |  |" for text in expected
    ]


def test_every_method_of_ours_that_peft_has_is_set_as_peft_s_is():
    for name in step_cost.shared({name: {} for name in step_cost.METHODS}):
        ours, theirs = (step_cost.METHODS[kind]() for kind in (name, f"peft {name}"))
        options = theirs.options
        assert ours.rank == options.get("init_r", options.get("r"))
        assert getattr(ours, "dropout", 0.0) == options.get("lora_dropout", 0.0)
        assert getattr(ours, "target_rank", None) == options.get("target_r")


def test_every_method_of_ours_has_a_row():
    methods = {path.stem for path in (ROOT / "conf" / "variant").glob("[!_]*.yaml")}
    ours = {name for name in methods if not name.startswith("peft")} - {"base", "head"} | {"floor"}
    assert ours <= set(step_cost.METHODS), "a new method needs its settings in benchmarks.step_cost.FURTHER"


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["step_cost", *arguments])
    step_cost.main()


@pytest.fixture
def on_a_toy(tiny_model, monkeypatch):
    """The benchmark with the tiny model and one setting, whose schedule of rounds is over at once."""
    monkeypatch.setattr(step_cost, "default_backbone", lambda: ("tiny", pristine(tiny_model, 2)))
    monkeypatch.setattr(step_cost, "BUDGET", 0.0)


def test_a_quick_run_has_the_ratios_of_what_peft_has_in_its_json_and_its_table(on_a_toy, monkeypatch, tmp_path, capsys):
    begin = time.perf_counter()
    run(monkeypatch, "--quick", "--json", str(tmp_path / "found.json"))
    took = 1000 * (time.perf_counter() - begin)
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["overhead_ratio"]) == ["lora", "lora_dropout", "adalora", "dora"]
    assert list(found["settings"]) == ["8 × 16"] and found["growth"] == {}
    rows = found["settings"]["8 × 16"]
    assert set(rows) == {"floor"} | {f"{who}{name}" for who in ("", "peft ") for name in found["overhead_ratio"]}
    for name, times in rows.items():
        assert times["rounds"] == FEWEST and 0 < times["ms_low"] <= times["ms"] <= times["ms_high"], name
        assert 0 <= times["hooks"] < times["ms"] and times["activations_mib"] > 0
        assert times["overhead"] == times["over_floor"] / rows["floor"]["ms"]
    assert sum(times["ms"] for times in rows.values()) * 3 < took, "three rounds of five take at least their median"
    assert rows["floor"]["over_floor"] == 0 and rows["floor"]["activations_mib"] == min(
        times["activations_mib"] for times in rows.values()
    )
    assert rows["lora"]["activations_mib"] <= rows["peft lora"]["activations_mib"]
    printed = capsys.readouterr().out
    assert printed.startswith("tiny, rank 8 on all linear layers; ") and "torch " in printed
    assert "| 8 × 16 | peft lora_dropout |" in printed and "AdaLoRA's scoring and masking: " in printed


@pytest.fixture
def scripted(on_a_toy, monkeypatch):
    """The benchmark with measurements that take no time: (setting, methods, rounds) of each that was asked for."""
    asked = []

    def measure(source, names, batch, length, rounds, device, until):
        assert until == float("inf"), "all rounds are made"
        asked.append(((batch, length), names, rounds))
        return {name: row(100 + len(asked), 10, 1, hooks=1) for name in names}

    monkeypatch.setattr(step_cost, "measure", measure)
    monkeypatch.setattr(
        step_cost.growth, "measure", lambda *given: {"rank": Growth({1: 1.0, 2: 3.0}, 2.0, "ms a rank")}
    )
    return asked


def test_a_whole_run_measures_every_method_in_every_setting_and_growth(scripted, monkeypatch, tmp_path):
    run(monkeypatch, "--json", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    rounds = dict.fromkeys((*setting, count) for setting, _, count in scripted)
    assert list(rounds) == [(8, 16, 24), (32, 16, 20), (8, 64, 20), (32, 64, 8), (8, 128, 10), (32, 128, 8)]
    assert all("floor" in names and len(names) <= 1 + 2 * step_cost.TOGETHER for _, names, _ in scripted)
    assert all(list(rows) == list(step_cost.METHODS) for rows in found["settings"].values())
    assert found["growth"] == {"rank": {"over_floor": {"1": 1.0, "2": 3.0}, "slope": 2.0, "unit": "ms a rank"}}
    assert {"lora", "lora_dropout", "adalora", "dora", "shira"} == set(found["overhead_ratio"])


def test_a_run_goes_on_where_the_time_ended_and_measures_a_named_method_anew(scripted, monkeypatch, tmp_path, capsys):
    file = tmp_path / "found.json"
    run(monkeypatch, "--only", "lora", "svft", "--settings", "8x16", "--json", str(file))
    assert scripted == [((8, 16), ["floor", "lora", "peft lora", "svft"], 24)]
    run(monkeypatch, "--settings", "8x16", "8x64", "--minutes", "0", "--json", str(file))
    assert len(scripted) == 1, "nothing begins after no time"
    assert "more to measure: the same command goes on" in capsys.readouterr().out
    run(monkeypatch, "--settings", "8x16", "--json", str(file))
    rows = json.loads(file.read_text())["settings"]["8 × 16"]
    assert list(rows) == list(step_cost.METHODS)
    assert not any({"lora", "svft"} & set(names) for _, names, _ in scripted[1:]) and rows["svft"]["ms"] == 101
    number = len(scripted)
    run(monkeypatch, "--settings", "8x16", "--json", str(file))
    assert len(scripted) == number, "it has all"
    run(monkeypatch, "--only", "lora", "--settings", "8x16", "--json", str(file))
    after = json.loads(file.read_text())["settings"]["8 × 16"]
    changed = {name for name in rows if after[name] != rows[name]}
    assert changed == {"lora", "peft lora"}, "the floor of the others stays theirs"


def test_rows_of_another_machine_or_process_are_not_mixed_with_this_ones(scripted, monkeypatch, tmp_path, capsys):
    file = tmp_path / "found.json"
    run(monkeypatch, "--only", "svft", "--settings", "8x16", "--json", str(file))
    with pytest.raises(SystemExit):
        run(monkeypatch, "--plain", "--json", str(file))
    assert "its table is 'step_cost', allowed: 'step_cost plain', or another file" in capsys.readouterr().err
    monkeypatch.setattr(step_cost, "machine", lambda device: "another")
    with pytest.raises(SystemExit):
        run(monkeypatch, "--only", "svft", "--json", str(file))
    assert "allowed: 'another', or another file" in capsys.readouterr().err and len(scripted) == 1


# What doesn't fit layers of width 16.
SMALL = {"lift": {"filter_rank": 8}, "prilora": {"last_rank": 4}, "smt": {"block": 8, "blocks": 4}}


@pytest.mark.parametrize("name", step_cost.METHODS)
def test_every_method_takes_a_step_on_a_toy(tiny_model, name):
    settings = step_cost.FURTHER.get(name, {}) | SMALL.get(name, {})
    variant = step_cost.preset(name, **settings) if name in SMALL else step_cost.METHODS[name]()
    taken = step_cost.Stepper(pristine(tiny_model, 2), variant, 4, 6, torch.device("cpu"))
    whole, hooks = taken.step()
    assert whole > hooks >= 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["lorra"], "step_cost: error: unrecognized arguments: lorra"),
        (["--rounds", "3"], "step_cost: error: unrecognized arguments: --rounds 3"),
        (["--device", "gpu"], "step_cost: error: argument --device: gpu, allowed: cpu, cuda, cuda:1"),
        (["--device", "cuda:0"], "step_cost: error: argument --device: cuda:0, allowed: one of torch's 0 CUDA devices"),
        (["--json"], "step_cost: error: argument --json: expected one argument"),
        (["--minutes", "9"], "step_cost: error: --minutes 9 without --json, allowed: with it, to go on later"),
        (["--plain", "--quick"], "step_cost: error: argument --quick: not allowed with argument --plain"),
    ],
)
def test_what_it_does_not_know_is_refused_in_one_line_before_a_model_is_there(monkeypatch, capsys, arguments, line):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(step_cost, "default_backbone", lambda: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, *arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == line
