"""The command `loratory`, in any folder.

    loratory train variant=lora task=movie      as `python train.py …` in a checkout
    loratory table runs/mine                    and the other verbs of `python -m analysis` and `python -m weights`
    loratory variants list                      as `python -m variants …`

Runs land in `runs/` of the current folder. Its `conf/` is searched beside the suite's, for variants, tasks, models and
experiments of one's own, and its modules can be named as classes (`variant._target_: mine.Mine`).
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from loratory import SUITE, __version__, reach

_OWN = Path("conf")
_PACKAGES = ("variants", "trainer", "analysis", "weights", "hydra_plugins")


def main() -> None:
    """Carries out `sys.argv`. Errors are one line, with exit code 2."""
    verb, *rest = sys.argv[1:] or ["--help"]
    # The suite first, the current folder last: a module of the user's there does not take the place of the suite's.
    sys.path[:] = [str(SUITE), *(path for path in sys.path if path not in ("", str(SUITE))), os.getcwd()]
    # Processes that a run starts find the suite, too.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SUITE), os.environ.get("PYTHONPATH", "")]))
    reach(_PACKAGES[:-1])  # hydra_plugins is shared by all of Hydra's plugins
    if verb == "train":
        _run(str(SUITE / "train.py"), [*_own_configs(rest), *rest])
    elif verb == "variants":
        _module("variants", rest)
    elif verb == "--version":
        print(__version__)
    else:
        _results([verb, *rest])


def _results(arguments: list[str]) -> None:
    from analysis.commands.cli import VERBS, CommandLine
    from weights.cli import ERRORS
    from weights.cli import VERBS as OF_WEIGHTS

    line = CommandLine(
        "loratory",
        "Trains and compares adaptive-rank and sparse LoRA variants. Besides the verbs below: `loratory train …` "
        "(variant=lora task=movie, -m for a sweep, --help for all fields), `loratory variants list`, --version.",
        (*VERBS, *OF_WEIGHTS),
        ERRORS,
        program="loratory",
    )
    sys.exit(line.main(arguments))


def _own_configs(arguments: list[str]) -> list[str]:
    """Hydra's flag for `conf/` of the current folder. Exits with an error if a file there has the name of the suite's."""
    theirs = SUITE / "conf"
    if not _OWN.is_dir() or _OWN.resolve() == theirs or any(a.startswith(("--config-dir", "-cd")) for a in arguments):
        return []
    for path in sorted(_OWN.rglob("*.yaml")):
        if (theirs / path.relative_to(_OWN)).exists():
            sys.exit(f"error: {path}: the suite has a config of this name; allowed: another name")
    return ["--config-dir", str(_OWN.resolve())]


def _module(name: str, arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _run(path: str, arguments: list[str]) -> None:
    sys.argv[:] = [path, *arguments]
    runpy.run_path(path, run_name="__main__")
