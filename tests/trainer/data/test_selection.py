"""The split that a checkpoint is chosen on, where it is drawn from train: no text is on both sides."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import write_csv
from trainer.data import rows as data
from trainer.data.sources.split import groups, normalised
from trainer.errors import ConfigError
from trainer.objectives import kinds


def test_rows_with_a_text_in_common_are_one_group():
    assert groups([["a", "b", "A ", "c"]]).tolist() == [0, 1, 0, 2]
    # Over pairs: 0 and 2 share a first text, 2 and 3 a text in different places; empty ones connect nothing.
    first, second = ["p", "q", "p", "y", ""], ["x", "", "y", "z", ""]
    found = groups([first, second])
    assert found[0] == found[2] == found[3]
    assert len({found[0], found[1], found[4]}) == 3


def held_out(order, size, group):
    return data._held_out(np.asarray(order), size, np.asarray(group))


def test_without_twins_the_first_rows_are_held_out():
    order = np.random.default_rng(0).permutation(50)
    assert held_out(order, 5, np.arange(50)).tolist() == [True] * 5 + [False] * 45


def test_a_group_is_on_one_side_and_one_without_room_in_train():
    # Rows 0 and 3 are twins, and so are 1, 2 and 4: in the order 1, 0, 5, … two places have no room for three.
    group = [0, 1, 1, 0, 1, 2, 3]
    found = held_out([1, 0, 5, 2, 3, 4, 6], 2, group)
    assert found.tolist() == [False, True, False, False, True, False, False]


def test_where_no_group_has_room_the_line_says_from_which_share_on():
    with pytest.raises(ConfigError, match=r"data.select_share: 1 of 4 training rows, allowed: at least 2 rows"):
        held_out([0, 1, 2, 3], 1, [0, 0, 1, 1])


def test_a_group_that_can_not_be_held_out_is_said(caplog):
    assert held_out([0, 1, 2, 3, 4], 1, [0, 0, 0, 0, 1]).tolist() == [False] * 4 + [True]
    assert "4 training rows share texts and stay in train" in caplog.text


@pytest.fixture
def prepared(configured, tiny_overrides, tiny_model, tmp_path):
    def prepare(text: str, *overrides: str, seed: int = 0):
        path = tmp_path / "twins.csv"
        path.write_text(text)
        config = configured([*tiny_overrides, f"task.source.train_path={path}", "data.protocol=split", *overrides])
        objective = kinds.of(config.task)
        return data.prepare(objective, config.data, seed, tiny_model, 24), objective.content.splits["train"]

    return prepare


@pytest.mark.parametrize("limit", ["null", "12"])
@pytest.mark.parametrize("seed", range(3))
def test_no_text_is_on_both_sides(prepared, limit, seed):
    rows = [f"the film is {'very ' * (n % 20)}fine,{['good', 'bad'][n % 2]}" for n in range(60)]
    ready, train = prepared(
        "text,label\n" + "\n".join(rows) + "\n", f"data.limit={limit}", "data.select_share=0.3", seed=seed
    )
    texts = [normalised(text) for text in train["text"][:]]
    selected, trained = ({texts[i] for i in part.indices} for part in (ready.select, ready.train))
    assert selected and trained and not selected & trained
    assert len(ready.select) == 18


def test_no_text_of_a_pair_is_on_both_sides(prepared):
    rows = [f"p{n % 30},h{n % 50},{['good', 'bad'][n % 2]}" for n in range(60)]
    rows += [f"q{n},h{n + 100},good" for n in range(40)]
    ready, train = prepared(
        "text,more,label\n" + "\n".join(rows) + "\n",
        "task.source.text_pair=more",
        "task.source.validation_path=null",
        "data.select_share=0.2",
    )
    sides = [
        {train[name][int(i)] for i in part.indices for name in ("text", "text_pair")}
        for part in (ready.select, ready.train)
    ]
    assert all(sides) and not sides[0] & sides[1]


def test_without_duplicates_the_split_is_the_one_it_always_was(configured, tiny_overrides, tiny_model, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,label\n" + "".join(f"text {n},{['good', 'bad'][n % 2]}\n" for n in range(40)))
    config = configured([*tiny_overrides, f"task.source.train_path={path}", "data.protocol=split"])
    ready = data.prepare(kinds.of(config.task), config.data, 7, tiny_model, 24)
    order = np.random.default_rng(7).permutation(40)
    assert sorted(ready.select.indices) == sorted(order[:4]) and sorted(ready.train.indices) == sorted(order[4:])


@pytest.mark.parametrize("pair, said", [(None, "2 texts"), ("more", "1 pairs of texts")])
def test_examples_of_the_validation_file_that_are_in_train_are_said(
    configured, tiny_overrides, tmp_path, caplog, pair, said
):
    (tmp_path / "t.csv").write_text("text,more,label\na,x,good\nb,y,bad\n")
    (tmp_path / "v.csv").write_text("text,more,label\nA,x,good\nb,z,bad\n")
    paths = [f"task.source.{name}_path={tmp_path / name[0]}.csv" for name in ("train", "validation")]
    data.load(configured([*tiny_overrides, *paths, f"task.source.text_pair={pair or 'null'}"]).task)
    assert f"{said} of validation are also in train" in caplog.text


def test_a_file_whose_texts_are_all_different_says_nothing(configured, tiny_overrides, tmp_path, caplog):
    write_csv(tmp_path / "t.csv", 4, 1)
    (tmp_path / "v.csv").write_text("text,label\nother,good\nwords,bad\n")
    paths = [f"task.source.{name}_path={tmp_path / name[0]}.csv" for name in ("train", "validation")]
    data.load(configured([*tiny_overrides, *paths]).task)
    assert not caplog.text
