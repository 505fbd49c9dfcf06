"""The runs of a sweep: their overrides and configs, and which of them are done, before any of them starts.

Hydra takes about 50 ms to compose a config, because it rereads the defaults. The configs of a sweep differ in few
fields. So this module composes one config for each choice of files and sets the other fields in it: the configs are the
same (a test compares them) and take a fiftieth of the time. A run is known by its number in the sweep alone.
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
from trainer.sweeps import found_ranks
from trainer.sweeps import plan as plans
from trainer.sweeps.found_ranks import Found
from trainer.sweeps.plan import Planned

COMPOSED = 256  # most configs in memory, one for each choice of files
FIELDS = 10_000  # most parsed overrides in memory

# Hydra's own folders as conf/config.yaml sets them.
HYDRA_FOLDERS = {
    "run.dir": ".",
    "sweep.dir": "${runs_dir}/${study}",
    "sweep.subdir": ".",
}


@dataclass(frozen=True)
class Outcome:
    """The result of one job of a sweep. value: its metric. how: "ran", "done already" or "dry run"."""

    value: float
    how: str

    def __float__(self) -> float:
        return self.value


def refuse_several_processes(sweeper: str, launcher: DictConfig) -> None:
    """Raises `ConfigError` if the processes that share a run would not go through the same runs."""
    if launch.this().count == 1:
        return
    for part, name, allowed in (
        ("sweeper", sweeper, "StudySweeper"),
        ("launcher", launcher._target_.rpartition(".")[2], "BasicLauncher"),
    ):
        if name != allowed:
            raise ConfigError(f"hydra/{part}: {name} in several processes for one run, allowed: {allowed}")


def refuse_hydra_folders(arguments: Sequence[str]) -> None:
    """Raises `ConfigError` if the command line sets one of Hydra's folders, before Hydra creates it."""
    for argument in arguments:
        name, equals, value = argument.lstrip("+").partition("=")
        if equals and name.removeprefix("hydra.") in HYDRA_FOLDERS and name.startswith("hydra."):
            _refuse_folder(name, value)


def refuse_ignored(hydra: DictConfig, multirun: bool) -> None:
    """Raises `ConfigError` for settings of Hydra's that would have no effect.

    These are Hydra's own folders, since a run's folder follows from its name, and sweep parameters in a single run.
    """
    for name, default in HYDRA_FOLDERS.items():
        group, _, key = name.partition(".")
        if (value := hydra[group]._get_node(key)._value()) != default:
            _refuse_folder(f"hydra.{name}", value)
    if not multirun and (params := hydra.sweeper.get("params")):
        given = ", ".join(map(str, params))
        raise ConfigError(
            f"hydra.sweeper.params: {given} in a single run, allowed: none; "
            "`hydra: {mode: MULTIRUN}` in the experiment, or -m, starts a sweep"
        )


def _refuse_folder(name: str, value: Any) -> NoReturn:
    raise ConfigError(
        f"{name}: {value!r}, allowed: none; a run's folder is <runs_dir>/<study>/<name of the run>: set runs_dir, study"
    )


