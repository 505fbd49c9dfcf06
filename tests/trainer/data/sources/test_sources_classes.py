"""Names of classes: one order in every process, and no two that can't be told apart."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from trainer.data.sources.classes import check_names, class_order
from trainer.data.sources.files import Files
from trainer.errors import ConfigError

A_RING, A_AND_RING = "\u00c5", "A\u030a"


@pytest.mark.parametrize(
    "names", [["01", "1"], ["1", "1_0", "10"], ["2", "10", "010"], ["١", "1"], ["+1", "1"], ["a", "A", "b"]]
)
def test_the_order_is_that_of_the_names_and_of_nothing_else(names):
    assert len({tuple(class_order(some)) for some in itertools.permutations(names)}) == 1


def test_whole_numbers_are_in_the_order_of_their_values():
    assert class_order(["10", "9", "2", "10"]) == ["2", "9", "10"]
    assert class_order(["10", "9", "b"]) == ["10", "9", "b"]


@pytest.mark.parametrize(
    "one, other",
    [
        ("pos", "pos "),
        ("pos", "pos\u00a0"),
        ("pos", "\ufeffpos"),
        ("not good", "not  good"),
        ("not good", "not\u00a0good"),
        ("pos", "p\u200bos"),
        (A_RING, A_AND_RING),
    ],
)
def test_names_between_which_nothing_is_seen_are_refused(one, other):
    with pytest.raises(ConfigError, match="differ invisibly") as error:
        check_names(class_order([one, other, "neg"]), "task.source")
    assert ascii(one) in str(error.value) and ascii(other) in str(error.value)


@pytest.mark.parametrize("one, other", [("pos", "Pos"), ("1", "01"), ("1", "1.0"), ("１", "1"), ("ﬁt", "fit")])
def test_names_that_look_alike_are_said(one, other, caplog):
    check_names(class_order([one, other, "neg"]), "task.source")
    assert ascii(other) in caplog.text and "look alike but are 2 classes" in caplog.text


def test_other_names_are_taken_without_a_word(caplog):
    check_names(["a", "b", "ab", "a b", "1", "2", "été"], "task.source")
    assert not caplog.text


def test_a_blank_in_either_file_is_found(tmp_path: Path):
    for name, last in (("t.csv", "pos"), ("v.csv", "pos ")):
        (tmp_path / name).write_text(f"text,label\na,pos\nb,neg\nc,{last}\n")
    with pytest.raises(ConfigError, match=r"task.source: the labels 'pos', 'pos ' differ"):
        Files(str(tmp_path / "t.csv"), str(tmp_path / "v.csv")).load()
