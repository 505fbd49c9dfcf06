"""The verb `export`: a finished run as a PEFT adapter, or as a plain transformers checkpoint.

The folder is written beside its place, loaded again as anybody would load it, compared with the trained model, and
only then renamed: an export that computes something else is never there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.commands.command import Verb
from weights import handover_report
from weights.command import add_run, count
from weights.tables import error

if TYPE_CHECKING:
    from torch import nn

    from trainer.runs.finished import Finished


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--to",
        choices=("peft", "merged"),
        required=True,
        help="peft: adapters and head, for PeftModel.from_pretrained; "
        "merged: a whole model, for from_pretrained of the task's class",
    )
    parser.add_argument("--output", type=Path, help="a folder that is not there yet (default: <run>/export/<to>)")
    parser.add_argument(
        "--rank", type=count, metavar="R", help="truncate every layer's update to its best approximation of rank R"
    )


def _run(options: argparse.Namespace) -> int:
    from trainer.errors import ConfigError
    from trainer.runs.finished import opened
    from variants.core.handover import CannotHandOver

    if options.to == "peft" and importlib.util.find_spec("peft") is None:
        raise ConfigError("--to: peft, but that package is not here: pip install 'loratory[peft]'")
    with opened(options.run, device="cpu") as run:
        name = options.to if options.rank is None else f"{options.to}-rank{options.rank}"
        output = options.output or run.folder / "export" / name
        if output.exists():
            raise ConfigError(f"--output: {output} is there already; name another folder, or remove it")
        try:
            print(_export(run, options.to, output, options.rank))
        except CannotHandOver as problem:
            raise ConfigError(f"--to {options.to}: {problem}") from None
        except OSError as problem:
            raise ConfigError(f"--output: {output} can't be written: {problem.strerror or problem}") from None
    return 0


def _export(run: Finished, to: str, output: Path, cut: int | None) -> str:
    """Writes and checks `output`; what is to be said about it."""
    from trainer.errors import ConfigError
    from trainer.record_text import write_json
    from variants.core import handover
    from weights import roundtrip

    adapters = run.variant.adapters
    if cut is not None and not adapters:
        raise ConfigError(f"--rank: {cut} for {run.variant.name}, which has no adapters of this suite's; allowed: none")
    ranks = run.variant.ranks()
    before, texts = roundtrip.outputs(run, run.model), roundtrip.texts(run, run.model)
    recorded = roundtrip.as_recorded(run, before)
    updates = {name: handover.products(adapter, [cut])[0] for name, adapter in adapters.items()}
    if cut is not None:
        handover.replace_adapters(run.model, adapters, updates)
    with _beside(output) as folder:
        write = {"peft": _write_peft, "merged": _write_merged}[to]
        loaded = write(run, folder)
        comparison = roundtrip.compare(before, roundtrip.outputs(run, loaded))
        other = sum(one != two for one, two in zip(texts, roundtrip.texts(run, loaded), strict=True))
        comparison = replace(comparison, written=len(texts), other_texts=other)
        exact = all(update.is_exact for update in updates.values())
        dtype = next(loaded.parameters()).dtype
        # With half precision or a truncated rank, a difference is expected: it is reported and no error.
        if exact and dtype.itemsize >= 4 and not comparison.is_close(dtype):
            raise handover.CannotHandOver(
                f"loaded again, the model's logits differ by up to {error(comparison.largest_difference)}"
            )
        found = handover_report.of(run, to, cut, folder, ranks, updates, comparison)
        write_json(folder / handover_report.FILENAME, found)
    return f"{handover_report.text(run, output, found)}\n\n{recorded}"


def _write_peft(run: Finished, folder: Path) -> nn.Module:
    """Writes what PEFT loads; the model as PEFT loads it."""
    import peft

    from trainer.errors import message
    from trainer.model.backbone import as_loaded
    from variants.core.handover import CannotHandOver, quiet_peft

    wrapped = run.variant.to_peft(run.model, run.context.head)
    base, revision = run.context.reference()
    task = run.objective.peft_task_of(run.context.tokenizer.model_input_names)
    wrapped.get_base_model().config._name_or_path = base  # what PEFT's model card says
    for config in wrapped.peft_config.values():
        config.task_type = None if task is None else peft.TaskType[task]
        config.base_model_name_or_path, config.revision = base, revision
        config.modules_to_save = list(run.context.head) or None
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    # PEFT writes nothing of the model below: not its classes, nor the padding token that it was given here.
    run.objective.describe(wrapped.get_base_model().config).save_pretrained(folder)
    run.context.tokenizer.save_pretrained(folder)
    model = run.config.model
    how = model.get("quantize")
    fresh = as_loaded(run.context.source, run.objective.architecture, folder, model.dtype, how, run.context.head)
    try:
        with quiet_peft():
            return peft.PeftModel.from_pretrained(fresh, folder).eval()
    except (ValueError, TypeError, KeyError, RuntimeError) as problem:
        raise CannotHandOver(f"PEFT can't load what it wrote: {message(problem)}") from problem


def _write_merged(run: Finished, folder: Path) -> nn.Module:
    """Writes a whole model and its tokenizer; the model as transformers loads it."""
    import torch
    import transformers

    from variants.core import quantization

    merged: Any = run.variant.merged(run.model)
    quantization.dequantize(merged)
    merged.to(getattr(torch, run.config.model.dtype))  # the head too: a checkpoint has one precision
    run.objective.describe(merged.config)
    merged.save_pretrained(folder)
    run.context.tokenizer.save_pretrained(folder)
    loaded: nn.Module = getattr(transformers, run.objective.auto_class).from_pretrained(folder)
    return loaded.eval()


@contextlib.contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `output`, or removed if an error is raised."""
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


VERB = Verb(
    name="export",
    summary="exports a run for PEFT, or as a transformers checkpoint",
    description="Exports a finished run in a format that others load, and compares the loaded model with the run's.",
    example=(
        "python -m weights export runs/demo/0123456789ab --to peft\n"
        "python -m weights export runs/demo/0123456789ab --to peft --rank 4 --output my-adapter\n"
        "python -m weights export runs/demo/0123456789ab --to merged"
    ),
    add_arguments=_add_arguments,
    run=_run,
)
