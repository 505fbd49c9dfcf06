"""The runs of a sweep: which there are, and which are done, before any of them starts.

Hydra composes a config in about 50 ms, because it reads the defaults anew. The configs of a sweep differ in few
fields, so here one is composed for each choice of files, and the fields of the others are set in it: the same
configs (a test compares them) in a fiftieth of the time. Nothing is kept of a run but its place in the sweep.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType, ValueType
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from trainer.errors import ConfigError
from trainer.machine import launch
from trainer.sweeps import plan as plans
from trainer.sweeps.plan import Planned

COMPOSED = 256  # configs that are held, one for each choice of files
FIELDS = 10_000  # overrides that are held as parsed

# Hydra's own folders, as conf/config.yaml has them.
PLACES = {
    "run.dir": ".",
    "sweep.dir": "${runs_dir}/${study}",
    "sweep.subdir": ".",
}


@dataclass(frozen=True)
class Outcome:
    """What one job of a sweep comes to. value: its metric. how: "ran", "done already" or "dry run"."""

    value: float
    how: str

    def __float__(self) -> float:
        return self.value


def refuse_several_processes(sweeper: str, launcher: DictConfig) -> None:
    """Raises `ConfigError` where the processes that carry out a run together would go through other runs."""
    if launch.this().count == 1:
        return
    for part, name, allowed in (
        ("sweeper", sweeper, "StudySweeper"),
        ("launcher", launcher._target_.rpartition(".")[2], "BasicLauncher"),
    ):
        if name != allowed:
            raise ConfigError(f"hydra/{part}: {name} in several processes for one run, allowed: {allowed}")


def refuse_places(arguments: Sequence[str]) -> None:
    """Raises `ConfigError` where the command line sets a folder of Hydra's, before Hydra makes it."""
    for argument in arguments:
        name, equals, value = argument.lstrip("+").partition("=")
        if equals and name.removeprefix("hydra.") in PLACES and name.startswith("hydra."):
            _refuse_place(name, value)


def refuse_unread(hydra: DictConfig, multirun: bool) -> None:
    """Raises `ConfigError` for what an experiment says to Hydra and what would change nothing.

    These are Hydra's own folders, for runs lie by their names, and a sweep's parameters where no sweep was asked for.
    """
    for name, default in PLACES.items():
        group, _, key = name.partition(".")
        if (found := hydra[group]._get_node(key)._value()) != default:
            _refuse_place(f"hydra.{name}", found)
    if not multirun and (params := hydra.sweeper.get("params")):
        given = ", ".join(map(str, params))
        raise ConfigError(
            f"hydra.sweeper.params: {given} in a single run, allowed: none; "
            "`hydra: {mode: MULTIRUN}` in the experiment, or -m, makes a sweep of it"
        )


def _refuse_place(name: str, value: Any) -> NoReturn:
    where = "runs_dir and study say where runs lie: <runs_dir>/<study>/<name of the run>"
    raise ConfigError(f"{name}: {value!r}, allowed: none; {where}")


