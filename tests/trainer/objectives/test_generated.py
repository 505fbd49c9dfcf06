"""Generated texts against what they should be: by hand, and as the libraries score a corpus."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu

from trainer.objectives import formula, generated
from trainer.objectives.metrics import METRICS, of_statistics

REFERENCES = ["the cat sat on the mat", "a dull film", "he paid 1,200 dollars", "12"]
PREDICTIONS = ["the cat sat on a mat", "dull", "It was 1200", "3 and 4 make 12.0"]


def scored(names: list[str]) -> dict[str, float]:
    each = [generated.statistics(names, *pair) for pair in zip(REFERENCES, PREDICTIONS, strict=True)]
    stats = {name: np.array([one[name] for one in each]) for name in each[0]}
    return {name: of_statistics(METRICS[name], stats, len(each)) for name in names}


@pytest.mark.parametrize(
    ("reference", "prediction", "right"),
    [
        ("12", "5 and 7 are 12.", 1),
        ("1,200 dollars", "1200", 1),
        ("2.50", "2.5", 1),
        ("-3", "3", 0),
        ("12", "12 of 13", 0),
        ("4", "four", 0),
        ("#### 72", "She sold 48+24 = 72 clips", 1),
    ],
)
def test_the_last_numbers_are_compared(reference, prediction, right):
    assert generated.statistics(["numeric_match"], reference, prediction) == {"numeric_match": right}


def test_words_in_common_case_punctuation_and_articles_apart():
    assert generated.statistics(["token_f1"], "The cat, sat!", "a cat")["token_f1"] == pytest.approx(2 * 1 / (2 + 1))
    assert generated.statistics(["token_f1"], "the", "a")["token_f1"] == 1
    assert generated.statistics(["token_f1"], "cat", "")["token_f1"] == 0


def test_a_text_is_exactly_right_but_for_white_space_around_it():
    assert scored(["exact_match"])["exact_match"] == 0
    assert generated.statistics(["exact_match"], " a film", "a film\n") == {"exact_match": 1}


def test_bleu_and_chrf_are_sacrebleus_of_the_corpus():
    found = scored(["bleu", "chrf"])
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(PREDICTIONS, [REFERENCES]).score)


def test_rouge_is_rouge_scores():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    each = [scorer.score(*pair) for pair in zip(REFERENCES, PREDICTIONS, strict=True)]
    for name, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        assert scored([name])[name] == pytest.approx(np.mean([one[theirs].fmeasure for one in each]))


def test_a_formula_of_sums():
    sums = {"tp": np.array([2.0, 0.0]), "both": np.array([5.0, 0.0]), "nll": 2.0, "n": 4}
    assert formula.value("2 * tp / both", sums).tolist() == [0.8, 0.0]  # a quotient by 0 is 0
    assert formula.value("exp(-nll / n) + sqrt(max(n, 1)) ** 2", sums) == pytest.approx(np.exp(-0.5) + 4)
    assert formula.names("exp(nll / n) * n") == ("nll", "n")


@pytest.mark.parametrize("text", ["a.b", "open('x')", "a if b else c", "a, b", "'a'", "a < b", "", "f(a=1)", "a[0]"])
def test_what_is_no_formula_is_never_computed(text):
    with pytest.raises(ValueError, match="no formula"):
        formula.names(text)


def test_a_sum_that_lacks_is_named():
    with pytest.raises(ValueError, match="needs a sum of tokens"):
        formula.value("nll / tokens", {"nll": 1.0})
