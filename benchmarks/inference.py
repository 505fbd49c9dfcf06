"""What an adapter costs in use: latency, memory and files, unmerged, truncated and merged, beside the base model.

    python -m benchmarks.inference [--model smollm2] [--rounds N] [--write] [--device cuda]

All models are in one process and take their turns in every round, so that load on the machine slows them equally. They
have LoRA of rank 8 on all linear layers with random factors: speed depends on shapes alone. An encoder reads a batch; a
language model reads a batch of prompts (prefill), then writes tokens one by one with its cache of keys and values.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from benchmarks import language
from benchmarks.step_cost import machine, write
from benchmarks.stepper import default_backbone, peak_bytes
from benchmarks.stepper import device as device_of
from trainer.errors import ConfigError
from trainer.model import backbone as models
from variants.core import handover
from variants.lora import LoRA

RANK, CUT = 8, 2
SIZES = ((1, 128), (8, 128))  # rows, tokens
WRITTEN = 16  # tokens a row
ROUNDS = 7
Row = dict[str, float]


@dataclass(frozen=True)
class Subject:
    """model: in evaluation mode. file_bytes: of the weights that an export of it holds."""

    model: Any
    file_bytes: int


def subjects(source: models.LoadedBackbone, device: torch.device) -> dict[str, Subject]:
    """The base model, and the same adapter in each of its forms."""
    base, (merged, merging), (own, _), (cut, cutting), (peft, handing) = (
        models.fresh(source, 0),
        *(_adapted(source) for _ in range(4)),
    )
    factors = lambda model: sum(p.nbytes for name, p in model.named_parameters() if name.endswith((".A", ".B")))  # noqa: E731
    updates = {name: handover.products(adapter, [CUT])[0] for name, adapter in cutting.adapters.items()}
    handover.replace_adapters(cut, dict(cutting.adapters), updates)
    found = {
        "base": Subject(base, _bytes(base)),
        f"unmerged, rank {RANK}": Subject(own, factors(own)),
        f"unmerged, rank {RANK}, in PEFT": Subject(handing.to_peft(peft), factors(own)),
        f"unmerged, truncated to rank {CUT}": Subject(cut, factors(cut)),
        "merged": Subject(plain := merging.merged(merged), _bytes(plain)),
    }
    for subject in found.values():
        subject.model.to(device).eval()
    return found


def _adapted(source: models.LoadedBackbone) -> tuple[nn.Module, LoRA]:
    """A model with adapters that change its outputs, the same ones each time."""
    variant = LoRA(rank=RANK)
    model = variant.attach(models.fresh(source, 0), source.head)
    for adapter in variant.adapters.values():
        nn.init.normal_(adapter.get_parameter("B"), std=0.02)
    return model, variant


def _bytes(model: nn.Module) -> int:
    return sum({id(p): p.nbytes for p in (*model.parameters(), *model.buffers())}.values())


@torch.no_grad()
def measure(found: Mapping[str, Subject], batch: int, length: int, rounds: int, writes: bool) -> dict[str, Row]:
    """Milliseconds (median and least over the rounds) and MiB by subject.

    read: of the batch. token: of one token more for each row, if `writes`. slower: median over the rounds of the
    time divided by the base model's of the same round. difference: largest, of logits from those unmerged.
    """
    device = next(found["base"].model.parameters()).device
    torch.manual_seed(0)
    ids = torch.randint(found["base"].model.config.get_text_config().vocab_size, (batch, length), device=device)
    taken: dict[str, dict[str, list[float]]] = {name: {"read": [], "token": []} for name in found}
    for number in range(rounds + 1):
        for name, subject in found.items():
            read, token = _use(subject.model, ids, writes)
            if number:  # the first warms up
                taken[name]["read"].append(read)
                taken[name]["token"].append(token)
    logits = {name: _logits(subject.model, ids) for name, subject in found.items()}
    rows: dict[str, Row] = {}
    for name, subject in found.items():
        row: Row = {
            "weights_mib": _bytes(subject.model) / 2**20,
            "peak_mib": peak_bytes(lambda model=subject.model: _use(model, ids, writes), device) / 2**20,  # type: ignore[misc]
            "file_mib": subject.file_bytes / 2**20,
            "difference": float((logits[name] - logits[f"unmerged, rank {RANK}"]).abs().max()),
            "rounds": rounds,
        }
        for part in ("read", "token")[: 1 + writes]:
            times, of_base = taken[name][part], taken["base"][part]
            slower = statistics.median(mine / its for mine, its in zip(times, of_base, strict=True))
            row |= {part: statistics.median(times), f"{part}_least": min(times), f"{part}_slower": slower}
        rows[name] = row
    return rows


def _use(model: Any, ids: torch.Tensor, writes: bool) -> tuple[float, float]:
    """Milliseconds to read `ids` (rows, tokens), and for each token that is written after them."""
    everything = torch.ones_like(ids)
    start = _now(ids.device)
    if not writes:
        model(input_ids=ids, attention_mask=everything)
        return 1000 * (_now(ids.device) - start), 0.0
    found = model(input_ids=ids, attention_mask=everything, use_cache=True, logits_to_keep=1)
    read = _now(ids.device)
    for _ in range(WRITTEN):
        token = found.logits[:, -1:].argmax(-1)
        everything = torch.cat([everything, torch.ones_like(token)], 1)
        cache = {"past_key_values": found.past_key_values, "use_cache": True}
        found = model(input_ids=token, attention_mask=everything, **cache)
    return 1000 * (read - start), 1000 * (_now(ids.device) - read) / WRITTEN


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1])).logits
    return found


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def table(results: Mapping[str, Mapping[str, Row]], writes: bool) -> Iterator[str]:
    """Yields one line a model and size."""
    parts = {"read": "prefill", "token": "a token"} if writes else {"read": "a batch"}
    head = ["batch × length", "model"]
    for title in parts.values():
        head += [f"{title}: ms", "least", "to the base's"]
    yield " | ".join(["| " + head[0], *head[1:], "weights MiB", "peak beyond them", "files MiB"]) + " |"
    yield "|---" * (len(head) + 3) + "|"
    for setting, rows in results.items():
        for name, row in rows.items():
            cells = [f"| {setting}", name]
            for part in parts:
                cells += [f"{row[part]:.1f}", f"{row[f'{part}_least']:.1f}", f"{row[f'{part}_slower']:.2f}"]
            yield " | ".join([*cells, *(f"{row[key]:.1f}" for key in ("weights_mib", "peak_mib", "file_mib"))]) + " |"


def closing(results: Mapping[str, Mapping[str, Row]]) -> str:
    """How far the merged model's logits are from those of the unmerged one."""
    differences = max(rows["merged"]["difference"] for rows in results.values())
    apart = max(rows["base"]["difference"] for rows in results.values())
    rounds = min(int(rows["base"]["rounds"]) for rows in results.values())
    return (
        f"Medians and minima over {rounds} rounds. Logits, merged and unmerged, differ by at most {differences:.1e}; "
        f"the adapter changes the base model's by up to {apart:.2g}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = sorted(path.stem for path in (language.CONF / "model").glob("*.yaml"))
    parser.add_argument(
        "--model", choices=known, metavar="NAME", help="a language model of conf/model, such as smollm2"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"default {ROUNDS}")
    parser.add_argument("--write", action="store_true", help="writes the table into benchmarks/README.md")
    parser.add_argument("--device", type=device_of, default="cpu", help="cpu, cuda, cuda:1")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds}, allowed: 1 or more")
    name, device, writes = arguments.model, torch.device(arguments.device), arguments.model is not None
    try:
        name, source = (name, language.load(name).backbone) if writes else default_backbone()
    except ConfigError as error:
        raise SystemExit(f"inference: error: {f'--model {name}: ' if writes else ''}{error}") from None
    lines = [f"{name} in float32; {machine(device)}.", ""]
    print("\n".join([*lines, *table({}, writes)]), flush=True)
    found, results = subjects(source, device), dict[str, dict[str, Row]]()
    for batch, length in SIZES:
        setting = f"{batch} × {length}"
        results[setting] = measure(found, batch, length, arguments.rounds, writes)
        print("\n".join([*table({setting: results[setting]}, writes)][2:]), flush=True)
    print("\n" + closing(results))
    if arguments.write:
        marks = " ".join(["inference", *([device.type] if device.type != "cpu" else []), *([name] if writes else [])])
        whole = ["", *lines, *table(results, writes), "", closing(results), ""]
        write(Path(__file__).parent / "README.md", whole, marks)


if __name__ == "__main__":
    main()
