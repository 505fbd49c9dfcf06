"""A log is followed while it grows, and where a run goes on from a checkpoint and makes a part of it again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer.loop.jsonl_log import JsonlLog
from trainer.trackers.tail import Tail, digests

pytestmark = pytest.mark.slow


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "metrics.jsonl"


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_lines_come_once_and_whole(path):
    tail = Tail(path)
    assert tail.fresh() == []
    append(path, "one\ntw")
    assert tail.fresh() == [b"one\n"]
    assert tail.fresh() == []
    append(path, "o\nthree\n")
    assert tail.fresh() == [b"two\n", b"three\n"]


def test_lines_that_are_made_again_as_they_were_do_not_come_again(path):
    journal, tail = JsonlLog(path), Tail(path)
    for step in (1, 2, 3):
        journal.write(step, loss=step / 3)
    assert len(tail.fresh()) == 3
    journal.forget_after(1)
    assert tail.fresh() == []
    for step in (2, 3, 4):
        journal.write(step, loss=step / 3)
    assert tail.fresh() == [b'{"step": 4, "loss": 1.3333333333333333}\n']


def test_from_the_first_that_differs_all_come(path):
    journal, tail = JsonlLog(path), Tail(path)
    for step in (1, 2, 3):
        journal.write(step, loss=0)
    tail.fresh()
    journal.forget_after(1)
    journal.write(2, loss=1)
    journal.write(3, loss=0)
    assert tail.fresh() == [b'{"step": 2, "loss": 1}\n', b'{"step": 3, "loss": 0}\n']


def test_a_later_process_knows_what_an_earlier_one_has_read(path):
    append(path, "a\nb\nc\n")
    assert Tail(path, digests(path, 2)).fresh() == [b"c\n"]
    assert digests(path, 9) == digests(path, 3)
    assert digests(path.with_name("none"), 2) == []


def test_a_file_that_is_replaced_at_once_is_read_from_its_beginning(path):
    append(path, "a\nb\n")
    tail = Tail(path)
    tail.fresh()
    other = path.with_name("other")
    append(other, "a\nx\n")
    os.replace(other, path)
    assert tail.fresh() == [b"x\n"]
