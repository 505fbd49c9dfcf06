"""Generated texts against what they should be: numbers by example, whose sums the metrics are formulas of.

- exact_match: the same text, white space at the ends apart
- numeric_match: the last number of both is the same, as answers to word problems are scored
- token_f1: F1 of the words, as SQuAD has it (Rajpurkar et al. 2016: case, punctuation and articles apart)
- rouge_1, rouge_2, rouge_l: F of rouge-score, with its stemmer
- bleu, chrf: sacreBLEU's, of the corpus, 0 to 100
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

METRICS = ("exact_match", "numeric_match", "token_f1", "rouge_1", "rouge_2", "rouge_l", "bleu", "chrf")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def to_write(asked: Sequence[str], referenced: bool) -> tuple[str, ...]:
    """The metrics of a task, with one of written texts among them. referenced: whether it is known what is right."""
    if not referenced:
        return ("token_f1",)  # no other: some need references of their own, as numeric_match does
    return tuple(asked) if not set(asked).isdisjoint(METRICS) else (*asked, "token_f1")


def statistics(names: Sequence[str], reference: str, prediction: str) -> dict[str, float]:
    """What the metrics `names` sum up, of one example."""
    found: dict[str, float] = {}
    if "exact_match" in names:
        found["exact_match"] = float(reference.strip() == prediction.strip())
    if "numeric_match" in names:
        right = last_number(reference)
        found["numeric_match"] = float(right is not None and right == last_number(prediction))
    if "token_f1" in names:
        found["token_f1"] = token_f1(reference, prediction)
    if rouge := [name for name in _ROUGE if name in names]:
        scores = _rouge().score(reference, prediction)
        found |= {name: float(scores[_ROUGE[name]].fmeasure) for name in rouge}
    for name, metric in (("bleu", _bleu), ("chrf", _chrf)):
        if name in names:
            (counts,) = metric()._extract_corpus_statistics([prediction], [[reference]])
            found |= {f"{name}_{place}": float(count) for place, count in enumerate(counts)}
    return found


def last_number(text: str) -> Fraction | None:
    """The last number in a text; commas may part its thousands."""
    found = _NUMBER.findall(text)
    return Fraction(found[-1].replace(",", "")) if found else None


def token_f1(reference: str, prediction: str) -> float:
    """F1 of the words of two texts, 0 to 1; of two without words 1."""
    right, guessed = words(reference), words(prediction)
    if not right or not guessed:
        return float(right == guessed)
    common = sum((Counter(right) & Counter(guessed)).values())
    return 2 * common / (len(right) + len(guessed))


def words(text: str) -> list[str]:
    """Those that SQuAD's script compares: case, punctuation and articles apart."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


@functools.cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    return RougeScorer(list(_ROUGE.values()), tokenizer=DefaultTokenizer(use_stemmer=True))


@functools.cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU()


@functools.cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
