"""What a text can hold between two marks: a table, verdicts, agreement, rates, pictures; each from a study's records.

<!-- table:families --group budget -->        the table, with options of `table`
<!-- compare:families --all lora -->          every row against one over tasks and seeds, and the tasks' verdicts
<!-- compare:controls --pair sora lora -->    named pairs; `--pair` again for further ones
<!-- verdicts:families --all lora -->         the same in sentences: what is decided over tasks and seeds
<!-- agree:families -->                       whether allocations agree between seeds and tasks
<!-- choose:tuning -->                        the best learning rate of each method on each task
<!-- figures:families --only metric-seeds --> pictures, written to images/STUDY/ beside the text
…
<!-- /table -->                               or /compare, /verdicts, /agree, /choose, /figures
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from analysis.commands import compare, table
from analysis.comparison.choice import BY, choose
from analysis.errors import AnalysisError
from analysis.plots.catalogue import NAMES, pictures
from analysis.records.runs import RunSet
from analysis.tables import rows
from analysis.tables.formats import markdown

if TYPE_CHECKING:
    from analysis.comparison.outcome import Outcomes
    from analysis.comparison.sides import Sides

IMAGES = "images"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `AnalysisError` and name the line."""

    def __init__(self, here: str) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self._here = here

    def error(self, message: str) -> NoReturn:
        raise AnalysisError(f"{self._here}: {message}")


@dataclass
class Made:
    """What a block becomes. files: of its pictures, by path relative to the text."""

    text: str
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A kind of block. make: its content, from the study's name, its runs and the options."""

    add_options: Callable[[argparse.ArgumentParser], None]
    make: Callable[[str, RunSet, argparse.Namespace], Made]


def _table(_: str, runs: RunSet, options: argparse.Namespace) -> Made:
    text, _problems = table.render(runs, "md", table.options_of(options))
    return Made(text)


def _outcomes(runs: RunSet, options: argparse.Namespace) -> tuple[rows.Rows, Sides, Outcomes]:
    from analysis.comparison import outcome

    all_rows = rows.build(runs)
    compared = compare.chosen(all_rows.rows, options)
    return all_rows, compared, outcome.compute(compared, all_rows.tasks, None)


def _compare(_: str, runs: RunSet, options: argparse.Namespace) -> Made:
    from analysis.comparison import flags, pooled, text, verdict

    all_rows, compared, outcomes = _outcomes(runs, options)
    verdicts = [verdict.judge(one, outcomes.t_tests) for one in outcomes.done]
    weak = [note.text for note in flags.build(runs, all_rows, compared, outcomes, None) if note.problem]
    said = [f"- {markdown.escape(line)}" for line in (*text.tallies(compared, outcomes, verdicts), *weak)]
    together = pooled.build(compared, outcomes)
    pairs = {(one.a, one.b) for one in together}
    alone = [
        one for one in outcomes.done if (one.paired.a.label, one.paired.b.label) not in pairs
    ]  # on one task, or seed
    parts = [pooled.table(together), text.over_seeds(compared, alone) if alone else [], said]
    return Made("\n\n".join("\n".join(part) for part in parts if part) + "\n")


def _verdicts(_: str, runs: RunSet, options: argparse.Namespace) -> Made:
    from analysis.comparison import pooled

    __, compared, outcomes = _outcomes(runs, options)
    said = pooled.sentences(pooled.build(compared, outcomes))
    if not said:
        raise AnalysisError("verdicts: no two rows have two tasks with two seeds in common; compare shows single tasks")
    return Made("".join(f"- {markdown.escape(line)}\n" for line in said))


def _no_options(_: argparse.ArgumentParser) -> None: ...


def _agree(_: str, runs: RunSet, __: argparse.Namespace) -> Made:
    from analysis.comparison import allocations

    return Made("\n".join(allocations.table(allocations.build(runs))) + "\n")


def _choose_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--by", choices=BY, default=BY[0])


def _choose(_: str, runs: RunSet, options: argparse.Namespace) -> Made:
    choices = choose(runs, by=options.by)
    tasks = list(dict.fromkeys(choice.task for choice in choices))
    found = {(choice.variant, choice.task): choice for choice in choices}
    body = []
    for variant in dict.fromkeys(choice.variant for choice in choices):
        cells = [found.get((variant, task)) for task in tasks]
        widths = [choice.decades for choice in cells if choice is not None]
        rates = ["" if c is None else _rate(c.value) + ("*" if c.edge else "") for c in cells]
        body.append([markdown.escape(variant), *rates, f"{sum(widths) / len(widths):.1f}"])
    lines = markdown.table(["variant", *map(markdown.escape, tasks), "good range, decades"], body)
    notes = [
        "",
        "- The best learning rate by the mean over tuning seeds; \\*: at an end of the grid.",
        "- Good range: rates around the best one that keep 95 % of its mean, averaged over tasks.",
    ]
    return Made("\n".join([*lines, *notes]) + "\n")


def _rate(value: float) -> str:
    """Returns a rate with all its digits, as 3e-4 or 2.5e-3."""
    digits, _, exponent = f"{value:.6e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def _figures_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", required=True, metavar="NAME,…")


def _figures(study: str, runs: RunSet, options: argparse.Namespace) -> Made:
    from analysis.commands.command import chosen
    from analysis.plots.kind import Picture, Study
    from analysis.plots.style import encode

    made = Made("")
    parts: list[str] = []
    for _, item in pictures(Study(runs), chosen("--only", options.only, NAMES)):
        if isinstance(item, Picture):
            path = f"{IMAGES}/{study}/{item.name}.png"
            made.files[path] = encode(item.draw(), "png")
            caption = markdown.escape(item.caption)
            parts.append(f"![{item.name}]({path})\n\n{caption}\n")
    made.text = "\n".join(parts)
    return made


KINDS = {
    "table": Kind(table.add_options, _table),
    "compare": Kind(partial(compare.add_choice, required=True), _compare),
    "verdicts": Kind(partial(compare.add_choice, required=True), _verdicts),
    "agree": Kind(_no_options, _agree),
    "choose": Kind(_choose_options, _choose),
    "figures": Kind(_figures_options, _figures),
}


def write(made: Made, beside: Path) -> None:
    """Writes a block's pictures. beside: the text's file. Raises `AnalysisError`."""
    for name, content in made.files.items():
        path = beside.parent / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise AnalysisError(f"can't write {path}: {error.strerror or error}") from None
