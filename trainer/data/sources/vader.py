"""Three tasks from VADER's ratings: 20 people rated how positive or negative a text is.

Source: C. J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment
Analysis of Social Media Text", ICWSM 2014. The texts and ratings are from the source
distribution of `vaderSentiment` (MIT licence): 10,605 snippets of film reviews, after Pang
and Lee 2004; 3,708 of product reviews on Amazon, after Hu and Liu 2004; 5,190 of editorials
in the New York Times; 4,200 tweets. Each has the mean of some 20 ratings from −4 (most
negative) to 4 (most positive).

Texts are unchanged: tweets contain HTML entities such as `&amp;`, `@anonymous` and
`http://url_removed`. Duplicates (equal after folding case and white space) are merged into
one example with the mean of their ratings, so they can neither be in two splits nor
disagree. A hash of the text alone assigns a fifth of the texts to the validation split, so
a text is in the same split in every task.

| task       | train  | validation | classes in train            | in validation               |
|------------|--------|------------|-----------------------------|-----------------------------|
| movie      | 8,413  | 2,153      | negative 4,247 / 4,166      | negative 1,078 / 1,075      |
| opinion    | 10,286 | 2,667      | –                           | –                           |
| movie_pair | 4,221  | 1,079      | first 2,111 / 2,110         | first 540 / 539             |
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.data.sources.checks import Examples, task_data
from trainer.data.sources.package import Distribution
from trainer.data.sources.split import digest, held_out, normalised
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError

_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
_FILES = {
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
_VALIDATION = 0.2
_ALTERNATIVES = "task=file with your own texts, a GLUE task (from the Hub or with glue.path=<folder>)"


@dataclass(frozen=True)
class Snippet:
    id: str
    text: str
    rating: float  # −4 … 4


@dataclass(frozen=True)
class _Vader:
    """distribution: vaderSentiment==version; sha256: of its source distribution."""

    distribution: str
    sha256: str

    def __post_init__(self) -> None:
        Distribution(self.distribution, self.sha256, source=True)

    def identity(self) -> dict[str, str]:
        """Nothing: the config pins the distribution's content."""
        return {}

    def _snippets(self, *parts: str) -> tuple[list[Snippet], list[Snippet]]:
        """Returns the snippets of these parts without duplicates, for training and for validation."""
        source = Distribution(self.distribution, self.sha256, source=True)
        folder = self.distribution.replace("==", "-")
        members = {file: (f"{folder}/{_ARCHIVE}", f"hutto_ICWSM_2014/{file}") for file in _FILES.values()}
        rows: list[Snippet] = []
        for part in parts:
            rows += parse(source.read(members, _FILES[part], _ALTERNATIVES), part)
        unique = merged(rows)
        train = [snippet for snippet in unique if not held_out(snippet.text, _VALIDATION)]
        return train, [snippet for snippet in unique if held_out(snippet.text, _VALIDATION)]


class Movie(_Vader):
    """Classifies snippets of film reviews as positive or negative, by the sign of their rating; 0 is omitted."""

    def load(self) -> TaskData:
        splits = {}
        for name, snippets in zip(("train", "validation"), self._snippets("movie"), strict=True):
            rated = [snippet for snippet in snippets if snippet.rating != 0]
            splits[name] = Examples(
                id=[snippet.id for snippet in rated],
                text=[snippet.text for snippet in rated],
                label=[int(snippet.rating > 0) for snippet in rated],
            )
        return task_data(splits, ("negative", "positive"), "task.source")


class Opinion(_Vader):
    """Predicts the rating, −4 … 4, of a snippet from Amazon, the New York Times or Twitter."""

    def load(self) -> TaskData:
        splits = {}
        for name, snippets in zip(("train", "validation"), self._snippets("amazon", "nyt", "tweets"), strict=True):
            splits[name] = Examples(
                id=[snippet.id for snippet in snippets],
                text=[snippet.text for snippet in snippets],
                label=[snippet.rating for snippet in snippets],
            )
        return task_data(splits, None, "task.source")


@dataclass(frozen=True)
class MoviePair(_Vader):
    """Classifies which of two snippets of film reviews has the higher rating, the first or the second.

    `margin` is the smallest difference of their ratings, on the scale of −4 … 4.
    """

    margin: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.margin <= 7:
            raise ConfigError(f"task.source.margin: {self.margin}; allowed: above 0, at most 7")

    def load(self) -> TaskData:
        splits = {}
        for name, snippets in zip(("train", "validation"), self._snippets("movie"), strict=True):
            examples = Examples(text_pair=[])
            assert examples.text_pair is not None
            for number, (higher, lower) in enumerate(pairs(snippets, self.margin)):
                label = number % 2  # alternates, so that the classes are balanced
                first, second = (higher, lower) if label == 0 else (lower, higher)
                examples.id.append(f"{first.id}+{second.id}")
                examples.text.append(first.text)
                examples.text_pair.append(second.text)
                examples.label.append(label)
            splits[name] = examples
        return task_data(splits, ("first", "second"), "task.source")


def parse(content: str, part: str) -> list[Snippet]:
    """Parses one file: each row has id, rating and text, separated by tabs and ended by CR LF."""
    rows = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            key, rating, text = line.rstrip("\r").split("\t")
            rows.append(Snippet(f"{part}-{key}", text, float(rating)))
        except ValueError:
            raise ConfigError(f"task.source: {_FILES[part]}, line {number} does not have id, rating and text") from None
    return rows


def merged(rows: list[Snippet]) -> list[Snippet]:
    """Merges duplicates of a text into the first one, with the mean of their ratings."""
    groups: dict[str, list[Snippet]] = {}
    for row in rows:
        groups.setdefault(normalised(row.text), []).append(row)
    return [
        Snippet(group[0].id, group[0].text, sum(row.rating for row in group) / len(group)) for group in groups.values()
    ]


def pairs(snippets: list[Snippet], margin: float) -> list[tuple[Snippet, Snippet]]:
    """Forms disjoint pairs (higher, lower) whose ratings differ by `margin` or more.

    In the order of a hash of their texts, each snippet is paired with the next free one that differs enough. Each
    snippet is used at most once, so no pair repeats and the examples are independent, as tests over examples assume.
    """
    waiting = sorted(snippets, key=lambda snippet: digest(snippet.text))
    result = []
    while waiting:
        snippet = waiting.pop(0)
        for index, other in enumerate(waiting):
            if abs(snippet.rating - other.rating) >= margin:
                result.append((snippet, other) if snippet.rating > other.rating else (other, snippet))
                del waiting[index]
                break
    return result
