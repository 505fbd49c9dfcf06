"""The command line of `python -m analysis`; `python -m weights` uses the same class."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.commands import (
    agree,
    choose,
    collect,
    compare,
    dashboard,
    figures,
    keep,
    readme,
    report,
    sync,
    table,
    verify,
)
from analysis.commands.command import Verb
from analysis.errors import AnalysisError

# The extra of the package that installs a module which some verbs need.
EXTRAS = {"matplotlib": "analysis", "statsmodels": "analysis", "scikit_posthocs": "analysis", "wandb": "wandb"}


@dataclass(frozen=True)
class CommandLine:
    """The verbs of `python -m NAME`, or of another program. errors: exceptions that are shown as one line."""

    name: str
    description: str
    verbs: tuple[Verb, ...]
    errors: tuple[type[Exception], ...] = (AnalysisError,)
    program: str = ""  # what the user types before a verb, if it is not `python -m NAME`

    def parser(self) -> argparse.ArgumentParser:
        """The parser of all verbs; `--help` lists them."""
        program = self.program or f"python -m {self.name}"
        top = argparse.ArgumentParser(
            prog=program,
            description=self.description,
            epilog=f"{program} <verb> --help shows the options of a verb and an example.",
        )
        verbs = top.add_subparsers(title="verbs", metavar="<verb>", dest="verb", required=True)
        for verb in self.verbs:
            sub = verbs.add_parser(
                verb.name,
                help=verb.summary,
                description=verb.description,
                epilog="example:\n" + "\n".join(f"  {self._typed(line)}" for line in verb.example.splitlines()),
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            verb.add_arguments(sub)
            sub.set_defaults(call=verb.run)  # not `run`, which is an argument of some verbs
        return top

    def _typed(self, example: str) -> str:
        return re.sub(r"^python -m \w+", self.program, example) if self.program else example

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Runs one command and returns its exit code: 0, 1 if a check fails, 2 for an error."""
        options = self.parser().parse_args(arguments)
        try:
            code: int = options.call(options)
        except self.errors as error:
            print(f"{self.name}: {error}", file=sys.stderr)
            return 2
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if module not in EXTRAS:
                raise
            install = f"pip install 'loratory[{EXTRAS[module]}]'"
            print(f"{self.name}: {options.verb} needs {module}; install it with: {install}", file=sys.stderr)
            return 2
        return code


VERBS: tuple[Verb, ...] = (
    *(table.VERB, collect.VERB, choose.VERB, compare.VERB, agree.VERB, figures.VERB, report.VERB),
    *(keep.VERB, verify.VERB, readme.VERB, dashboard.VERB, sync.VERB),
)
_LINE = CommandLine("analysis", "Tables, comparisons, figures and reports from run folders.", VERBS)
parser, main = _LINE.parser, _LINE.main
