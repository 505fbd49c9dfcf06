"""`handover.json`: what was exported, and how exactly; and its text for a terminal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weights.tables import error, markdown, size

if TYPE_CHECKING:
    from trainer.runs.finished import Finished
    from variants.core.handover import Update
    from weights.roundtrip import Comparison

VERSION = 1
FILENAME = "handover.json"
BELOW = {
    "peft": "trained above {how} weights: quantise the model below in the same way, or its outputs are others",
    "merged": "the {how} weights are in {dtype} again, with the update in them; quantising it again rounds both",
}


def of(
    run: Finished,
    to: str,
    cut: int | None,
    folder: Path,
    ranks: Mapping[str, int],
    updates: Mapping[str, Update],
    comparison: Comparison,
) -> dict[str, Any]:
    """The report on an export that is in `folder`.

    cut: the rank that was asked for. ranks: as the variant reports them; updates: as they were handed over.
    """
    from safetensors import safe_open

    from trainer.runs.run import versions

    files = sorted(folder.glob("*.safetensors"))
    parameters = 0
    for file in files:
        with safe_open(file, "pt") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        parameters += sum(math.prod(shape) for shape in shapes)
    layers: dict[str, dict[str, Any]] = {name: {"rank": number} for name, number in ranks.items()}
    for name, update in updates.items():
        layers[name] = {
            "rank": update.rank,
            "full_rank": update.full_rank,
            "parameters": update.parameters,
            "weights": len(update.B) * update.A.shape[1],
            "relative_error": update.relative_error,
            "exact": update.is_exact,
        }
    base, revision = run.context.reference()
    return {
        "version": VERSION,
        "run_id": run.record.run_id,
        "variant": run.record.variant,
        "task": run.record.task,
        "seed": run.record.seed,
        "to": to,
        "base": {"name": run.record.model, "reference": base, "revision": revision, "dtype": run.config.model.dtype}
        | {name: how for name in ("quantize",) if (how := run.config.model.get(name)) is not None},
        "labels": None if run.context.rows.labels is None else list(run.context.rows.labels),
        "head": list(run.context.head),
        "rank": cut,
        "exact": all(update.is_exact for update in updates.values()),
        "largest_relative_error": max((update.relative_error for update in updates.values()), default=0.0),
        "layers": layers,
        "parameters": {"total": parameters, "head": run.record.params.head},
        "bytes": sum(file.stat().st_size for file in files),
        "check": {"split": run.split, **dataclasses.asdict(comparison)},
        "versions": {"run": run.record.versions, "export": versions()},
    }


def text(run: Finished, output: Path, report: Mapping[str, Any]) -> str:
    """The text about an export to `output`."""
    layers, check = report["layers"], report["check"]
    parts = [f"{run.title} → {output}"]
    if report["rank"] is not None:
        rows = [
            [name, *(f"{layer[key]:,}" for key in ("rank", "full_rank", "parameters")), error(layer["relative_error"])]
            for name, layer in layers.items()
        ]
        parts.append(markdown(["layer", "rank", "of", "parameters", "relative error"], rows))
    factors, weights = (sum(layer.get(key, 0) for layer in layers.values()) for key in ("parameters", "weights"))
    if report["to"] == "peft" and factors > weights:
        parts.append(
            f"the factors are more numbers than the {weights:,} of the layers: --rank or --to merged has fewer"
        )
    used = [layer["rank"] for layer in layers.values() if layer["rank"]]
    ranks = f"{min(used)} to {max(used)}, sum {sum(used)}" if used else ""
    total, head = report["parameters"]["total"], report["parameters"]["head"]
    cells = {
        "to": report["to"],
        "layers": str(len(used)),
        "left out": str(len(layers) - len(used)),
        "ranks": ranks,
        "parameters": f"{total - head:,}",
        "head": f"{head:,}",
        "size": size(report["bytes"]),
        "largest error": error(report["largest_relative_error"]),
    }
    parts.append(markdown(list(cells), [list(cells.values())]))
    if (how := report["base"].get("quantize")) is not None:
        parts.append(BELOW[report["to"]].format(how=how, dtype=report["base"]["dtype"]))
    parts.append(
        f"loaded again, on {check['rows']} rows of {check['split']}: logits differ by at most "
        f"{error(check['largest_difference'])}, {check['changed']} predictions change"
        + (f"; of {check['written']} texts that both write, {check['other_texts']} differ" if check["written"] else "")
    )
    return "\n\n".join(parts)
