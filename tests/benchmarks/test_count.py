"""The catalogue's costs: every method has them, and they are what is counted."""

from __future__ import annotations

import functools
import json

import pytest

from benchmarks import count
from variants.catalogue import cards

COSTS = json.loads(cards.COSTS.read_text())


@pytest.fixture(scope="module")
def counted():
    """The numbers of a method, each counted once."""
    source = count.block()
    return functools.cache(lambda name: count.counted(source, name))


def test_every_method_is_counted():
    names = {method.name for method in cards.methods()} - set(count.NOT_COUNTED)
    assert set(COSTS) == names, "count anew: python -m benchmarks.count && python -m variants docs"


@pytest.mark.parametrize("name", ["head", "full", "gora", "lt_sft", "peft_hira"])
def test_what_is_written_is_what_is_counted(counted, name):
    assert COSTS[name] == count.ratios(counted(name), counted("lora"))


def test_loras_products_are_those_of_its_arithmetic(counted):
    found, full = counted("lora"), counted("full")
    tokens, sizes, rank = count.BATCH * count.LENGTH, [(384, 384)] * 4 + [(384, 1536)] * 2, 8
    assert found["trained"] == rank * sum(a + b for a, b in sizes)
    # A layer's weight takes part in two products and a trained one in three, of two operations each; a factor in three.
    less = sum(2 * tokens * a * b for a, b in sizes)
    more = sum(3 * 2 * tokens * rank * (a + b) for a, b in sizes)
    assert found["products"] == pytest.approx(full["products"] - less + more, rel=0.02)


def test_the_head_alone_goes_no_further_back_than_the_head():
    assert COSTS["head"]["trained"] == 0 and COSTS["head"]["products"] < 0.6
    assert COSTS["lora"] == {"trained": 1, "products": 1}
