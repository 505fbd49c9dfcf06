"""From plain rows to `TaskData`, for the kinds of task that are no classification of texts (for those: `checks`).

A column has the same type in every task; its name tells it:

| columns                     | kind                  |                                                               |
|-----------------------------|-----------------------|---------------------------------------------------------------|
| text                        | causal_lm             | a text, all of it to be predicted                             |
| prompt, response            | causal_lm             | what is given, and what is to follow it                       |
| prompt, choices, label      | causal_lm             | endings, and the number of the right one, from 0              |
| messages                    | causal_lm             | a conversation: a list of role and content                    |
| source, target              | seq2seq               | a text, and what is to be made of it                          |
| tokens, tags                | token_classification  | words, and for each the number of its class                   |
| context, question, answers  | extractive_qa         | answers: texts, and where in the context (in characters) they |
|                             |                       | start; none where the context has no answer                   |
| image, label                | image_classification  | an encoded file (PNG, JPEG, …), and the number of its class;  |
|                             |                       | beside them perhaps `file`, by which errors call it           |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer.data.sources.split import digest, held_out
from trainer.data.sources.types import Split, TaskData
from trainer.errors import ConfigError

Row = Mapping[str, Any]
TEXTS = {"text", "prompt", "response", "source", "target", "context", "question"}
COLUMNS = (*sorted(TEXTS), "choices", "label", "messages", "tokens", "tags", "answers", "image")


def split_by_text(rows: Iterable[tuple[str, Row]], share: float) -> dict[str, list[Row]]:
    """Train and validation by a hash of a text of each row: rows with the same one are on the same side.

    rows: that text and the row. share: of the validation split, 0 to 1.
    """
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for text, row in rows:
        splits["validation" if held_out(text, share) else "train"].append(row)
    return splits


def row_id(*texts: str) -> str:
    """An id from the texts that make a row what it is."""
    return digest(*texts)[:16]


def rows_data(splits: Mapping[str, Sequence[Row]], where: str, labels: Sequence[str] | None = None) -> TaskData:
    """The `TaskData` of rows with an `id` and the columns of one kind, train first.

    labels: names of classes by number. Raises `ConfigError`, beginning with `where`, for an empty split, for an id that
    is there twice and for a value of another type than its column has.
    """
    for name, rows in splits.items():
        if not rows:
            raise ConfigError(f"{where}: split {name} is empty; allowed: one or more examples in every split")
    counts = Counter(row["id"] for rows in splits.values() for row in rows)
    if repeated := [key for key, count in counts.items() if count > 1]:
        raise ConfigError(f"{where}: the id {repeated[0]!r} is there {counts[repeated[0]]} times; allowed: once")
    found = {name: _split(rows, f"{where}: split {name}") for name, rows in splits.items()}
    return TaskData(found, None if labels is None else tuple(labels))


def _split(rows: Sequence[Row], where: str) -> Split:
    """The rows by column, if every value has its column's type."""
    import pyarrow as pa

    types = {
        "choices": pa.list_(pa.string()),
        "label": pa.int64(),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "tokens": pa.list_(pa.string()),
        "tags": pa.list_(pa.int64()),
        "answers": pa.struct({"text": pa.list_(pa.string()), "start": pa.list_(pa.int64())}),
        "image": pa.binary(),
    }
    names = list(rows[0])
    columns = {name: [row[name] for row in rows] for name in names}
    try:
        for name, values in columns.items():
            pa.array(values, types.get(name, pa.string()))
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{where}: {', '.join(names)}: a value is of another type than its column ({error})"
        ) from None
    return Split(columns)