def product(loader: Any, texts: Sequence[str]) -> list[list[str]]:
    """One list of overrides for each run that the overrides of a sweep mean: all combinations, in Hydra's order.

    Raises `ConfigError` for a glob() that no file matches.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    named = _named(loader)
    parsed = OverridesParser.create(config_loader=named).parse_overrides(list(texts))
    for override in parsed:
        if override.value_type is ValueType.GLOB_CHOICE_SWEEP and not [*override.sweep_iterator()]:
            allowed = ", ".join(named.get_group_options(override.key_or_group, ObjectType.CONFIG))
            text = override.input_line.partition("=")[2] if override.input_line else "glob()"
            raise ConfigError(f"{override.key_or_group}: {text!r} matches no file, allowed: {allowed}")
    (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return jobs


def _named(loader: Any) -> Any:
    """A config loader for which a group has no templates: files whose names begin with an underscore."""
    found = copy.copy(loader)

    def options(name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        return [option for option in loader.get_group_options(name, results_filter) if not option.startswith("_")]

    found.get_group_options = options
    return found


def field(parser: OverridesParser, text: str, is_group: Callable[[str], bool]) -> tuple[str, Any] | None:
    """Name and value where an override gives one field of a run one value; None where it chooses files, adds or merges.

    Raises Hydra's error where it can't be parsed.
    """
    override = parser.parse_override(text)
    key = override.key_or_group
    plain = override.type is OverrideType.CHANGE and override.package is None and not override.is_sweep_override()
    if not plain or key.startswith("hydra.") or is_group(key):
        return None
    value = override.value()
    return (key, value) if value is None or isinstance(value, bool | int | float | str) else None


class Runs:
    """Runs by their place in `jobs`: one list of overrides a run, as Hydra's launchers take them."""

    def __init__(self, loader: Any, master: DictConfig, jobs: list[list[str]]) -> None:
        self._loader, self._master, self.jobs = loader, master, jobs
        self._parser = OverridesParser.create(config_loader=loader)
        self._fields: dict[str, tuple[str, Any] | None] = {}
        self._composed: dict[tuple[str, ...], tuple[DictConfig, list[str]]] = {}  # by what chooses files
        self._contents: dict[str, dict[str, Any] | ConfigError] = {}
        self._folders: dict[Path, frozenset[str]] = {}

    def __len__(self) -> int:
        return len(self.jobs)

    def plan(self, number: int) -> Planned:
        """The run in place `number`. Raises `ConfigError`, or Hydra's errors where it can't be composed.

        Its config is valid until the next call.
        """
        config = self.config(number)
        return plans.plan(config, self._content(config), self._exists)

    def config(self, number: int) -> DictConfig:
        """The config of the run in place `number`, valid until the next call."""
        texts = self.jobs[number]
        files = tuple(text for text in texts if self._field(text) is None)
        if files not in self._composed:
            config = self._loader.load_sweep_config(self._master, list(texts))
            with read_write(config), open_dict(config):
                del config["hydra"]  # as Hydra does before it hands a config to a run
            if len(self._composed) >= COMPOSED:
                self._composed.clear()
            self._composed[files] = config, texts
        config, has = self._composed.pop(files)  # not there where a value is refused: what has been set is unknown then
        for text, before in zip(texts, has, strict=True):
            if text != before and (field := self._field(text)) is not None:
                OmegaConf.update(config, *field, merge=True)
        self._composed[files] = config, texts
        return config

    def forget(self) -> None:
        """What is on disk is looked at anew."""
        self._folders.clear()

    def _field(self, text: str) -> tuple[str, Any] | None:
        """Name and value where an override gives one field a value; None where it chooses files, adds or merges."""
        if text not in self._fields:
            if len(self._fields) >= FIELDS:
                self._fields.clear()
            self._fields[text] = field(self._parser, text, self._loader.repository.group_exists)
        return self._fields[text]

    def _content(self, config: DictConfig) -> dict[str, Any]:
        """Fingerprints of the files that a config names; many runs share them."""
        named = [config.task.source, config.model.sources, config.model.files]
        parts = [OmegaConf.to_container(node, resolve=True) for node in named]
        key = json.dumps([*parts, config.init_from], sort_keys=True)
        if key not in self._contents:
            try:
                self._contents[key] = plans.content(config)
            except ConfigError as error:  # a Hub that hangs is waited for once, not for each run
                self._contents[key] = error
        found = self._contents[key]
        if isinstance(found, ConfigError):
            raise found
        return found

    def _exists(self, folder: Path) -> bool:
        """Whether a run's folder is there: from one listing of the study, not a question for each run."""
        if folder.parent not in self._folders:
            self._folders[folder.parent] = frozenset(_names(folder.parent))
        return folder.name in self._folders[folder.parent]


def _names(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry.name
    except FileNotFoundError:
        return


def cores() -> int:
    """Processor cores that this process may use: by the machine, its affinity and its container's limit."""
    import joblib  # scikit-learn brings it

    return joblib.cpu_count()


def side_by_side(launcher: DictConfig) -> int:
    """Runs that a launcher carries out at once on this machine, 1 where that is not for the launcher to say.

    joblib: `n_jobs`, where -1 stands for all cores and -2 for all but one. submitit_local starts every job it is given
    at once, so it is given as many as have cores.
    """
    if (jobs := launcher.get("n_jobs")) is not None:
        return max(1, jobs if jobs > 0 else cores() + 1 + jobs)
    if launcher._target_.endswith(".LocalLauncher"):
        return max(1, cores() // (launcher.get("cpus_per_task") or 1))
    return 1


def threads(launcher: DictConfig) -> int | None:
    """Threads of torch for a job of this launcher, so that jobs side by side share the cores; None: torch's choice."""
    if (wanted := launcher.get("cpus_per_task")) is not None:
        return int(wanted)
    if (wanted := launcher.get("ray", {}).get("remote", {}).get("num_cpus")) is not None:
        return max(1, int(wanted))
    at_once = side_by_side(launcher)
    return max(1, cores() // at_once) if at_once > 1 else None
