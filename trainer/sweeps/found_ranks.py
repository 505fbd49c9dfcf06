"""The run whose ranks another run is given: `variant.ranks_from`. Imports no torch.

A config names it in one of two ways:

    variant.ranks_from: runs/demo/0123456789ab    the folder of a finished run
    variant.ranks_from: {variant: …, seed: 1}     the run that has these settings, and all others of this run

The second needs no folder, so the run may be of the same sweep, which carries it out first. `variant`, `task` and
`model` replace those of this run as a whole; fields of other groups are replaced one by one; `study` says where the run
lies. In the file of a variant Hydra puts the settings in place (`conf/variant/controls/`):

    defaults: [METHOD@ranks_from.variant]

What names this run is the other's name, never its folder. A run's own `config.yaml` has the ranks themselves.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from omegaconf import DictConfig, OmegaConf, open_dict

from trainer import identity as identities
from trainer import origin
from trainer.errors import ConfigError
from trainer.identity import Identity
from trainer.plain import mapping
from trainer.record import Record

if TYPE_CHECKING:
    from trainer.sweeps.plan import Planned

log = logging.getLogger(__name__)

FIELD = "ranks_from"
NAME = f"variant.{FIELD}"
WHOLE = ("variant", "task", "model")  # groups that settings replace as a whole


@dataclass(frozen=True)
class Found:
    """The other run. title: for messages. record: of the run if it is done, else None. ranks: if they are known."""

    run_id: str
    seed: int
    setting: str
    title: str
    folder: Path | None
    record: Record | None
    ranks: dict[str, int] | None = None

    def leaves(self) -> dict[str, Any]:
        """What names the run that is given the ranks.

        run_id: of the other run. seed: of the other run. setting: hash of its other settings, by which runs that
        differ only in their seeds are alike.
        """
        return {"run_id": self.run_id, "seed": self.seed, "setting": self.setting}

    def by_layer(self) -> dict[str, int]:
        """The ranks at the end of the other run, by layer. Raises `ConfigError`."""
        if self.ranks is not None:
            return self.ranks
        if self.record is None or self.folder is None:
            raise ConfigError(f"{NAME}: {self.title} is not done, allowed: a finished run; carry it out first")
        return _last(self.folder, self.record)


def asked(config: DictConfig) -> bool:
    """Whether the run is given another's ranks."""
    return isinstance(config.variant, DictConfig) and config.variant.get(FIELD) is not None


def find(config: DictConfig, plan: Callable[..., Planned], files: Mapping[str, Any] | None = None) -> Found | None:
    """The run whose ranks the run of `config` is given; None if it has its own.

    plan: `trainer.sweeps.plan.plan`. files: fingerprints of the files that `config` names, if the caller has them.
    Raises `ConfigError` if there is no such run; it need not be done.
    """
    if not asked(config):
        return None
    given = config.variant[FIELD]
    if isinstance(given, str):
        found = origin.find(given, f"{NAME}: ")
        row = found.record
        leaves = row.identity or row.config
        name = row.identity_hash() if row.identity else row.run_id
        return Found(name, row.seed, _setting(leaves), f"the run {name}", found.folder, row)
    if not isinstance(given, DictConfig):
        raise ConfigError(f"{NAME}: {given!r}, allowed: the folder of a finished run, or {{variant: …}}")
    if "ranks" in given:  # this run's own config.yaml
        ranks = {str(name): int(rank) for name, rank in mapping(given)["ranks"].items()}
        return Found(given.run_id, given.seed, given.setting, f"the run {given.run_id}", None, None, ranks)
    other = plan(_settings(config, given), None if {"task", "model", "glue"} & set(given) else files)
    label = f"{other.config.variant.name} on {other.config.task.name}, seed {other.config.seed}"
    title = f"{label} ({other.identity.run_id} in {other.folder.parent})"
    own = _setting(other.identity.leaves)
    record = other.record if other.done else None
    return Found(other.identity.run_id, other.config.seed, own, title, other.folder, record)


def _settings(config: DictConfig, given: DictConfig) -> DictConfig:
    """The config of the other run: `config` with the settings `given` in place of its own."""
    if not isinstance(given.get("variant"), DictConfig):
        keys = ", ".join(map(str, given)) or "{}"
        raise ConfigError(f"{NAME}: settings of {keys}, allowed: those of another variant, {{variant: …}}")
    other = copy.deepcopy(config)
    with open_dict(other):
        other.init_from, other.redo = None, False
        for name, value in ((str(name), value) for name, value in given.items()):
            if name not in config:
                raise ConfigError(f"{NAME}.{name}: no such field, allowed: {', '.join(map(str, config))}")
            if name not in WHOLE and isinstance(value, DictConfig):
                value = OmegaConf.merge(other[name], value)
            other[name] = value
    return other


def _setting(leaves: Mapping[str, Any]) -> str:
    return identities.run_id({name: value for name, value in leaves.items() if name != "seed"})


def _last(folder: Path, record: Record) -> dict[str, int]:
    """The last line of a finished run's ranks.jsonl, which must be what the record counted."""
    path = folder / "ranks.jsonl"
    if record.rank.layers is None:
        raise ConfigError(f"{NAME}: {folder}: {record.variant} has no ranks, allowed: a run of a method with ranks")
    try:
        ranks = orjson.loads(path.read_bytes().splitlines()[-1])["ranks"]
        counts = (len(ranks), sum(ranks.values()))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(f"{NAME}: {path}: no ranks of a finished run: {error}") from None
    if counts != (record.rank.layers, record.rank.end):
        expected = f"{record.rank.end} in {record.rank.layers} layers"
        raise ConfigError(f"{NAME}: {path}: {counts[1]} ranks in {counts[0]} layers, the record has {expected}")
    return {str(name): int(rank) for name, rank in ranks.items()}


def filled(config: DictConfig, found: Found | None) -> DictConfig:
    """The variant's node with the ranks by layer in place of the run that found them. Raises `ConfigError`."""
    return config.variant if found is None else _with(config, found.by_layer()).variant


def settled(config: DictConfig, found: Found | None) -> DictConfig:
    """The config with the ranks in it, so that the run can be opened when the other is no more."""
    return config if found is None else _with(config, {**found.leaves(), "ranks": found.by_layer()})


def without(config: DictConfig) -> DictConfig:
    """The config of a run with ranks of its own, to check everything else before the other run is done."""
    return _with(config, None, permute_seed=None)


def _with(config: DictConfig, value: Mapping[str, Any] | None, **changes: Any) -> DictConfig:
    """The config, its references resolved, with another value of `variant.ranks_from`."""
    parts = mapping(config)
    parts["variant"] |= {FIELD: value} | {name: to for name, to in changes.items() if name in parts["variant"]}
    return OmegaConf.create(parts)


def warn_if_repeated(found: Found, record: Record, identity: Identity) -> None:
    """Warns if the other run was carried out again after the run of `record`, so that its ranks may be others."""
    other = found.record
    if other is not None and other.finished and record.started and other.finished > record.started:
        log.warning(
            "%s: %s was carried out again since; redo=true repeats the run %s", NAME, found.title, identity.run_id
        )
