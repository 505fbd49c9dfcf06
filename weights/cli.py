"""The command line of `python -m weights`."""

from __future__ import annotations

from analysis.commands.cli import CommandLine
from analysis.errors import AnalysisError
from trainer.errors import ConfigError, RunFailed
from weights import export, generate, harness, predict, spectrum, truncate

ERRORS = (ConfigError, RunFailed, AnalysisError)
_LINE = CommandLine(
    "weights",
    "Exports a finished run, evaluates it on other data, writes with it, truncates its update; decomposes a backbone.",
    (export.VERB, predict.VERB, generate.VERB, harness.VERB, truncate.VERB, spectrum.VERB),
    ERRORS,
)
VERBS, parser, main = _LINE.verbs, _LINE.parser, _LINE.main
