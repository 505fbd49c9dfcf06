"""Makes `TaskData` of plain rows, for every kind of task except text classification (see `checks`).

A column's name determines its type, the same in every task:

| columns                     | kind                  |                                                               |
|-----------------------------|-----------------------|---------------------------------------------------------------|
| text                        | causal_lm             | a text, all of which is predicted                             |
| prompt, response            | causal_lm             | a prompt, and the response to predict                         |
| prompt, choices, label      | causal_lm             | answers, and the index of the right one, from 0               |
| messages                    | causal_lm             | a conversation: a list of role and content                    |
| source, target              | seq2seq               | a text, and the text to generate from it                      |
| tokens, tags                | token_classification  | words, and the class id of each                               |
| context, question, answers  | extractive_qa         | answers: texts, and the index of the character of the context |
|                             |                       | where each starts; none if the context has no answer          |
| image, label                | image_classification  | an encoded file (PNG, JPEG, …), and its class id; with `file`,|
|                             |                       | errors name it                                                |
| audio, label                | audio_classification  | a WAV file, and its class id; `file` as for images            |
| audio, text                 | ctc                   | a WAV file, and what is said in it; `file` as for images      |
| user, item, rating          | rating                | names, and a number                                           |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer.data.sources.split import digest, held_out, refuse_empty
from trainer.data.sources.types import Split, TaskData
from trainer.errors import ConfigError

Row = Mapping[str, Any]
TEXTS = {"text", "prompt", "response", "source", "target", "context", "question"}
COLUMNS = (
    *sorted(TEXTS),
    "choices",
    "label",
    "messages",
    "tokens",
    "tags",
    "answers",
    "image",
    "audio",
    "user",
    "item",
    "rating",
)


def split_by_text(rows: Iterable[tuple[str, Row]], share: float) -> dict[str, list[Row]]:
    """Splits rows into train and validation by a hash of a text of each; rows with the same text stay together.

    rows: pairs of this text and the row. share: the validation split's fraction of the texts, 0 to 1.
    """
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for text, row in rows:
        splits["validation" if held_out(text, share) else "train"].append(row)
    return splits


def hold_out(rows: Iterable[tuple[str, Row]], share: float) -> dict[str, list[Row]]:
    """Splits rows of the user's as `split_by_text` does. Raises `ConfigError` if a split has none."""
    rows = list(rows)
    splits = split_by_text(rows, share)
    refuse_empty(splits, (text for text, _ in rows), share)
    return splits


def row_id(*texts: str) -> str:
    """Returns an id derived from the texts that identify a row."""
    return digest(*texts)[:16]


def rows_data(splits: Mapping[str, Sequence[Row]], where: str, labels: Sequence[str] | None = None) -> TaskData:
    """Makes the `TaskData` of rows with an `id` and the columns of one kind, train first.

    labels: class names by class id. Raises `ConfigError`, beginning with `where`, for an empty split, for a repeated
    id, and for a value whose type is not its column's.
    """
    for name, rows in splits.items():
        if not rows:
            raise ConfigError(f"{where}: split {name} is empty; allowed: one or more examples in every split")
    counts = Counter(row["id"] for rows in splits.values() for row in rows)
    if repeated := [key for key, count in counts.items() if count > 1]:
        raise ConfigError(f"{where}: the id {repeated[0]!r} occurs {counts[repeated[0]]} times; allowed: once")
    checked = {name: _split(rows, f"{where}: split {name}") for name, rows in splits.items()}
    return TaskData(checked, None if labels is None else tuple(labels))


def _split(rows: Sequence[Row], where: str) -> Split:
    """Returns the rows by column. Raises `ConfigError` for a value whose type is not its column's."""
    import pyarrow as pa

    types = {
        "choices": pa.list_(pa.string()),
        "label": pa.int64(),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "tokens": pa.list_(pa.string()),
        "tags": pa.list_(pa.int64()),
        "answers": pa.struct({"text": pa.list_(pa.string()), "start": pa.list_(pa.int64())}),
        "image": pa.binary(),
        "audio": pa.binary(),
        "rating": pa.float64(),
    }
    names = list(rows[0])
    columns = {name: [row[name] for row in rows] for name in names}
    try:
        for name, values in columns.items():
            pa.array(values, types.get(name, pa.string()))
    except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{where}: {', '.join(names)}: a value's type is not that of its column ({error})") from None
    return Split(columns)
