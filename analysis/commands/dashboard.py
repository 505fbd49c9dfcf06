"""`python -m analysis dashboard`: a W&B workspace for the runs of a project, as code.

A test compares the names in the charts with those that `tracker=wandb` logs. https://docs.wandb.ai explains
workspaces. Written for wandb-workspaces 0.4.13.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.commands import wandb_account
from analysis.commands.command import Verb, emit, read_runs
from analysis.errors import AnalysisError
from analysis.records import settings
from analysis.records.grouping import Point
from trainer.errors import message

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws

NAME = "Loratory"
STEP = "step"
DEFAULT_METRIC = "accuracy"
PROJECT = "loratory"  # the default of conf/tracker/wandb.yaml
# In a run's config, which W&B calls variant.value.name.
VARIANT, TASK = "variant.name", "task.name"
SETTINGS = (TASK, "seed", "optim.lr", "variant.rank")  # as columns
METRIC = "metric/value"
SPLIT = ("memory/weights", "memory/gradients", "memory/optimizer", "memory/activations")
LOSS, PENALTY, EVAL_LOSS = "train/task_loss", "train/penalty", "eval/loss"
RATE, NORM, SKIPPED = "lr", "grad_norm", "skipped"
TOTAL_RANK, RANKS = "budget/total_rank", ("ranks/min", "ranks/mean", "ranks/max")
SPARSITY = "sparsity"  # of methods with sparse matrices
RANK_MAP = "ranks/map"
PARAMETERS = ("params/effective", "params/adapter_start", "params/adapter_end")
SECONDS = "time/train"
COLUMNS = (METRIC, "params/effective", "rank/end", "memory/optimizer", SECONDS, "steps/skipped")


def workspace(
    project: str, entity: str, metrics: tuple[str, ...] = (), by: tuple[str, ...] = (), study: str | None = None
) -> ws.Workspace:
    """The workspace of a project.

    metrics: metrics of the tasks (`accuracy`, `pearson`, …), each of which gets a learning curve. by: settings by
    which runs are grouped, besides variant and task; every curve and bar is a mean over a group. study: only its runs
    are shown, in a workspace with its name; None for all.
    """
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME if study is None else f"{NAME}: {study}",
        sections=[
            ws.Section(name="Result against cost", panels=_costs(), is_open=True),
            ws.Section(name="Learning curves by group", panels=_curves(metrics), is_open=True),
            ws.Section(name="Memory by its parts", panels=_memory(), is_open=True),
            ws.Section(name="Ranks and sparsity", panels=_ranks(), is_open=True),
            ws.Section(name="Runs side by side", panels=_runs(), is_open=False),
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, smoothing_type="none", smoothing_weight=0, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == study] if study is not None else [],
            groupby=[ws.Config(name) for name in (VARIANT, TASK, *by)],
            order=[ws.Ordering(ws.Summary(METRIC), ascending=False)],
            pinned_columns=[
                *("run:displayName", "run:group"),
                *(_column(name) for name in dict.fromkeys((VARIANT, *SETTINGS, *by))),
                *(f"summary:{name}" for name in COLUMNS),
            ],
        ),
    )


def what_differs(points: Sequence[Point]) -> tuple[str, ...]:
    """The settings, besides variant, task and seed, that tell the runs of each variant on each task apart."""
    cells: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        cells.setdefault((point.variant, point.task), []).append(point)
    names = set().union(*map(settings.differing, cells.values()))
    typed = set().union(*(point.typed for point in points))
    return tuple(name.removeprefix(settings.CONFIG) for name in settings.telling(cells.values(), names, typed))


def _of_runs(arguments: argparse.Namespace) -> tuple[tuple[str, ...], tuple[str, ...], str | None]:
    """Metrics, settings to group by, and the study; what was not given is taken from the runs.

    Raises `AnalysisError` where there are no runs, or runs of several studies and none is named.
    """
    metrics, by, study = arguments.metrics, arguments.by, arguments.study
    if arguments.runs:
        run_set = read_runs(arguments.runs)
        studies = sorted({run.record.study for run in run_set.runs})
        if study is None and len(studies) > 1:
            raise AnalysisError(f"--study: not given for runs of {', '.join(studies)}; allowed: one of them")
        study = study or studies[0]
        points = [point for point in run_set.points if any(run.record.study == study for run in point.runs)]
        if not points:
            raise AnalysisError(f"--study: {study!r}, allowed: {', '.join(studies)}")
        by = by or what_differs(points)
        metrics = metrics or sorted({name for point in points if (name := point.value("metric.name")) is not None})
    return tuple(metrics or [DEFAULT_METRIC]), tuple(by or ()), study


def _column(setting: str) -> str:
    group, dot, rest = setting.partition(".")
    return f"config:{group}.value{dot}{rest}"


def _costs() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    costs = {"parameters in use": PARAMETERS[0], "optimizer, bytes": "memory/optimizer", "training, seconds": SECONDS}
    return [
        wr.ScatterPlot(
            title=f"{METRIC} against {title}", x=wr.SummaryMetric(name), y=wr.SummaryMetric(METRIC), log_x=True
        )
        for title, name in costs.items()
    ]


def _curves(metrics: tuple[str, ...]) -> list[Any]:
    named = (EVAL_LOSS, *(f"eval/{name}" for name in metrics), LOSS, PENALTY)
    return [
        *(_by_group(f"{name}, mean ± sd", name) for name in named),
        *(_by_group(name, name) for name in (RATE, NORM, SKIPPED)),
    ]


def _memory() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    grouped: dict[str, Any] = {"groupby_aggfunc": "mean", "orientation": "h"}  # grouped as the runs
    return [
        wr.BarPlot(title=f"{name}, bytes, mean ± sd", metrics=[name], groupby_rangefunc="stddev", **grouped)
        for name in SPLIT
    ] + [wr.BarPlot(title="parameters", metrics=list(PARAMETERS), groupby_rangefunc="none", **grouped)]


def _ranks() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [
        _by_group(f"{TOTAL_RANK}, mean ± sd", TOTAL_RANK),
        _by_group(f"{PARAMETERS[0]}, mean ± sd", PARAMETERS[0]),
        *(_by_group(f"{name} of a layer, mean ± sd", name) for name in RANKS),
        _by_group(f"{SPARSITY}, mean ± sd", SPARSITY),
        wr.MediaBrowser(title="rank of each layer", media_keys=[RANK_MAP], num_columns=2),
    ]


def _runs() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [wr.RunComparer(diff_only="split")]


def _by_group(title: str, name: str) -> Any:
    """Curves over steps: for each group of runs the mean and a band of one sd."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=title,
        x=STEP,
        y=[name],
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        smoothing_factor=0,
        max_runs_to_show=100,
    )


