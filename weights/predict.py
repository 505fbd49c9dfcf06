"""The verb `predict`: a finished run on other data, or on GLUE's test sets in the format of its server."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.commands.command import Verb
from weights import glue
from weights.command import add_run

if TYPE_CHECKING:
    import pandas as pd

    from trainer.data.sources.checks import Examples
    from trainer.objectives.objective import Predictions
    from trainer.runs.finished import Finished

VERSION = 1
ENDINGS = (".parquet", ".csv")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--data", type=Path, metavar="FILE", help="rows: .csv, .tsv, .jsonl, .parquet, or a folder of images or sounds"
    )
    data.add_argument(
        "--glue", type=Path, metavar="FOLDER", help="GLUE in the Hub's layout; its test sets of the run's task are read"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=f"a file, {' or '.join(ENDINGS)} (<run>/predict/<data>.parquet); with --glue a folder (<run>/glue)",
    )
    parser.add_argument("--text", metavar="COLUMN", help="column of the texts (default: as in the run's task, or text)")
    parser.add_argument("--text-pair", metavar="COLUMN", help="column of the second texts, in a task on pairs")
    parser.add_argument(
        "--label", metavar="COLUMN", help="column of the labels; default: as for texts, where it is there; '' for none"
    )
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N (default: the run's own)")


def _run(options: argparse.Namespace) -> int:
    from trainer.errors import ConfigError
    from trainer.runs.finished import opened

    columns = {f"--{name.replace('_', '-')}": getattr(options, name) for name in ("text", "text_pair", "label")}
    if options.glue is not None and (given := [name for name, value in columns.items() if value is not None]):
        raise ConfigError(f"{given[0]}: with --glue, allowed: none; GLUE's columns are known")
    output: Path | None = options.output
    if options.data is not None and output is not None and output.suffix.lower() not in ENDINGS:
        raise ConfigError(f"--output: {str(output)!r}, allowed: a file that ends in {' or '.join(ENDINGS)}")
    with opened(options.run, options.device) as run:
        try:
            if not run.objective.of_texts:
                _predict_rows(run, options, output)
            elif options.glue is not None:
                _submit(run, options.glue, output or run.folder / "glue")
            else:
                _predict(run, options, output or _default(run, options))
        except OSError as problem:
            raise ConfigError(f"--output: can't be written: {problem}") from None
    return 0


def _default(run: Finished, options: argparse.Namespace) -> Path:
    return run.folder / "predict" / f"{options.data.stem}.parquet"


def _predict_rows(run: Finished, options: argparse.Namespace, output: Path | None) -> None:
    """Writes the predictions for rows of another kind of task, and beside them what made them."""
    from trainer.errors import ConfigError
    from weights import predict_rows

    kind = run.objective
    if options.glue is not None:
        raise ConfigError(f"--glue: the run's task is a {kind.title}, allowed: --data")
    for name, allowed in (("text", None), ("text_pair", None), ("label", "")):
        if (value := getattr(options, name)) not in (None, allowed):
            there = ", ".join(column for column in kind.content.column_names if column not in ("id", "file", "task"))
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option}: {value!r} for a {kind.title}, allowed: none; columns are {there}")
    output = output or _default(run, options)
    _refuse_over(output)
    found = predict_rows.predict(run, options.data, options.label is None, output)
    _write_about(run, options, found.rows, found.cut, output, found.metrics)
    lines = _cut(run, found.cut)
    if found.metrics is None:
        lines.append("nothing says what is right, so no metrics")
    lines += [f"{name} {value:.4f}" for name, value in (found.metrics or {}).items()]
    print(run.title, "", f"{found.rows:,} predictions: {output}", *lines, sep="\n")


def _refuse_over(output: Path) -> None:
    from trainer.errors import ConfigError

    if output.exists():
        raise ConfigError(f"--output: {output} is there already; name another file, or remove it")


def _cut(run: Finished, cut: int) -> list[str]:
    """A line on examples that were cut, if any were."""
    example, unit = run.objective.example, run.objective.unit
    return [f"{cut:,} {example}s are longer than {run.context.max_length} {unit}s and were cut"] if cut else []


def _predict(run: Finished, options: argparse.Namespace, output: Path) -> None:
    """Writes the predictions for a file, and beside them what made them."""
    _refuse_over(output)
    examples = _read(run, options)
    found, cut = _predicted(run, examples)
    computed = run.objective.score(replace(found, reference=np.asarray(examples.label))) if examples.label else None
    output.parent.mkdir(parents=True, exist_ok=True)
    table = frame(examples, found, run.context.rows.labels)
    if output.suffix.lower() == ".csv":
        table.to_csv(output, index=False, lineterminator="\n")
    else:
        table.to_parquet(output, index=False)
    _write_about(run, options, len(examples.id), cut, output, computed)
    print(run.title, "", f"{len(examples.id):,} predictions: {output}", *_said(run, examples, computed, cut), sep="\n")


def _write_about(
    run: Finished, options: argparse.Namespace, rows: int, cut: int, output: Path, computed: dict[str, float] | None
) -> None:
    """Writes beside the predictions what made them."""
    from trainer.hashing import sha256
    from trainer.record import write_json
    from trainer.runs.run import versions

    data = {"name": options.data.name, "rows": rows, "cut": cut}
    about = {
        "version": VERSION,
        "run_id": run.record.run_id,
        "variant": run.record.variant,
        "task": run.record.task,
        "model": run.record.model,
        "seed": run.record.seed,
        "adapter": run.record.files.weights,
        "data": data if options.data.is_dir() else data | {"sha256": sha256(options.data)},
        "predictions": sha256(output),
        "metrics": computed,
        "versions": versions(),
    }
    write_json(output.with_name(f"{output.name}.json"), about)


def _said(run: Finished, examples: Examples, computed: dict[str, float] | None, cut: int) -> list[str]:
    """The metrics, and what must be known of the rows."""
    labels = run.context.rows.labels
    lines = _cut(run, cut)
    if computed is None:
        return [*lines, "no labels, so no metrics"]
    if labels is not None and (absent := [name for number, name in enumerate(labels) if number not in examples.label]):
        lines.append(f"no row has the label {', '.join(map(repr, absent))}")
    positive = run.objective.positive_class
    for name, value in computed.items():
        of = f" of class {positive!r}" if name == "f1" and positive is not None else ""
        lines.append(f"{name}{of} {value:.4f}")
    return lines


def _predicted(run: Finished, examples: Examples) -> tuple[Predictions, int]:
    """What the run predicts for `examples`, in their order and whatever their labels, and how many were cut."""
    from trainer.data.sources import TaskData
    from trainer.data.sources.checks import dataset

    labels = run.context.rows.labels
    unlabelled = replace(examples, label=[0] * len(examples.id))
    found, order, cut = run.predict(TaskData({"data": dataset(unlabelled, labels)}, labels))
    places = np.argsort(order)
    assert found.outputs is not None
    prediction = np.asarray(found.prediction)[places]
    return replace(found, prediction=prediction, outputs=found.outputs[places]), cut


def frame(examples: Examples, found: Predictions, labels: tuple[str, ...] | None) -> pd.DataFrame:
    """A row for each example, in their order: id, label where it is known, prediction, and probabilities by class."""
    import pandas as pd

    def named(numbers: Any) -> list[Any]:
        return [float(value) for value in numbers] if labels is None else [labels[int(number)] for number in numbers]

    columns: dict[str, Any] = {"id": examples.id}
    if examples.label:
        columns["label"] = named(examples.label)
    columns["prediction"] = named(found.prediction)
    if labels is not None:
        assert found.outputs is not None
        from scipy.special import softmax

        for name, column in zip(labels, softmax(found.outputs.astype("float64"), axis=1).T, strict=True):
            columns[f"probability of {name}"] = column
    return pd.DataFrame(columns)


def _read(run: Finished, options: argparse.Namespace) -> Examples:
    """The texts of a file, and their labels where there are any: class ids or numbers. Raises `ConfigError`."""
    from trainer.data.sources.checks import Examples, ids, numbers, texts
    from trainer.data.sources.classes import class_names
    from trainer.data.sources.readers import column_names, read_columns
    from trainer.errors import ConfigError

    own = run.config.task.source
    text = options.text or own.get("text") or "text"
    pair = options.text_pair or own.get("text_pair") or "text_pair"
    if not run.objective.pairs:
        if options.text_pair is not None:
            raise ConfigError(f"--text-pair: {options.text_pair!r}, allowed: none; {run.record.task} has no pairs")
        pair = None
    label = options.label
    if label is None:
        usual = own.get("label") or "label"
        label = usual if usual in column_names(options.data) else ""
    table = read_columns(options.data, [name for name in (text, pair, label) if name], "--data")
    where = f"--data: {str(options.data)!r}, column"
    first = texts(table[text], f"{where} {text!r}")
    if not first:
        raise ConfigError(f"--data: {str(options.data)!r} has no rows; allowed: one or more")
    second = texts(table[pair], f"{where} {pair!r}") if pair else None
    found: list[Any] = []
    if label and run.context.rows.labels is None:
        found = numbers(table[label], f"{where} {label!r}")
    elif label:
        known = {name: number for number, name in enumerate(run.context.rows.labels or ())}
        for row, name in enumerate(class_names(table[label], f"{where} {label!r}"), 1):
            if name not in known:
                allowed = ", ".join(map(repr, known))
                raise ConfigError(f"{where} {label!r}: row {row} is {name!r}; allowed: {allowed}, or --label ''")
            found.append(known[name])
    return Examples(id=ids(first, second), text=first, text_pair=second, label=found)


def _submit(run: Finished, folder: Path, output: Path) -> None:
    """Writes the .tsv files of the run's task that GLUE's server takes."""
    from trainer.data.sources.glue import TASKS
    from trainer.errors import ConfigError

    task = run.config.task.source.get("task")
    if not run.config.task.source._target_.endswith(".Glue") or task not in TASKS:
        raise ConfigError(f"--glue: the run's task is {run.record.task}, allowed: one of GLUE's: {', '.join(TASKS)}")
    sets = glue.test_sets(task, folder)
    for name in sets:
        if (there := output / glue.SETS[name][0]).exists():
            raise ConfigError(f"--output: {there} is there already; name another folder, or remove it")
    lines = []
    output.mkdir(parents=True, exist_ok=True)
    for name, examples in sets.items():
        found, cut = _predicted(run, examples)
        file, expected = glue.SETS[name]
        text, moved = glue.rows(name, np.asarray(found.prediction).tolist(), run.context.rows.labels)
        (output / file).write_text(text, encoding="utf-8")
        lines.append(f"{name}: {len(examples.id):,} predictions: {output / file}")
        if len(examples.id) != expected:
            lines.append(f"  GLUE's set has {expected:,} rows, so its server refuses this file")
        if cut:
            lines.append(f"  {cut:,} texts are longer than {run.context.max_length} tokens and were cut")
        if moved:
            lines.append(f"  {moved:,} scores outside {glue.LOWEST:g} to {glue.HIGHEST:g} were moved to its ends")
    print(run.title, "", *lines, sep="\n")


VERB = Verb(
    name="predict",
    summary="a finished run on other data, or on GLUE's test sets",
    description=(
        "Writes what a finished run predicts for the rows of a file, in their order: id, the name of the class and\n"
        "probabilities, or a number. Metrics are printed where there are labels. Beside the file lies a .json that\n"
        "says what made it. With --glue it writes the .tsv files that GLUE's server takes.\n"
        "Rows of other kinds of task have the columns of the run's own; what is right may be missing. Their\n"
        "predictions are written as they are made, in the columns of predictions.parquet."
    ),
    example=(
        "python -m weights predict runs/demo/0123456789ab --data reviews.csv --text review --output predictions.csv\n"
        "python -m weights predict runs/glue/0123456789ab --glue my/glue --output submission"
    ),
    add_arguments=_add_arguments,
    run=_run,
)
