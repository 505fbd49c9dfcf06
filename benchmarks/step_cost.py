"""Cost of a training step: the frozen model, our methods, PEFT's, full fine-tuning.

    python -m benchmarks.step_cost [--quick | --plain] [--only METHOD …] [--settings BATCHxLENGTH …] [--json FILE]
                                   [--minutes N] [--write] [--device cuda] [--model smollm2]

Methods share a process and take their steps in turn with the floor and their PEFT counterpart, `TOGETHER` at a time, so
that load on the machine slows them equally. FILE keeps all numbers and is written after each group; what it has already
is not measured again unless `--only` names it, so that the same command goes on where it ended. The floor is forward
and backward through the frozen backbone, gradients of activations included, with only the head trained: a lower bound
for any method with adapters. A step includes a method's hooks and so its scoring and allocation. The overhead ratio is
(ours − floor) / (PEFT's − floor); below 1 ours is cheaper.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks import growth, language
from benchmarks.growth import Growth
from benchmarks.stepper import Stepper, default_backbone, in_turn
from benchmarks.stepper import device as device_of
from trainer import config as run_config
from trainer.errors import ConfigError
from trainer.instantiate import make
from trainer.machine import malloc
from trainer.model import backbone as models
from variants.adalora import AdaLoRA
from variants.core.variant import Variant
from variants.dora import DoRA
from variants.full import Full
from variants.head import Head
from variants.increlora import IncreLoRA
from variants.lora import LoRA
from variants.peft import Peft
from variants.shira import SHiRA
from variants.sora import SoRA
from variants.sparse import SparseLoRA
from variants.svft import SVFT

BATCHES, LENGTHS = (8, 32), (16, 64, 128)
SETTINGS = {f"{batch} × {length}": (batch, length) for length in LENGTHS for batch in BATCHES}
TOGETHER = 6  # methods, beside the floor and their PEFT counterparts, that take their steps in turn
QUICK = ("floor", "lora", "lora_dropout", "adalora", "dora")  # and their PEFT counterparts
QUICK_NAMES = f"{', '.join(QUICK[1:-1])} and {QUICK[-1]}"
BUDGET = 20.0  # a quick run starts no round after this many seconds
TARGET = {"init_r": 8, "target_r": 4, "tinit": 0, "tfinal": 100, "deltaT": 1, "orth_reg_weight": 0.1}

METHODS: dict[str, Callable[[], Variant]] = {
    "floor": Head,
    "lora": lambda: LoRA(rank=8),
    "peft lora": lambda: Peft(method="lora", options={"r": 8}),
    "lora_dropout": lambda: LoRA(rank=8, dropout=0.1),
    "peft lora_dropout": lambda: Peft(method="lora", options={"r": 8, "lora_dropout": 0.1}),
    "adalora": lambda: AdaLoRA(rank=8, target_rank=4, final_steps=100),
    "peft adalora": lambda: Peft(method="adalora", options=TARGET),
    "dora": lambda: DoRA(rank=8),
    "peft dora": lambda: Peft(method="lora", options={"r": 8, "use_dora": True}),
    "shira": lambda: SHiRA(rank=8),
    "peft shira": lambda: Peft(method="shira", options={"r": 8}),
    "sora": lambda: SoRA(rank=8),
    "svft": SVFT,
    "sparse": lambda: SparseLoRA(rank=16, schedule="rigl"),
    "increlora": lambda: IncreLoRA(rank=8, target_rank=9, interval=100),
    "full": Full,
}
# Settings of the other methods of ours, beside their files: rank 8, and schedules that put the measured steps where
# most of a run is, after masks and ranks have been chosen.
FURTHER: dict[str, dict[str, Any]] = {
    "aflora": {"rank": 8},
    "allocated": {"score": "fisher", "rank": 8, "target_rank": 4, "final_steps": 100},
    "alora": {"rounds": 1, "initial_steps": 500},
    "aroma": {"rank": 8, "inner_steps": 500},
    "autolora": {"search_steps": 1},
    "bitfit": {},
    "diff_pruning": {"gated_steps": 1},
    "droplora": {},
    "dylora": {},
    "dynamic_dora": {"rank": 8, "target_rank": 4},
    "elalora": {"interval": 100},
    "eva": {"rho": 1.0, "batches": 1},
    "fish": {"samples": 1},
    "flexlora": {"interval": 100},
    "gora": {"batches": 1},
    "gps": {"batches": 1},
    "igulora": {"rank": 8, "target_rank": 4, "final_steps": 100},
    "l1ra": {},
    "lift": {},
    "lora_drop": {"sample_steps": 1},
    "lora_fa": {},
    "lora_ga": {"batches": 1},
    "lora_plus": {},
    "lora_xs": {},
    "losia": {},
    "lota": {"full_steps": 1},
    "lt_sft": {"full_steps": 1},
    "masked": {},
    "milora": {},
    "neuroada": {},
    "olora": {},
    "paca": {},
    "para": {"rank": 8, "target_rank": 4},
    "pissa": {},
    "prilora": {},
    "prunedlora": {"interval": 100},
    "random_masking": {},
    "relora": {"interval": 500},
    "rosa": {"warmup_steps": 1},
    "rslora": {},
    "s2ft": {},
    "salora": {"rank": 8, "target_rank": 4},
    "sift": {},
    "smt": {"full_steps": 1},
    "spiel": {},
    "svdiff": {},
    "vera": {},
}


def preset(name: str, **settings: Any) -> Variant:
    """The method of conf/variant/<name>.yaml, with other settings."""
    run_config.register()
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        node = compose("config", [f"variant={name}"]).variant
    made: Variant = make("variant", OmegaConf.merge(node, settings))
    return made


METHODS |= {name: functools.partial(preset, name, **settings) for name, settings in FURTHER.items()}

Row = dict[str, float]  # measurements of one method in one setting


def measure(
    source: models.LoadedBackbone,
    names: list[str],
    batch: int,
    length: int,
    rounds: int,
    device: torch.device,
    until: float = float("inf"),
) -> dict[str, Row]:
    """For every method: its times (`stepper.in_turn`), its cost over the floor, and its saved activations."""
    torch.manual_seed(0)
    steppers = {name: Stepper(source, METHODS[name](), batch, length, device) for name in names}
    rows: dict[str, Row] = {}
    for name, times in in_turn(steppers, rounds, until=until).items():
        rows[name] = asdict(times) | {"activations_mib": steppers[name].saved_bytes() / 2**20}
    return {name: row | {"overhead": row["over_floor"] / rows["floor"]["ms"]} for name, row in rows.items()}


def groups(names: list[str], measured: Mapping[str, Row]) -> Iterator[list[str]]:
    """The methods without a row in `measured`, as they are measured together: with floor and PEFT counterpart."""
    missing = {name.removeprefix("peft ") for name in names if name not in measured}
    ours = [name for name in METHODS if name in missing]
    others = [name for name in ours if name != "floor"]
    for start in range(0, len(ours) and max(1, len(others)), TOGETHER):
        together = {"floor", *others[start : start + TOGETHER]}
        yield [name for name in METHODS if name.removeprefix("peft ") in together]


def shared(rows: dict[str, Row]) -> list[str]:
    """The methods that both libraries have."""
    return [name for name in rows if f"peft {name}" in rows]


def summary(results: dict[str, dict[str, Row]]) -> dict[str, Any]:
    """Per method shared in all settings: overhead ratio, worst ratio, and ratio of saved activations."""
    settings = list(results.values())
    names = [name for name in shared(settings[0]) if all(name in shared(rows) for rows in settings)]
    of = lambda row, name, key: row[name][key] / row[f"peft {name}"][key]  # noqa: E731
    overhead = {name: [of(rows, name, "over_floor") for rows in settings] for name in names}
    totals: dict[str, Any] = {
        "overhead_ratio": {name: statistics.median(values) for name, values in overhead.items()},
        "worst_overhead_ratio": {name: max(values) for name, values in overhead.items()},
        "activation_ratio": {name: max(of(rows, name, "activations_mib") for rows in settings) for name in names},
    }
    if "adalora" in names:
        shares = [rows["adalora"]["hooks"] / rows["adalora"]["ms"] for rows in settings]
        totals |= {"allocation_share": statistics.median(shares), "worst_allocation_share": max(shares)}
    return totals


def table(results: dict[str, dict[str, Row]]) -> Iterator[str]:
    yield "| batch × length | method | ms a step (quartiles) | over the floor | to PEFT's | saved MiB |"
    yield "|---|---|---|---|---|---|"
    for setting, rows in results.items():
        for name, row in rows.items():
            spread = f"{row['ms']:.0f} ({row['ms_low']:.0f} … {row['ms_high']:.0f})"
            both = name in shared(rows)
            ratio = f"{row['over_floor'] / rows[f'peft {name}']['over_floor']:.2f}" if both else ""
            over = "" if name == "floor" else f"{row['overhead']:+.0%}"
            yield f"| {setting} | {name} | {spread} | {over} | {ratio} | {row['activations_mib']:.1f} |"


def closing(totals: dict[str, Any], grown: dict[str, Growth]) -> Iterator[str]:
    yield "| | " + " | ".join(totals["overhead_ratio"]) + " |"
    yield "|---" * (1 + len(totals["overhead_ratio"])) + "|"
    for name, key in (
        ("overhead, ours to PEFT's: median over the settings", "overhead_ratio"),
        ("the same: the worst setting", "worst_overhead_ratio"),
        ("saved activations, ours to PEFT's: the worst setting", "activation_ratio"),
    ):
        yield f"| {name} | " + " | ".join(f"{ratio:.2f}" for ratio in totals[key].values()) + " |"
    yield ""
    if "allocation_share" in totals:
        share, worst = totals["allocation_share"], totals["worst_allocation_share"]
        median = f"{share:.1%} of its step (median over the settings)"
        yield f"AdaLoRA's scoring and masking: {median}, {worst:.1%} in the worst one."
    for name, growing in grown.items():
        points = ", ".join(f"{size}: {ms:.1f}" for size, ms in growing.over_floor.items())
        yield f"LoRA over the floor by {name} ({points} ms): {growing.slope:.2g} {growing.unit}."


def machine(device: torch.device) -> str:
    """Versions and machine of the measurement."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else (named or [platform.machine()])[0]
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "peft"))
    return f"{where}, {torch.get_num_threads()} threads, {versions}"


