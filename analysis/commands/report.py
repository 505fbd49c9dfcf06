"""`python -m analysis report`: tables, verdicts, pictures and runs in one self-contained HTML file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands import table
from analysis.commands.command import Verb, add_runs, chosen, emit, read_runs
from analysis.plots import catalogue
from analysis.records import provenance
from analysis.records.runs import RunSet
from analysis.tables.formats.markdown import one_line
from analysis.tables.rows import Rows
from analysis.text.phrases import names, runs

if TYPE_CHECKING:
    from analysis.report.images import Kind
    from analysis.report.page import Content

OUTPUT = Path("report.html")
TITLE = "Results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `report`."""
    add_runs(parser)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--title", default=TITLE, help="default: %(default)s")
    parser.add_argument(
        "--baseline",
        metavar="ROW",
        help="the row that all others are compared with, by variant or label; default: lora, "
        "or the row that shares the most seeds with others",
    )
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument(
        "--only", metavar="NAME,…", help=f"kinds of pictures: {', '.join(catalogue.NAMES)}; default: all"
    )
    pictures.add_argument("--no-pictures", action="store_true", help="leave out pictures: faster, and a smaller file")
    table.add_options(parser)


def run(options: argparse.Namespace) -> int:
    """Writes the page. Raises `AnalysisError` for unusable runs or options."""
    from analysis.report import page

    only = chosen("--only", options.only, catalogue.NAMES)
    content = build(read_runs(options.runs), options, [] if options.no_pictures else only)
    text = page.render(content)
    emit(text, options.output)
    pictures = sum(len(kind.images) for kind in content.kinds)
    line = f"{options.output}: {content.summary} {pictures} pictures, {len(text.encode()) / 2**20:.1f} MiB."
    emit(one_line(line) + "\n", None)
    return 0


def build(run_set: RunSet, options: argparse.Namespace, only: Sequence[str]) -> Content:
    """The content of the page. only: kinds of pictures. Raises `AnalysisError`."""
    from analysis.report import headline, journals, origin, page, records, tracker, verdicts

    built = table.build(run_set, table.options_of(options))
    all_rows, results = built.rows, built.grid
    compared = verdicts.build(run_set, all_rows, options.baseline, pictures=bool(only))
    lines = built.footnotes(run_set, underlined=True)
    ordered = records.order(run_set, all_rows)
    return page.Content(
        title=options.title,
        summary=_summary(run_set, all_rows),
        headline=headline.build(results, built.sheet()),
        notes=page.problems(lines, provenance.unequal(run_set.having("done"))),
        verdicts=compared,
        kinds=_pictures(run_set, only) if run_set.done else [],
        why_no_pictures="" if only and run_set.done else "No run is done." if only else "Left out: --no-pictures.",
        data={
            "runs": records.build(ordered, all_rows, results.fractions),
            "curves": journals.curves(ordered),
            "ranks": journals.ranks(ordered),
            "trackers": [tracker.read(run.folder) for run in ordered],
        },
        made_with=origin.made_with(run.record for run in ordered),
        maker=origin.maker(_command(options)),
    )


def _pictures(run_set: RunSet, only: Sequence[str]) -> list[Kind]:
    if not only:
        return []
    # Imported here, because they import matplotlib.
    from analysis.plots.kind import Study
    from analysis.report import images

    return images.build(Study(run_set), only)


def _summary(run_set: RunSet, all_rows: Rows) -> str:
    from analysis.report import origin

    records = [run.record for run in (*run_set.done, *run_set.failed)]
    seeds = sorted({record.seed for record in records})
    failed = f", {len(run_set.failed)} failed" if run_set.failed else ""
    days = origin.period(records)
    parts = [
        f"{runs(len(records))} ({len(run_set.done)} done{failed})",
        f"{_counted({record.variant for record in records}, 'variant')}",
        f"{_counted({record.task for record in records}, 'task')}",
        f"{_counted({record.model for record in records}, 'model')}",
        f"seed{'s' * (len(seeds) > 1)} {names(seeds)}",
        f"study {names({record.study for record in records})}",
    ]
    when = "" if days is None else f" Made {days[0]}." if days[0] == days[1] else f" Made {days[0]} to {days[1]}."
    return f"{'; '.join(parts)}.{when}"


def _counted(values: Iterable[str], word: str) -> str:
    count = len(list(values))
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _command(options: argparse.Namespace) -> list[str]:
    """The arguments that make this page, without the output; folders are sorted."""
    command = ["report", *sorted(set(map(str, options.runs)))]
    for name, default in (("title", TITLE), ("baseline", None), ("only", None), ("group", None)):
        value = getattr(options, name)
        if value != default:
            command.append(f"--{name}={value}")
    command += ["--no-pictures"] * options.no_pictures + ["--memory"] * options.memory
    return [*command, *(f"--published={name}" for name in options.published)]


VERB = Verb(
    name="report",
    summary="one HTML file: table, verdicts, pictures and every run",
    description=(
        "The table, which can be sorted and filtered; every row against a baseline; pictures; and for each run\n"
        "a page with its config, curves, ranks and the command that repeats it. The file needs no server and no\n"
        "network and works on a phone. The same runs give the same bytes."
    ),
    example=(
        "python -m analysis report runs/demo\n"
        "python -m analysis report runs/glue --output glue.html --title GLUE --baseline lora --group budget\n"
        "python -m analysis report runs/demo runs/more --only learning-curves,rank-map"
    ),
    add_arguments=add_arguments,
    run=run,
)
