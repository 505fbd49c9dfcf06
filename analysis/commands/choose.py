"""`python -m analysis choose`: the best learning rate of each method on each task, as YAML that configs can read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from analysis.commands.command import Verb, add_runs, emit, read_runs
from analysis.comparison.choice import BY, GOOD, Choice, choose
from analysis.tables import footnotes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `choose`."""
    add_runs(parser)
    parser.add_argument("--setting", default="optim.lr", metavar="NAME", help="what was tuned; default: %(default)s")
    parser.add_argument("--by", choices=BY, default=BY[0], help="the split that decides; default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")


def run(arguments: argparse.Namespace) -> int:
    """Writes the choices. Raises `AnalysisError` if trials can't be compared."""
    runs = read_runs(arguments.runs)
    choices = choose(runs, arguments.setting, arguments.by)
    emit(text(choices, arguments.setting, arguments.by), arguments.output)
    for choice in choices:
        if choice.edge:
            where = f"{choice.variant} on {choice.task}"
            print(f"At the edge of the grid: {where}, {arguments.setting} {choice.value:g}", file=sys.stderr)
    for line in footnotes.left_out(runs):
        print(line, file=sys.stderr)
    return 0


def text(choices: list[Choice], setting: str, by: str) -> str:
    """The YAML: `choices` by task and method, after the setting and the split."""
    by_task: dict[str, dict[str, Any]] = {}
    for choice in choices:
        by_task.setdefault(choice.task, {})[choice.variant] = {
            "value": choice.value,
            "edge": choice.edge,
            "good": list(choice.good),
            "metric": choice.metric,
            "seeds": list(choice.seeds),
            "means": {value: None if mean is None else round(mean, 6) for value, mean in choice.means.items()},
        }
    head = (
        f"# The best {setting} of each method on each task, by the mean over seeds on the split '{by}'. Written by\n"
        f"# `python -m analysis choose`. edge: the best value is an end of the grid; good: the range that keeps\n"
        f"# {GOOD:g} of the best mean; means: by value, null where a run failed.\n"
    )
    content = {"setting": setting, "by": by, "choices": by_task}
    return head + _yaml(content)


def _yaml(content: dict[str, Any]) -> str:
    """`content` as YAML in which lists and the means stand on one line, so that a table of rates stays readable."""
    import yaml  # imported here, because no other command needs it

    class Dumper(yaml.SafeDumper):
        pass

    def mapping(dumper: Any, value: dict[Any, Any]) -> Any:
        flat = all(isinstance(key, float) for key in value)
        return dumper.represent_mapping("tag:yaml.org,2002:map", value.items(), flow_style=flat)

    def sequence(dumper: Any, value: list[Any]) -> Any:
        return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)

    Dumper.add_representer(dict, mapping)
    Dumper.add_representer(list, sequence)
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


VERB = Verb(
    name="choose",
    summary="the best learning rate of each method on each task",
    description=(
        "Of runs that differ in a setting (the learning rate) and the seed alone, the value with the best mean on\n"
        "the selection split, for each method and task, as YAML. A config takes a value from it by\n"
        "${chosen:FILE,${variant.name},${task.name}}. All values must have the same seeds. A value with a failed\n"
        "run is never the best. A best value at the end of the grid is marked, and listed on standard error."
    ),
    example="python -m analysis choose runs/tuning --output conf/rates/study.yaml",
    add_arguments=add_arguments,
    run=run,
)
