"""The command `loratory`, in any folder.

    loratory train variant=lora task=movie      as `python train.py …` in a checkout
    loratory table runs/mine                    and every other verb of `python -m analysis` and `python -m weights`
    loratory variants list                      as `python -m variants …`

Runs land in `runs/` of the current folder. Its `conf/` is searched beside the suite's, for variants, tasks, models and
experiments of the user's; a file with the name of one of the suite's is refused. Its modules can be named as classes
(`variant._target_: mine.Mine`).
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path

from loratory import __version__

USAGE = "Trains and compares adaptive-rank and sparse LoRA variants. `loratory --version` is the version."
OTHERS = {  # verbs with command lines of their own
    "train": "one run (variant=lora task=movie), or with -m a sweep; --help lists all fields",
    "variants": "the catalogue of methods: list, show NAME",
}


def main() -> None:
    """Carries out `sys.argv`. An error is one line."""
    from variants.core import placement

    verb, *rest = sys.argv[1:] or ["--help"]
    here = os.getcwd()
    # The current folder comes last: no file in it takes the place of an installed package.
    sys.path[:] = [*(path for path in sys.path if path not in ("", here)), here]
    if verb == "train":
        train(placement.ROOT, rest)
    elif verb == "variants":
        from variants.catalogue import cli

        sys.exit(cli.main(rest))
    elif verb == "--version":
        print(__version__)
    else:
        results([verb, *rest])


def train(root: Path, arguments: list[str]) -> None:
    """Runs train.py. root: holds it, and conf/."""
    plugins = root / "_plugins"
    if plugins.is_dir():
        sys.path.append(str(plugins))
        # Processes of a sweep must find the plugins, too.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(plugins), os.environ.get("PYTHONPATH")]))
    script = str(root / "train.py")
    sys.argv[:] = [script, *own_configs(root / "conf", arguments), *arguments]
    runpy.run_path(script, run_name="__main__")


def own_configs(suite: Path, arguments: list[str]) -> list[str]:
    """Hydra's option for `conf/` of the current folder, unless the arguments name another folder."""
    own = Path("conf")
    chosen = any(text.startswith(("--config-dir", "-cd")) for text in arguments)
    return (
        [] if chosen or not own.is_dir() or own.resolve() == suite.resolve() else ["--config-dir", str(own.resolve())]
    )


def results(arguments: list[str]) -> None:
    """The verbs of analysis and of weights; the list of all verbs, and what is said to an unknown one."""
    from analysis.commands.cli import VERBS, CommandLine
    from analysis.commands.command import Verb
    from trainer import config_files
    from weights import cli

    def no_arguments(_: argparse.ArgumentParser) -> None: ...

    def refuse(options: argparse.Namespace) -> int:
        sys.exit(f"error: {options.verb}, allowed: as the first word after loratory")

    if Path("conf").is_dir():
        config_files.use(Path("conf"))  # a model of the user's, a mixture of the user's tasks
    others = [Verb(name, said, said, f"loratory {name} …", no_arguments, refuse) for name, said in OTHERS.items()]
    sys.exit(CommandLine("loratory", USAGE, (*others, *VERBS, *cli.VERBS), cli.ERRORS, "loratory").main(arguments))