def as_json(made: ws.Workspace) -> str:
    """The workspace as W&B stores it, checked by a round trip through the library's own model.

    Raises `AnalysisError` if the round trip changes it.
    """
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.workspaces.internal import View

    written = _dumped(made)
    read = ws.Workspace._from_model(View.model_validate_json(written))
    if list(_keys(json.loads(written))) != list(_keys(json.loads(_dumped(read)))):
        raise AnalysisError("dashboard: wandb-workspaces does not read this workspace as it was written")
    return written


def _dumped(made: ws.Workspace) -> str:
    text: str = made._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1)
    return text


def _keys(tree: Any) -> Iterator[Any]:
    """All leaves without the ids, which are random."""
    if isinstance(tree, dict):
        for name, value in sorted(tree.items()):
            if not name.lower().endswith(("id", "_id", "ref")):
                yield name
                yield from _keys(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _keys(value)
    else:
        yield tree


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `dashboard`."""
    parser.add_argument(
        "runs", nargs="*", type=Path, help="run folders of one study, from which --study, --by and --metrics are taken"
    )
    parser.add_argument(
        "--project",
        default=os.environ.get("WANDB_PROJECT", PROJECT),
        help="W&B project (tracker.project); default: WANDB_PROJECT, or else loratory",
    )
    parser.add_argument("--entity", help="team or user; default: that of the key")
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help=f"metrics of the tasks; default: those of the runs, without runs {DEFAULT_METRIC}",
    )
    parser.add_argument(
        "--by",
        nargs="+",
        metavar="SETTING",
        help="settings by which runs are grouped, besides variant and task, such as variant.rank optim.lr; default:"
        " those in which the runs differ",
    )
    parser.add_argument("--study", help="show only this study; default: that of the runs, without runs all")
    parser.add_argument("--dry-run", action="store_true", help="print the workspace as JSON; needs no key")


def run(arguments: argparse.Namespace) -> int:
    """Saves the workspace and prints its address, or prints its JSON."""
    try:
        import wandb_workspaces.workspaces as ws  # noqa: F401
    except ModuleNotFoundError:
        missing = "'wandb-workspaces' is not installed: pip install 'loratory[workspaces]'"
        raise AnalysisError(f"dashboard: {missing}") from None
    chosen = _of_runs(arguments)
    if arguments.dry_run:
        emit(as_json(workspace(arguments.project, arguments.entity or "entity", *chosen)) + "\n", None)
        return 0
    wandb_account.need()
    import wandb

    try:
        entity = arguments.entity or str(wandb.Api().default_entity)
        saved = workspace(arguments.project, entity, *chosen).save()
    except Exception as error:  # requests, GraphQL and W&B have no common base class
        raise AnalysisError(f"dashboard: W&B refused it: {message(error)}") from None
    emit(saved.url + "\n", None)
    return 0


VERB = Verb(
    name="dashboard",
    summary="a W&B workspace that compares variants",
    description=(
        "Builds a W&B workspace for runs with tracker=wandb and prints its address. It shows results against\n"
        "parameters, memory by its parts, learning curves, ranks and effective parameters, and a table of runs,\n"
        "grouped by variant, task and what else differs between the runs. --dry-run sends nothing, but checks the\n"
        "workspace and prints its JSON."
    ),
    example=(
        "python -m analysis dashboard runs/demo --dry-run\n"
        "python -m analysis dashboard --project loratory --entity my-team --metrics accuracy pearson --by variant.rank"
    ),
    add_arguments=add_arguments,
    run=run,
)
