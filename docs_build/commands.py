"""The reference of commands: every verb and every option, from the parsers themselves."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import train
from analysis.commands.cli import parser as analysis_parser
from docs_build.markdown import code, table
from variants.catalogue.cli import parser as variants_parser
from weights.cli import parser as weights_parser

ROOT = Path(__file__).parents[1]
INTRODUCTION = """\
# Commands

What can be typed, from the parsers of the commands themselves. What `train.py` takes besides are
[settings](settings.md): `name=value`. Where `pip install` has installed Loratory, `loratory train …` is
`python train.py …`, `loratory variants …` is `python -m variants …`, and the verbs of `analysis` and `weights` follow
`loratory` itself: `loratory table …`, `loratory export …`.
"""


def page() -> str:
    """The text of the page."""
    parts = [INTRODUCTION, _train()]
    for name, parser in (
        ("analysis", analysis_parser()),
        ("weights", weights_parser()),
        ("variants", variants_parser()),
    ):
        parts.append(f"## python -m {name}\n\n{parser.description}\n")
        for verb, sub in verbs(parser).items():
            parts.append(_verb(name, verb, sub))
    parts.append("## Benchmarks\n")
    parts += [f"### python -m {module}\n\n```text\n{_help(module)}```\n" for module in benchmarks()]
    return "\n".join(parts)


def verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a parser's verbs."""
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def benchmarks() -> list[str]:
    """The modules of `benchmarks/` that are commands."""
    files = sorted((ROOT / "benchmarks").glob("*.py"))
    return [f"benchmarks.{file.stem}" for file in files if "__main__" in file.read_text(encoding="utf-8")]


def _verb(name: str, verb: str, parser: argparse.ArgumentParser) -> str:
    (summary,) = (c.help for c in _choices(name) if c.dest == verb)
    text = f"### {name} {verb}\n\n{_prose(parser.description or f'{summary}.')}\n\n"
    if parser.epilog:
        lines = [line.strip() for line in parser.epilog.splitlines()[1:]]
        text += "```\n" + "\n".join(lines) + "\n```\n\n"
    return text + _options(parser._actions)


def _choices(name: str) -> Sequence[argparse.Action]:
    parser = {"analysis": analysis_parser, "weights": weights_parser, "variants": variants_parser}[name]()
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return action._choices_actions


def _prose(text: str) -> str:
    """A description as a paragraph; `*` and `_` are letters in it."""
    return re.sub(r"([*_])", r"\\\1", text)


def _options(actions: Sequence[argparse.Action]) -> str:
    rows = []
    for action in actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        rows.append((_written(action), _default(action), _prose(str(action.help or "") % _values(action))))
    return table(("option", "default", "meaning"), rows) if rows else ""


def _written(action: argparse.Action) -> str:
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    if isinstance(value, tuple):
        value = " ".join(value)
    if not action.option_strings:
        return code(str(action.metavar or action.dest))
    return ", ".join(code(name if action.nargs == 0 else f"{name} {value}") for name in action.option_strings)


def _default(action: argparse.Action) -> str:
    hidden = action.default in (None, False, argparse.SUPPRESS) or not action.option_strings
    return "" if hidden else code(str(action.default))


def _values(action: argparse.Action) -> dict[str, object]:
    return {**vars(action), "prog": ""}


def _train() -> str:
    from hydra._internal.utils import get_args_parser

    text = f"## python train.py\n\n```text\n{inspect.cleandoc(train.__doc__ or '')}\n```\n\n"
    text += "Flags are Hydra's, and `--dry-run`, which prints a run's predicted costs and starts nothing.\n\n"
    return text + _options([a for a in get_args_parser()._actions if a.dest not in ("overrides", "shell_completion")])


def _help(module: str) -> str:
    """What `--help` of a module prints."""
    said = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [module]),
        mock.patch.dict(os.environ, COLUMNS="90"),
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),
    ):
        sys.argv.append("--help")
        importlib.import_module(module).main()
    return said.getvalue().replace(f"usage: {module}", f"usage: python -m {module}")