def write(path: Path, lines: list[str], name: str = "step_cost") -> None:
    """Replaces the text between the two marks of `name` in the file by `lines`."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = path.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path}: allowed: one {begin} and one {end}")
    before, after = text.partition(begin)[0], text.partition(end)[2]
    path.write_text("\n".join([before + begin, *lines, end + after]), encoding="utf-8")


def kept(file: Path | None, header: Mapping[str, str]) -> dict[str, Any]:
    """What `file` holds already: "settings" and "growth". It must have been measured in the same way."""
    if file is None or not file.exists():
        return {"settings": {}, "growth": {}}
    held: dict[str, Any] = json.loads(file.read_text())
    for key, value in header.items():
        if held.get(key) != value:
            raise ConfigError(f"--json {file}: its {key} is {held.get(key)!r}, allowed: {value!r}, or another file")
    return held


def language_model(arguments: argparse.Namespace) -> None:
    """The run of `--model`, setting by setting; see `benchmarks.language`."""
    malloc.keep()  # as in runs
    try:
        source = language.load(arguments.model)
    except ConfigError as error:
        raise SystemExit(f"step_cost: error: --model {arguments.model}: {error}") from None
    lines = [f"{arguments.model}, rank 8 on all linear layers; {arguments.header['machine']}.", ""]
    print("\n".join([*lines, *language.table({})]), flush=True)
    results: dict[str, dict[str, Row]] = arguments.held["settings"]
    for batch, length in language.SIZES:
        setting = f"{batch} × {length}"
        if setting not in results:
            results[setting] = language.measure(source, METHODS, batch, length, arguments.device)
            if arguments.json:
                everything = arguments.header | {"settings": results, "growth": {}}
                arguments.json.write_text(json.dumps(everything, indent=1))
        print("\n".join([*language.table({setting: results[setting]})][2:]), flush=True)
    ends = ["", *language.closing(language.summary(results))]
    print("\n".join(ends))
    if arguments.write:
        write(Path(__file__).parent / "README.md", ["", *lines, *language.table(results), *ends, ""], arguments.table)


def arguments_of(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--quick", action="store_true", help=f"{QUICK_NAMES} in the smallest setting, under a minute")
    one.add_argument(
        "--plain", action="store_true", help=f"{QUICK_NAMES}, in a process that returns freed memory to the system"
    )
    ours = [name for name in METHODS if not name.startswith("peft ")]
    one.add_argument("--only", nargs="+", choices=ours, default=[], metavar="METHOD", help="measures these, anew")
    known = sorted(path.stem for path in (language.CONF / "model").glob("*.yaml"))
    one.add_argument("--model", choices=known, metavar="NAME", help="a language model of conf/model, such as smollm2")
    sizes = {setting.replace(" × ", "x"): setting for setting in SETTINGS}
    parser.add_argument("--settings", nargs="+", choices=sizes, metavar="BATCHxLENGTH", help=", ".join(sizes))
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all numbers; what it has is kept")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begins nothing later; needs --json")
    parser.add_argument("--write", action="store_true", help="writes the tables into benchmarks/README.md")
    parser.add_argument("--device", type=device_of, default="cpu", help="cpu, cuda, cuda:1")
    arguments = parser.parse_args(argv)
    if arguments.minutes < float("inf") and not arguments.json:
        parser.error(f"--minutes {arguments.minutes:g} without --json, allowed: with it, to go on later")
    if arguments.model and (arguments.settings or arguments.minutes < float("inf")):
        parser.error(f"--model {arguments.model} with --settings or --minutes, allowed: without")
    arguments.device = torch.device(arguments.device)
    arguments.settings = [sizes[size] for size in arguments.settings or (sizes if not arguments.quick else ["8x16"])]
    marks = ["step_cost", *([arguments.device.type] if arguments.device.type != "cpu" else [])]
    arguments.table = " ".join([*marks, *(["plain"] if arguments.plain else [arguments.model] * bool(arguments.model))])
    try:
        arguments.header = {"table": arguments.table, "machine": machine(arguments.device)}
        arguments.held = kept(arguments.json, arguments.header)
    except (ConfigError, json.JSONDecodeError) as error:
        parser.error(str(error))
    return arguments


def main() -> None:
    arguments = arguments_of()
    if arguments.model:
        language_model(arguments)
        return
    started = time.perf_counter()
    quick, plain, device, file = arguments.quick, arguments.plain, arguments.device, arguments.json
    over = lambda: time.perf_counter() - started > 60 * arguments.minutes  # noqa: E731
    if not plain:
        malloc.keep()  # as in runs
    name, source = default_backbone()
    chosen = QUICK if quick or plain else arguments.only or METHODS
    names = [n for n in METHODS if n.removeprefix("peft ") in chosen]
    lines = [f"{name}, rank 8 on all linear layers; {arguments.header['machine']}.", ""]
    print("\n".join([*lines, *table({})]))
    results: dict[str, dict[str, Row]] = arguments.held["settings"]
    grown = {name: Growth(**growing) for name, growing in arguments.held["growth"].items()}
    anew = set(names) if arguments.only else set()

    def save() -> None:
        if file:
            everything = summary(results) | arguments.header | {"settings": results}
            everything["growth"] = {name: asdict(growing) for name, growing in grown.items()}
            file.write_text(json.dumps(everything, indent=1))

    left = 0
    for setting in arguments.settings:
        batch, length = SETTINGS[setting]
        rounds = min(24, max(8, 20 * 512 // (batch * length)))
        until = started + BUDGET if quick else float("inf")
        before = results.get(setting, {})
        for together in groups(names, {name: row for name, row in before.items() if name not in anew}):
            if over():
                left += 1
                continue
            rows = measure(source, together, batch, length, rounds, device, until)
            print("\n".join([*table({setting: rows})][2:]), flush=True)
            held = results.get(setting, {})
            held |= {name: row for name, row in rows.items() if name not in held or name in anew}
            results[setting] = {name: held[name] for name in METHODS if name in held}
            save()
    if not (quick or plain or arguments.only or grown):
        if over():
            left += 1
        else:
            grown = growth.measure(source, 8, 64, 12, device)
    results = {setting: results[setting] for setting in SETTINGS if setting in results}
    if not results:
        print(f"--minutes {arguments.minutes:g}: too few for the first methods")
        return
    ends = ["", *closing(summary(results), grown)]
    print("\n".join(ends))
    save()
    if left:
        print(f"{left} more to measure: the same command goes on")
    if arguments.write:
        write(Path(__file__).parent / "README.md", ["", *lines, *table(results), *ends, ""], arguments.table)


if __name__ == "__main__":
    main()
