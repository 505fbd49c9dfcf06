"""The verb `evaluate`: a finished language model on tasks of lm-evaluation-harness."""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.commands.command import Verb
from weights.command import add_run, count
from weights.tables import markdown

if TYPE_CHECKING:
    from trainer.runs.finished import Finished

VERSION = 1
FILENAME = "evaluation.json"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--tasks", required=True, metavar="NAME,…", help="tasks, groups or tags of lm-evaluation-harness"
    )
    parser.add_argument("--include", type=Path, metavar="FOLDER", help="YAML files of tasks of your own")
    parser.add_argument("--limit", type=count, metavar="N", help="the first N examples of each task alone")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N (default: the run's own)")


def _run(options: argparse.Namespace) -> int:
    from trainer.errors import ConfigError
    from trainer.record_text import write_json
    from trainer.runs.finished import opened

    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("evaluate: lm-evaluation-harness is not here: pip install 'loratory[lm-eval]'")
    manager, names = _tasks(options.tasks, options.include)
    with opened(options.run, options.device) as run:
        if not run.objective.predicts_tokens:
            raise ConfigError(f"evaluate: the run's task is a {run.objective.title}, allowed: one of a language model")
        found = evaluation(run, manager, names, options.limit)
        write_json(run.folder / FILENAME, found)
        print(_text(run, found))
    return 0


def evaluation(run: Finished, manager: Any, names: Sequence[str], limit: int | None) -> dict[str, Any]:
    """`evaluation.json`: what lm-evaluation-harness finds on its tasks `names` for the trained model in memory.

    manager: its `TaskManager`. Raises `ConfigError` where the harness can't evaluate.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from trainer.errors import ConfigError, message
    from trainer.runs.run import versions

    run.model.to(run.device)
    with _greedy(run), _quiet("lm_eval.models.huggingface"):
        model = HFLM(
            pretrained=run.model,
            backend="causal",
            tokenizer=copy.deepcopy(run.context.tokenizer),  # the harness sets its padding
            batch_size=run.config.train.eval_batch_size,
            mixed_precision_dtype="bfloat16" if run.config.train.autocast else None,
        )
    try:
        with _greedy(run):
            found: Any = simple_evaluate(model, tasks=list(names), limit=limit, task_manager=manager, log_samples=False)
    except Exception as problem:
        raise ConfigError(f"--tasks: {','.join(names)}: lm-evaluation-harness failed: {message(problem)}") from problem
    return {
        "version": VERSION,
        "run_id": run.record.run_id,
        "variant": run.record.variant,
        "task": run.record.task,
        "model": run.record.model,
        "seed": run.record.seed,
        "adapter": run.record.files.weights,
        "limit": limit,
        "max_length": model.max_length,
        "tasks": {name: _task(name, found) for name in found["results"]},
        "versions": {**versions(), "lm_eval": importlib.metadata.version("lm_eval")},
    }


def _task(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the harness says of one task, or of a group of them, which has no examples of its own."""
    metrics: dict[str, dict[str, float | None]] = {}
    for key, value in found["results"][name].items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = found["results"][name].get(f"{metric}_stderr,{kept}")
        label = metric if kept == "none" else f"{metric} ({kept})"
        metrics[label] = {"value": float(value), "stderr": float(error) if isinstance(error, int | float) else None}
    samples = found["n-samples"].get(name, {})
    return {
        "metrics": metrics,
        "higher_is_better": dict(found["higher_is_better"].get(name) or {}),
        "examples": samples.get("effective"),
        "of": samples.get("original"),
        "shots": found["n-shot"].get(name),
        "version": found["versions"].get(name),
    }


def _text(run: Finished, found: Mapping[str, Any]) -> str:
    rows = []
    for name, task in found["tasks"].items():
        for metric, of in task["metrics"].items():
            size = "" if task["examples"] is None else f"{task['examples']:,}"
            error = "" if of["stderr"] is None else f"{of['stderr']:.4f}"
            rows.append([name, metric, f"{of['value']:.4f}", error, size, str(task["shots"] if size else "")])
    parts = [run.title, markdown(["task", "metric", "value", "standard error", "examples", "shots"], rows)]
    short = [name for name, task in found["tasks"].items() if task["examples"] != task["of"]]
    if short:
        parts.append(f"not all examples, so not the number that others report: {', '.join(short)}")
    return "\n\n".join(parts)


def _tasks(text: str, include: Path | None) -> tuple[Any, list[str]]:
    """The harness's manager, and the names of tasks that it knows, with their data loaded. Raises `ConfigError`."""
    from lm_eval.tasks import TaskManager

    from trainer.errors import ConfigError, message

    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"--tasks: {text!r}, allowed: names separated by commas")
    if include is not None and not include.is_dir():
        raise ConfigError(f"--include: {str(include)!r}, allowed: a folder of YAML files")
    try:
        manager = None if include is None else TaskManager(include_path=include, include_defaults=False)
        if manager is None or not {*names} <= {*manager.all_tasks}:
            manager = TaskManager(include_path=include)  # its own thousands, which takes seconds to list
        if unknown := [name for name in names if name not in manager.all_tasks]:
            where = "" if include is None else f", or of {str(include)!r}"
            raise ConfigError(f"--tasks: {unknown[0]!r}, allowed: tasks of lm-evaluation-harness{where}")
        manager.load(names)
    except ConfigError:
        raise
    except Exception as problem:
        raise ConfigError(f"--tasks: {','.join(names)}: can't be loaded: {message(problem)}") from problem
    return manager, names


@contextlib.contextmanager
def _greedy(run: Finished) -> Iterator[None]:
    """Within it a task alone says how the model writes, not its checkpoint; the end of a text is the tokenizer's."""
    from trainer.objectives import language_models

    config = language_models.greedy(run.context.tokenizer, 1)
    config.max_new_tokens = None
    model: Any = run.model
    with language_models.without_defaults(model):
        for module in model.modules():
            if "generation_config" in vars(module):
                module.generation_config = config
        yield


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Within it a logger's warnings are not shown."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


VERB = Verb(
    name="evaluate",
    summary="a run's language model on tasks of lm-evaluation-harness",
    description=(
        "Evaluates the language model of a finished run on tasks of lm-evaluation-harness, prints a table, and writes\n"
        f"{FILENAME} into the run's folder, in place of an earlier one. Tasks of your own are YAML files in\n"
        "--include; where all tasks are among these and their data are files, nothing is fetched. A checkpoint's\n"
        "generation_config.json has no say in what is written."
    ),
    example=(
        "python -m weights evaluate runs/language/0123456789ab --tasks hellaswag,gsm8k\n"
        "python -m weights evaluate runs/language/0123456789ab --tasks my_task --include my/tasks --limit 100"
    ),
    add_arguments=_add_arguments,
    run=_run,
)
