"""Questions whose answer is a span: windows, the best span over them, scores, questions without an answer, bad rows."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch

from tests.composing import composed
from tests.conftest import folder_of
from tests.trainer.objectives import language, other_kinds
from trainer.errors import ConfigError
from trainer.loop.batches import Collator
from trainer.loop.network import Network
from trainer.objectives import extractive_qa
from trainer.runs import assemble

KIND = "extractive_qa"
LONG = "a dull plot with a slow hollow ending Rome and a pale hero with a bright cast in a warm film"


def question(context, *answers, asked="who"):
    """A row; of each answer the first place in the context is where it starts."""
    starts = [context.index(answer) for answer in answers]
    return {"context": context, "question": asked, "answers": {"text": list(answers), "start": starts}}


GOOD = question("Ann film Rome", "Ann")
FAMILIES = ["Bert", "Roberta", "GPT2", "DebertaV2", "XLNet"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {name: other_kinds.model(KIND, tmp_path_factory.mktemp(name), name) for name in FAMILIES}


@pytest.fixture
def checked(models, tmp_path):
    """The parts of a run on rows of one's own, before any weight is loaded."""

    def check(rows, *more, family="Bert"):
        path = language.write(tmp_path / "rows.jsonl", rows)
        files = [f"task.source.{name}_path={path}" for name in ("train", "validation")]
        return assemble.check(composed([*other_kinds.overrides(KIND, models[family], tmp_path), *files, *more]))

    return check


@pytest.fixture
def trained(models, tmp_path):
    """Carries out a run with a model of a family; its folder and its record."""

    def carried_out(family, *more):
        from trainer.runs.run import run
        from trainer.sweeps.plan import plan

        everything = [*other_kinds.overrides(KIND, models[family], tmp_path), other_kinds.table(KIND, tmp_path), *more]
        record = run(plan(composed(everything)), everything)
        return folder_of(record, tmp_path), record

    return carried_out


def pieces(parts, rows, context):
    """Of each window the text that it is of, and the text between the places that it is trained on."""
    found = []
    for row in (rows[place] for place in range(len(rows))):
        (begin, _), (first, last) = row["context"], row["labels"]
        own = context[row["begins"][0] : row["ends"][-1]]
        null = (first, last) == (row["null"], row["null"])
        found.append((own, None if null else context[row["begins"][first - begin] : row["ends"][last - begin]].strip()))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_cover_the_text_and_one_has_the_answer_that_is_learned(family, checked):
    """Through tokenizers of different kinds, among them one whose class token stands behind the text."""
    parts = checked([question(LONG, "Rome"), GOOD], "data.max_length=24", family=family)
    rows = parts.rows.train.view(np.flatnonzero(parts.rows.train.sources == 0))
    found = pieces(parts, rows, LONG)
    assert len(found) > 1 and max(rows.lengths) <= 24
    assert found[0][0].startswith("a dull plot") and found[-1][0].endswith("warm film")
    assert "Rome" in {answer for _, answer in found}
    for text, answer in found:
        assert (answer == "Rome") == ("Rome" in text)


def test_windows_share_as_many_tokens_as_stride_says(checked):
    parts = checked([question(LONG, "Rome"), GOOD], "data.max_length=24", "task.stride=5")
    rows = parts.rows.train.view(np.flatnonzero(parts.rows.train.sources == 0))
    places = [list(zip(rows[n]["begins"], rows[n]["ends"], strict=True)) for n in range(len(rows))]
    assert [len(set(one) & set(two)) for one, two in itertools.pairwise(places)] == [5] * (len(rows) - 1)
    assert places[0][-5:] == places[1][:5]


def test_the_first_place_that_the_row_names_is_learned_and_not_another(checked):
    """A text that has the answer twice, in words that are more than one token."""
    context = "film Annabel slow Annabel"
    row = {"context": context, "question": "who", "answers": {"text": ["Annabel"], "start": [18]}}
    parts = checked([row, GOOD])
    (first, last), (begin, _) = parts.rows.train[0]["labels"], parts.rows.train[0]["context"]
    begins, ends = parts.rows.train[0]["begins"], parts.rows.train[0]["ends"]
    assert last > first and context[begins[first - begin] : ends[last - begin]].strip() == "Annabel"
    assert begins[first - begin] >= 17


