"""The command line's `name=value` as Hydra's grammar reads it, for values that people have and it refuses.

Outside quotes the grammar knows some ASCII letters only: `~/train.csv`, `train (1).csv`, `données/train.csv` and
`epoch=3.csv` are errors of its lexer, and `a,b.csv` is a sweep. What can mean one thing only is put in quotes here.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from trainer.data.sources.paths import expanded
from trainer.errors import ConfigError

_STRUCTURE = re.compile(r"""[][{}()'",]""")  # with one of these, a value may be a list, a call or a text of several


def readable(arguments: Sequence[str]) -> list[str]:
    """`arguments` with values in quotes where the grammar needs them; a path's `~` is the home folder.

    A path (a field whose name ends in `path` or `dir`) that is there is that path, whatever is in its name. Of other
    values that can't be read, one without brackets, quotes and commas is a text. Raises `ConfigError`, which says how
    to quote, for the rest.
    """
    parser = OverridesParser.create()
    return [_readable(argument, parser) for argument in arguments]


def _readable(argument: str, parser: OverridesParser) -> str:
    name, equals, value = argument.partition("=")
    if not equals or name.startswith("-") or not value:
        return argument
    is_path = re.search(r"(^|[._])(path|dir)$", name) is not None
    if is_path and value.startswith("~"):
        value = ",".join(str(expanded(part)) for part in ([value] if _there(value) else value.split(",")))
    if is_path and _there(value):
        return f"{name}={value}" if _read(name, value, parser) == value else f"{name}={quoted(value)}"
    try:
        parser.parse_override(f"{name}={value}")
    except HydraException:
        if is_path:
            return f"{name}={','.join(map(quoted, value.split(',')))}"
        if _STRUCTURE.search(value):
            how = shlex.quote(f"{name}=" + quoted(value, '"'))
            raise ConfigError(
                f"{name.lstrip('+')}: {value!r} can't be read; allowed: a text in quotes within the shell's, {how},"
                " or a list whose texts are quoted so"
            ) from None
        return f"{name}={quoted(value)}"
    return f"{name}={value}"


def quoted(text: str, mark: str = "'") -> str:
    """`text` as one value of Hydra's grammar, between these marks."""
    # A backslash is one, but in front of a mark or at the end.
    escaped = re.sub(rf"(\\*)({mark}|$)", lambda found: found[1] * 2 + (f"\\{mark}" if found[2] else ""), text)
    return f"{mark}{escaped}{mark}"


def _there(path: str) -> bool:
    return path != "null" and os.path.exists(expanded(path))


def _read(name: str, value: str, parser: OverridesParser) -> object:
    """What the grammar makes of a value; None where it is no single one."""
    try:
        override = parser.parse_override(f"{name}={value}")
    except HydraException:
        return None
    return None if override.is_sweep_override() else override.value()
