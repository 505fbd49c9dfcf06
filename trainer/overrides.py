"""Brings the command line into a form that Hydra reads as it is meant: overrides before flags, quotes around values.

Outside quotes the grammar accepts few characters: `~/train.csv`, `train (1).csv`, `données/train.csv` and `epoch=3.csv`
are lexer errors, and `a,b.csv` is a sweep. This module puts a value in quotes if only one meaning is possible.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from trainer.data.sources.paths import expanded
from trainer.errors import ConfigError

_STRUCTURE = re.compile(r"""[][{}()'",]""")  # a value with one of these may be a list, a call or several texts


def readable(arguments: Sequence[str]) -> list[str]:
    """`arguments` with quotes around values where needed; `~` in a path becomes the home folder.

    A field whose name ends in `path` or `dir` is a path; an existing path is never split or parsed. Any other value
    that can't be parsed is taken as text if it has no brackets, quotes or commas. For the rest it raises `ConfigError`,
    which says how to quote.
    """
    parser = OverridesParser.create()
    return [_readable(argument, parser) for argument in arguments]


def overrides_first(arguments: Sequence[str]) -> list[str]:
    """`arguments` with all overrides before Hydra's flags: it refuses overrides on both sides of a flag.

    Flags come last, because `--info` would take an override after it for its value.
    """
    parsed, others = get_args_parser().parse_known_args(list(arguments))
    overrides = [*parsed.overrides, *(text for text in others if not text.startswith("-"))]
    return overrides + [text for text in arguments if text not in overrides]


def _readable(argument: str, parser: OverridesParser) -> str:
    name, equals, value = argument.partition("=")
    if not equals or name.startswith("-") or not value:
        return argument
    is_path = re.search(r"(^|[._])(path|dir)$", name) is not None
    if is_path and value.startswith("~"):
        value = ",".join(str(expanded(part)) for part in ([value] if _exists(value) else value.split(",")))
    if is_path and _exists(value):
        return f"{name}={value}" if _read(name, value, parser) == value else f"{name}={quoted(value)}"
    try:
        parser.parse_override(f"{name}={value}")
    except HydraException:
        if is_path:
            return f"{name}={','.join(map(quoted, value.split(',')))}"
        if _STRUCTURE.search(value):
            how = shlex.quote(f"{name}=" + quoted(value, '"'))
            raise ConfigError(
                f"{name.lstrip('+')}: {value!r} can't be parsed; allowed: text in quotes inside the shell's, {how},"
                " or a list of such texts"
            ) from None
        return f"{name}={quoted(value)}"
    return f"{name}={value}"


def quoted(text: str, mark: str = "'") -> str:
    """`text` as one value of Hydra's grammar, between these quotation marks."""
    # A backslash needs escaping only before a quotation mark or at the end.
    escaped = re.sub(rf"(\\*)({mark}|$)", lambda match: match[1] * 2 + (f"\\{mark}" if match[2] else ""), text)
    return f"{mark}{escaped}{mark}"


def _exists(path: str) -> bool:
    return path != "null" and os.path.exists(expanded(path))


def _read(name: str, value: str, parser: OverridesParser) -> object:
    """The value as the grammar parses it; None if it is an error or several values."""
    try:
        override = parser.parse_override(f"{name}={value}")
    except HydraException:
        return None
    return None if override.is_sweep_override() else override.value()