def test_the_loss_is_transformers_own_where_nothing_is_padded(checked):
    parts = checked([GOOD, question("dull plot Rome", "Rome")])
    collate = Collator(parts.objective.pad(parts.source), parts.objective.weigh)
    network = Network(assemble.load(parts).eval(), parts.source, torch.device("cpu"), False)
    for place in (0, 1):
        batch = collate([parts.rows.train[place]])
        found = parts.objective.loss(network, batch)
        inputs = {name: batch.inputs[name] for name in parts.tokenizer.model_input_names}
        start, end = batch.labels.T
        with torch.no_grad():
            own = float(network.model(**inputs, start_positions=start, end_positions=end).loss)
        assert float(found.mean.detach()) == pytest.approx(own, abs=1e-6)
    one, two = parts.rows.train[0], parts.rows.train[1]
    assert collate([one | {"weight": 0}, two | {"weight": 0}]).weight == 0


class Scores:
    """A model whose scores are given: (rows, length, start and end)."""

    def __init__(self, scores):
        self.scores = scores

    def __call__(self, **inputs):
        return type("Found", (), {"start_logits": self.scores[..., 0], "end_logits": self.scores[..., 1]})


def answered(parts, give, split="validation"):
    """What is predicted where `give(row, scores)` writes into a window's scores (length, start and end), all 0."""
    rows = parts.rows.report[split]
    collate = Collator(parts.objective.pad(parts.source), parts.objective.weigh)
    found = []
    for row in (rows[place] for place in range(len(rows))):
        scores = torch.zeros(1, len(row["input_ids"]), 2)
        give(row, scores[0])
        found += parts.objective.predict(Scores(scores), collate([row]))
    return parts.objective.evaluated(rows, found)[0]


def token(row, character):
    """The place of the token that a character of the context is in, None where the window lacks it."""
    for place, (begin, end) in enumerate(zip(row["begins"], row["ends"], strict=True)):
        if begin <= character < end:
            return row["context"][0] + place
    return None


@pytest.mark.parametrize(
    ("starts", "ends", "expected"),
    [
        ({"film": 8}, {"Rome": 8}, "film Rome"),
        ({"Ann": 9, "film": 8}, {"plot": 9, "Rome": 8}, "film Rome"),  # Ann … plot has too many tokens
        ({"Rome": 10, "film": 7}, {"film": 10}, "film"),  # an end before its start is none
    ],
    ids=["best", "short", "in order"],
)
def test_the_best_span_is_of_the_text_in_order_and_short_enough(starts, ends, expected, checked):
    """Scores on the question are higher than any."""
    context = "Ann dull slow pale film Rome warm cast hero plot"
    parts = checked([question(context, "film Rome"), GOOD], "task.max_answer_tokens=8", "data.max_length=40")

    def give(row, scores):
        if row["ends"][-1] == len(context):
            scores[1 : row["context"][0]] = 50
            for side, best, at in ((0, starts, 0), (1, ends, -1)):
                for word, score in best.items():
                    scores[token(row, context.index(word) + at % len(word)), side] = score

    found = answered(parts, give)
    assert dict(zip(found.reference, found.prediction, strict=True))["film Rome"] == expected


def test_the_best_span_over_all_windows_is_the_answer(checked):
    parts = checked([question(LONG, "Rome"), GOOD], "data.max_length=24")
    where = LONG.index("Rome")
    seen = []

    def give(row, scores):
        first = token(row, where)
        if first is not None:
            seen.append(first)
            last = token(row, where + 3)
            scores[first, 0] = scores[last, 1] = 5
        elif row["begins"][0] == 0:
            scores[row["context"][0]] = 4  # the first word, in another window

    found = answered(parts, give)
    assert seen and found.prediction[list(found.reference).index("Rome")] == "Rome"


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.0, ["", "Ann"]), (2.5, ["Rome", "Ann"]), (-1.5, ["", ""])], ids=str
)
def test_no_answer_is_given_where_its_score_leads_by_more_than_the_threshold(threshold, expected, checked):
    """Its score is that of the window in which it is lowest: the first row leads by 2, the second lacks 1."""
    parts = checked([question("film Rome"), question("Ann plot", "Ann")], f"task.null_threshold={threshold}")

    def give(row, scores):
        rome = row["ends"][-1] == len("film Rome")
        first = token(row, 5 if rome else 0)
        last = token(row, 8 if rome else 2)
        scores[first, 0] = scores[last, 1] = 3
        scores[row["null"]] = torch.tensor([4.0, 4.0] if rome else [2.5, 2.5])

    found = answered(parts, give)
    assert dict(zip(found.reference, found.prediction, strict=True)) == dict(zip(["", "Ann"], expected, strict=True))