def product(loader: Any, texts: Sequence[str]) -> list[list[str]]:
    """The overrides of each run of a sweep: all combinations, in Hydra's order.

    Raises `ConfigError` for a glob() that matches no file, or another override without values.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    without_templates = _without_templates(loader)
    parsed = OverridesParser.create(config_loader=without_templates).parse_overrides(list(texts))
    for override in parsed:
        if not override.is_sweep_override() or any(True for _ in override.sweep_iterator()):  # null is a value
            continue
        text = (override.input_line or "").partition("=")[2]
        if override.value_type is not ValueType.GLOB_CHOICE_SWEEP:
            raise ConfigError(f"{override.key_or_group}: {text!r} has no values, allowed: at least one")
        allowed = ", ".join(without_templates.get_group_options(override.key_or_group, ObjectType.CONFIG))
        raise ConfigError(f"{override.key_or_group}: {text!r} matches no file, allowed: {allowed}")
    (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return jobs


def _without_templates(loader: Any) -> Any:
    """A copy of a config loader whose groups omit templates: files whose names begin with an underscore."""
    reduced = copy.copy(loader)

    def options(name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        return [option for option in loader.get_group_options(name, results_filter) if not option.startswith("_")]

    reduced.get_group_options = options
    return reduced


def field(parser: OverridesParser, text: str, is_group: Callable[[str], bool]) -> tuple[str, Any] | None:
    """Name and value of an override that sets one field of a run; None if it chooses files, adds or merges.

    Raises Hydra's error if it can't be parsed.
    """
    override = parser.parse_override(text)
    key = override.key_or_group
    plain = override.type is OverrideType.CHANGE and override.package is None and not override.is_sweep_override()
    if not plain or key.startswith("hydra.") or is_group(key):
        return None
    value = override.value()
    return (key, value) if value is None or isinstance(value, bool | int | float | str) else None


class Runs:
    """Runs by their number in `jobs`, which has one list of overrides for each run, as Hydra's launchers expect."""

    def __init__(self, loader: Any, master: DictConfig, jobs: list[list[str]]) -> None:
        self._loader, self._master, self.jobs = loader, master, jobs
        self._parser = OverridesParser.create(config_loader=loader)
        self._fields: dict[str, tuple[str, Any] | None] = {}
        self._composed: dict[tuple[str, ...], tuple[DictConfig, list[str]]] = {}  # by the overrides that choose files
        self._contents: dict[str, dict[str, Any] | ConfigError] = {}
        self._folders: dict[Path, frozenset[str]] = {}

    def __len__(self) -> int:
        return len(self.jobs)

    def plan(self, number: int) -> Planned:
        """The run of this number. Its config is valid until the next call.

        Raises `ConfigError`, or an error of Hydra's if the config can't be composed.
        """
        config = self.config(number)
        return plans.plan(config, self._content(config), self._exists)

    def config(self, number: int) -> DictConfig:
        """The config of the run of this number, valid until the next call."""
        texts = self.jobs[number]
        files = tuple(text for text in texts if self._field(text) is None)
        if files not in self._composed:
            config = self._loader.load_sweep_config(self._master, list(texts))
            with read_write(config), open_dict(config):
                del config["hydra"]  # as Hydra does before it passes a config to a run
            if len(self._composed) >= COMPOSED:
                self._composed.clear()
            self._composed[files] = config, texts
        config, previous = self._composed.pop(files)  # put back below unless a value is refused half-way
        for text, earlier in zip(texts, previous, strict=True):
            if text != earlier and (field := self._field(text)) is not None:
                OmegaConf.update(config, *field, merge=True)
        self._composed[files] = config, texts
        return config

    def origin(self, number: int) -> Found | None:
        """The run whose ranks the run of this number is given; None if it has its own. See `found_ranks`."""
        config = self.config(number)
        return found_ranks.find(config, plans.plan) if found_ranks.asked(config) else None

    def forget(self) -> None:
        """Clears what is cached of the folders on disk."""
        self._folders.clear()

    def _field(self, text: str) -> tuple[str, Any] | None:
        """See `field`; cached."""
        if text not in self._fields:
            if len(self._fields) >= FIELDS:
                self._fields.clear()
            self._fields[text] = field(self._parser, text, self._loader.repository.group_exists)
        return self._fields[text]

    def _content(self, config: DictConfig) -> dict[str, Any]:
        """Fingerprints of the files that a config names; cached, because many runs share them."""
        named = [config.task, config.model.sources, config.model.files]
        parts = [OmegaConf.to_container(node, resolve=True) for node in named]
        key = json.dumps([*parts, config.init_from, config.train.teacher], sort_keys=True)
        if key not in self._contents:
            try:
                self._contents[key] = plans.content(config)
            except ConfigError as error:  # wait for a Hub that hangs once, not for each run
                self._contents[key] = error
        content = self._contents[key]
        if isinstance(content, ConfigError):
            raise content
        return content

    def _exists(self, folder: Path) -> bool:
        """Whether a run's folder exists, by one listing of the study for all its runs."""
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
    """Processor cores that this process may use, by the machine, its affinity and its container's limit."""
    import joblib  # installed with scikit-learn

    return joblib.cpu_count()


def side_by_side(launcher: DictConfig) -> int:
    """Number of runs that a launcher carries out at once on this machine; 1 if the launcher does not define it.

    joblib: `n_jobs`; -1 means all cores, -2 all but one. submitit_local starts all its jobs at once, so it gets as many
    as the cores allow.
    """
    if (jobs := launcher.get("n_jobs")) is not None:
        return max(1, jobs if jobs > 0 else cores() + 1 + jobs)
    if launcher._target_.endswith(".LocalLauncher"):
        return max(1, cores() // (launcher.get("cpus_per_task") or 1))
    return 1


def threads(launcher: DictConfig) -> int | None:
    """Torch threads for a job of this launcher, so that simultaneous jobs share the cores; None for torch's default."""
    if (wanted := launcher.get("cpus_per_task")) is not None:
        return int(wanted)
    if (wanted := launcher.get("ray", {}).get("remote", {}).get("num_cpus")) is not None:
        return max(1, int(wanted))
    at_once = side_by_side(launcher)
    return max(1, cores() // at_once) if at_once > 1 else None
