"""Where the files of `conf/` are: the suite's, and beside them those of the user's folder, `--config-dir FOLDER`.

The folder stands in the environment, so that the processes of a sweep look there, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser

from trainer.errors import ConfigError
from variants.core import placement

SUITE = placement.ROOT / "conf"
VARIABLE = "LORATORY_CONF"


def take(arguments: Sequence[str]) -> None:
    """Reads the user's folder from the command line of train.py.

    Raises `ConfigError` if it has a file with the name of one of the suite's, which Hydra would use instead.
    """
    os.environ.pop(VARIABLE, None)
    parsed, _ = get_args_parser().parse_known_args(list(arguments))
    if parsed.config_dir is None or Path(parsed.config_dir).resolve() == SUITE.resolve():
        return
    folder = Path(parsed.config_dir)
    for path in sorted(folder.rglob("*.yaml")):
        if (SUITE / path.relative_to(folder)).is_file():
            raise ConfigError(
                f"{path}: the suite has a config of this name; allowed: another name, or --config-dir FOLDER with a "
                f"folder for configs of {placement.typed('python train.py')} alone"
            )
    use(folder)


def use(folder: Path) -> None:
    """Makes `folder` the user's."""
    os.environ[VARIABLE] = str(folder.resolve())


def own() -> Path | None:
    """The user's folder, if there is one."""
    return Path(os.environ[VARIABLE]) if VARIABLE in os.environ else None


def find(group: str, name: str) -> Path | None:
    """The file of this name in a group; None if there is none."""
    return next((path for path in _files(group) if path.stem == name), None)


def names(group: str) -> list[str]:
    """The names of a group's files, without templates."""
    return sorted({path.stem for path in _files(group) if not path.stem.startswith("_")})


def _files(group: str) -> Iterator[Path]:
    for folder in (SUITE, own()):
        if folder is not None:
            yield from (folder / group).glob("*.yaml")