def test_where_all_questions_have_an_answer_one_is_always_given(checked):
    parts = checked([GOOD, question("dull Rome", "Rome")])
    found = answered(parts, lambda row, scores: scores[row["null"]].fill_(100))
    assert all(found.prediction)
    with pytest.raises(ConfigError, match=r"task.null_threshold: 1.0 in a task whose questions all have an answer"):
        checked([GOOD], "task.null_threshold=1.0")


def test_the_score_of_no_answer_is_the_lowest_of_the_windows(checked):
    """One window is sure that it has none; another, in which the answer is, is not."""
    parts = checked([question(LONG, "Rome"), question("dull plot")], "data.max_length=24")
    where = LONG.index("Rome")

    def give(row, scores):
        if (first := token(row, where)) is not None and len(LONG) - row["ends"][-1] < len(LONG):
            scores[first, 0] = scores[token(row, where + 3), 1] = 2
        else:
            scores[row["null"]] = 50

    found = dict(zip((found := answered(parts, give)).reference, found.prediction, strict=True))
    assert found == {"Rome": "Rome", "": ""}


# Answers, prediction, EM and F1, by hand after the rules of SQuAD's script (evaluate-v2.0.py).
SCORES = [
    (["the Norman dynasty"], "Norman Dynasty.", 1, 1),
    (["in 1066"], "1066", 0, 2 / 3),
    (["Rome", "the city of Rome"], "city of Rome", 1, 1),
    (["Oslo", "Rome"], "old Rome", 0, 2 / 3),
    (["a b c d"], "b c x", 0, 2 * 2 / 6),  # "a" is an article
    (["film film"], "film", 0, 2 / 3),
    ([], "", 1, 1),
    ([], "Rome", 0, 0),
    (["Rome"], "", 0, 0),
    (["The"], "", 1, 1),  # an answer without words counts as none
    (["The", "Rome"], "Rome", 1, 1),
    (["U.S."], "us", 1, 1),
]


@pytest.mark.parametrize(("answers", "prediction", "exact", "f1"), SCORES, ids=str)
def test_scores_are_those_of_squads_script(answers, prediction, exact, f1):
    assert extractive_qa._statistics(answers, prediction) == pytest.approx({"exact_match": exact, "f1": f1})


def test_metrics_of_a_run_are_means_over_questions_whatever_their_windows(trained):
    folder, record = trained("Bert", "train.max_steps=24", "data.max_length=16")
    kept = pd.read_parquet(folder / "predictions.parquet")
    assert set(kept.unit) == {"question"} and kept["stats.windows"].max() > 1
    pairs = zip(kept.reference, kept.prediction, strict=True)
    scores = [extractive_qa._statistics([r] if r else [], p) for r, p in pairs]
    for name in ("exact_match", "f1"):
        assert record.metrics[name] == pytest.approx(np.mean([one[name] for one in scores]))


def test_above_a_model_without_types_of_tokens_pefts_class_for_questions_is_named(trained, capsys):
    from weights import cli

    folder, _ = trained("Roberta")
    assert cli.main(["export", str(folder), "--to", "peft"]) == 0, capsys.readouterr()
    assert json.loads((folder / "export/peft/adapter_config.json").read_text())["task_type"] == "QUESTION_ANS"


def test_an_answer_that_no_window_holds_is_counted_as_cut(checked):
    parts = checked([question(LONG, LONG[2:60]), GOOD], "data.max_length=16", "task.stride=0")
    assert parts.rows.truncated == 2  # in train and in validation


def test_letters_of_a_special_token_are_a_part_of_the_text(checked):
    context = "Ann [SEP] Rome"
    parts = checked([question(context, "Rome"), GOOD])
    assert parts.rows.train[0]["input_ids"].count(parts.tokenizer.sep_token_id) == 2
    assert pieces(parts, parts.rows.train, context)[0][1] == "Rome"


