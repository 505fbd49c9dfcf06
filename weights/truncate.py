"""The verb `truncate`: the metric after the layers' updates are truncated to lower ranks.

By default every layer is cut to one rank. With `--global` one threshold for the singular values of all layers is chosen
so that the ranks have this mean (PARA, arXiv 2604.27796): the layers keep different ranks, some perhaps none.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.commands.command import Verb
from weights.command import add_run, ranks
from weights.tables import error, markdown

if TYPE_CHECKING:
    from trainer.loop.loop import Evaluation
    from trainer.runs.finished import Finished
    from variants.core.adapters.adapter import Adapter
    from variants.core.handover import Update

VERSION = 1
FILENAME, GLOBAL_FILENAME = "truncation.json", "truncation_global.json"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--rank", type=ranks, required=True, metavar="R,…", help="ranks to truncate to: 1,2,4,8")
    parser.add_argument(
        "--global",
        dest="by_threshold",
        action="store_true",
        help="cut all layers by one threshold for their singular values; --rank is then the mean over the layers",
    )
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N (default: the run's own)")


def _run(options: argparse.Namespace) -> int:
    from trainer.errors import ConfigError
    from trainer.record_text import write_json
    from trainer.runs.finished import opened

    with opened(options.run, options.device) as run:
        if not run.variant.adapters:
            raise ConfigError(f"{run.variant.name} has no adapters of this suite's, and nothing to cut")
        found = truncation(run, options.rank, options.by_threshold)
        write_json(run.folder / (GLOBAL_FILENAME if options.by_threshold else FILENAME), found)
        print(_text(run, found))
    return 0


def truncation(run: Finished, cuts: list[int], by_threshold: bool = False) -> dict[str, Any]:
    """`truncation.json`: the reported metrics as trained, and with the layers at each rank of `cuts`.

    by_threshold: whether a rank is the mean over the layers that one threshold for all singular values leaves.
    """
    from trainer.runs.run import versions
    from variants.core import handover
    from weights import roundtrip

    adapters = run.variant.adapters
    roundtrip.as_recorded(run, roundtrip.outputs(run, run.model))
    trained = _metrics(run.evaluate())
    effective = run.variant.effective_parameters()
    kept = _by_threshold(adapters, cuts) if by_threshold else [(dict.fromkeys(adapters, cut), None) for cut in cuts]
    updates = {
        name: handover.products(adapter, [None, *(ranks[name] for ranks, _ in kept)])
        for name, adapter in adapters.items()
    }
    own = _cut({name: cut[0] for name, cut in updates.items()})
    steps = []
    for place, cut in enumerate(cuts, 1):
        now = {name: found[place] for name, found in updates.items()}
        handover.replace_adapters(run.model, adapters, now)
        threshold = {} if kept[place - 1][1] is None else {"threshold": kept[place - 1][1]}
        steps.append({"rank": cut, **threshold, **_cut(now), **_metrics(run.evaluate())})
    return {
        "version": VERSION,
        "run_id": run.record.run_id,
        "variant": run.record.variant,
        "task": run.record.task,
        "model": run.record.model,
        "seed": run.record.seed,
        "metric": run.record.metric.name,
        "higher_is_better": run.record.metric.higher_is_better,
        "split": run.split,
        "trained": {**own, **trained, "effective": effective},
        "cut": steps,
        "versions": versions(),
    }


def _by_threshold(adapters: Mapping[str, Adapter], means: Sequence[int]) -> list[tuple[dict[str, int], float]]:
    """For each mean rank, the rank of each layer and the smallest singular value that is kept.

    As many singular values are kept as layers × mean, or all: the largest of all layers, up to a layer's own rank.
    """
    from variants.core.adapters import svd

    spectra = {name: svd.of_product(*adapter.as_product()) for name, adapter in adapters.items()}
    values = sorted(
        ((float(value), name) for name, spectrum in spectra.items() for value in spectrum.s[: spectrum.rank]),
        key=lambda pair: -pair[0],
    )
    found = []
    for mean in means:
        largest = values[: mean * len(adapters)]
        counts = Counter(name for _, name in largest)
        found.append(({name: counts[name] for name in adapters}, largest[-1][0] if largest else 0.0))
    return found


def _metrics(found: Evaluation) -> dict[str, Any]:
    return {"metrics": found.metrics, "loss": found.loss}


def _cut(updates: Mapping[str, Update]) -> dict[str, Any]:
    """Ranks, parameters of the factors and errors of one state of all layers.

    mean_relative_error: over the layers whose update is not zero. relative_error: of all layers as one matrix,
    which is the root of the mean of the squares, each weighted with its layer's energy ‖ΔW‖².
    """
    acting = [update for update in updates.values() if update.norm]
    energy = sum(update.norm**2 for update in acting)
    left_out = sum((update.relative_error * update.norm) ** 2 for update in acting)
    return {
        "total_rank": sum(update.rank for update in updates.values()),
        "parameters": sum(update.parameters for update in updates.values()),
        "mean_relative_error": sum(update.relative_error for update in acting) / max(1, len(acting)),
        "relative_error": math.sqrt(left_out / energy) if energy else 0.0,
        "layers": {
            name: {"rank": update.rank, "relative_error": update.relative_error, "norm": update.norm}
            for name, update in updates.items()
        },
    }


def _text(run: Finished, found: Mapping[str, Any]) -> str:
    name = found["metric"]
    head = ["rank", "sum", "parameters kept", "relative error, mean of layers", "by energy", f"{found['split']} {name}"]
    rows = []
    for label, at in [("as trained", found["trained"]), *((str(cut["rank"]), cut) for cut in found["cut"])]:
        counts = [f"{at['total_rank']:,}", f"{at['parameters']:,}"]
        errors = [error(at["mean_relative_error"]), error(at["relative_error"])]
        rows.append([label, *counts, *errors, f"{at['metrics'][name]:.4f}"])
    by_threshold = any("threshold" in cut for cut in found["cut"])
    parts = [
        run.title,
        *(
            ["rank: the mean over layers that are cut by one threshold for their singular values"]
            if by_threshold
            else []
        ),
        markdown(head, rows),
        "parameters kept: of ΔW as factors A and B of every layer; by energy: of all layers as one matrix",
    ]
    now, then = found["trained"]["metrics"][name], run.record.metric.value
    if now != then:
        parts.append(
            f"as trained, {name} is {now:.6f} here and was {then:.6f} in the run; rounding differs between machines"
        )
    return "\n\n".join(parts)


VERB = Verb(
    name="truncate",
    summary="the metric against the rank that is kept after training",
    description="Replaces every layer's update by its best approximation of each rank, evaluates the model, and\n"
    f"writes {FILENAME} into the run's folder, or {GLOBAL_FILENAME} with --global. The run itself does not change.",
    example="python -m weights truncate runs/demo/0123456789ab --rank 1,2,4,8",
    add_arguments=_add_arguments,
    run=_run,
)