WRONG = {**GOOD, "answers": {"text": ["Bob"], "start": [0]}}


@pytest.mark.parametrize(
    ("rows", "more", "line"),
    [
        ([GOOD, WRONG], [], "task: row 2 of train: its answer 'Bob' is not in its context at 0, where 'Ann' is"),
        ([{**GOOD, "answers": {"text": ["Ann"], "start": [1]}}], [], "its answer 'Ann' is not in its context at 1"),
        ([{**GOOD, "answers": {"text": ["Ann"], "start": [-3]}}], [], "its answer 'Ann' is not in its context at -3"),
        ([{**GOOD, "answers": {"text": ["Ann"], "start": [99]}}], [], "its answer 'Ann' is not in its context at 99"),
        ([{**GOOD, "answers": {"text": ["ann"], "start": [0]}}], [], "'ann' is not in its context at 0, where 'Ann'"),
        ([{**GOOD, "answers": {"text": [""], "start": [0]}}], [], "row 1 of train: one of its answers is empty"),
        ([{**GOOD, "answers": {"text": ["Ann"], "start": []}}], [], "column 'answers': row 1 is "),
        ([{**GOOD, "answers": {"text": ["Ann"], "start": ["0"]}}], [], "column 'answers': row 1 is "),
        ([{**GOOD, "answers": {"text": ["Ann"], "start": [10**30]}}], [], "a value's type is not that of its column"),
        ([question("film"), GOOD], ["data.limit=1"], "data.limit: 1 leaves training questions without any answer"),
        ([GOOD], ["task.loss_on=all"], "task.loss_on: 'all' with task.kind extractive_qa; allowed: null"),
        ([{**GOOD, "answers": ["Ann"]}], [], "column 'answers': row 1 is "),
        ([{**GOOD, "answers": None}], [], "column 'answers': row 1 is "),
        ([{**GOOD, "question": " "}], [], "column 'question': row 1 is empty; allowed: a text in every row"),
        ([{**GOOD, "context": ""}], [], "column 'context': row 1 is empty; allowed: a text in every row"),
        ([GOOD], ["task.stride=-1"], "task.stride: -1, allowed: a whole number ≥ 0"),
        ([GOOD], ["task.max_answer_tokens=0"], "task.max_answer_tokens: 0, allowed: a whole number ≥ 1"),
        ([GOOD], ["task.stride=many"], "task.stride: 'many', allowed: a whole number"),
        (
            [GOOD],
            ["task.metrics=[accuracy]"],
            "task.metrics: 'accuracy' in a task of questions; allowed: f1, exact_match",
        ),
        ([{**GOOD, "question": LONG}], ["data.max_length=16"], "data.max_length: 16, and the question of row 1 of tr"),
    ],
)
def test_what_is_wrong_is_one_line_before_a_weight_is_loaded(rows, more, line, checked):
    with pytest.raises(ConfigError) as caught:
        checked(rows, *more)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_context_that_the_tokenizer_drops_is_one_line(checked, monkeypatch):
    """A normaliser may drop letters; a text of such letters alone has no token."""
    from trainer.objectives import placed

    windows = placed.windows

    def without(tokenizer, questions, contexts, **options):
        return windows(tokenizer, questions, [text.replace("Oslo", "") for text in contexts], **options)

    monkeypatch.setattr(placed, "windows", without)
    with pytest.raises(ConfigError, match=r"task: the context of row 2 of train \('Oslo'\) has no token for"):
        checked([GOOD, question("Oslo")])


def test_rows_of_another_kind_are_one_line(models, tmp_path):
    path = language.write(tmp_path / "rows.jsonl", [{"tokens": ["a"], "tags": ["O"]}] * 4)
    told = [*other_kinds.overrides("token_classification", models["Bert"], tmp_path), f"task.kind={KIND}"]
    files = [f"task.source.{name}_path={path}" for name in ("train", "validation")]
    with pytest.raises(ConfigError, match="task: columns tokens, tags for a task of questions; allowed: context"):
        assemble.check(composed([*told, "task.metrics=[f1]", *files]))
