"""Settings of many runs: each of them comes back as it was, and two are compared as JSON is."""

from __future__ import annotations

import random
from typing import Any

import pytest

from analysis.records.settings_store import Bases, Config

DIFFERENT: list[Any] = [1, 1.0, True, "1", None, 0, False, -0.0, "", [], [1], [True], [1.0], {"a": 1}, "a", 10**40]


def test_settings_come_back_with_their_types():
    draw = random.Random(0)
    shapes = [("rank", "lr"), ("rank", "lr", "targets"), ("lr", "rank"), ()]
    given = [{name: draw.choice(DIFFERENT) for name in draw.choice(shapes)} for _ in range(300)]
    bases = Bases()
    places = [bases.add(settings) for settings in given]
    assert len(bases) == 300
    for place, settings in zip(places, given, strict=True):
        assert repr(bases.items(place)) == repr(settings), "1 is not 1.0, and not True"
        assert bases.names(place) == tuple(settings)
        for name, value in settings.items():
            assert repr(bases.value(place, name)) == repr(bases.get(place, name)) == repr(value)


def test_what_is_not_there_is_none_or_an_error():
    bases = Bases()
    place = bases.add({"rank": 8})
    assert bases.get(place, "lr") is None
    with pytest.raises(KeyError):
        bases.value(place, "lr")


def test_the_names_that_differ_are_those_of_a_comparison_one_by_one():
    draw = random.Random(1)
    names = ("a", "b", "c")
    for _ in range(300):
        given = [
            {name: draw.choice(DIFFERENT) for name in names[: draw.randrange(4)]} for _ in range(draw.randrange(1, 5))
        ]
        bases = Bases()
        places = [bases.add(settings) for settings in given]
        expected = {name for name in names if any(own.get(name) != given[0].get(name) for own in given)}
        assert bases.unequal(places) == expected, given
        assert bases.unequal(places[:1]) == set()


def test_what_others_have_is_not_compared():
    bases = Bases()
    places = [bases.add({"rank": rank}) for rank in (4, 8, 4)]
    assert bases.unequal([places[0], places[2]]) == set()
    assert bases.unequal(places) == {"rank"}


def test_names_and_types_of_all():
    bases = Bases()
    bases.add({"rank": 4})
    bases.add({"rank": 4, "lr": 0.1})
    bases.add({"rank": "x", "lr": 0.1})
    assert bases.all_names() == {"rank", "lr"}
    assert bases.kinds("rank") == {int, str}
    assert bases.kinds("lr") == {float, type(None)}, "one has none"


def test_a_config_is_a_mapping_of_a_base_and_seeds():
    bases = Bases()
    config = Config(bases, bases.add({"rank": 8}), {"seed": 3, "data.seed": 4})
    settings = {"rank": 8, "seed": 3, "data.seed": 4}
    assert config == settings and settings == config and len(config) == 3 and list(config) == list(settings)
    assert repr(config) == repr(settings)
    assert config.get("seed") == 3 and config.get("alpha") is None and config.get("alpha", 1) == 1
    assert "rank" in config and "alpha" not in config
    with pytest.raises(KeyError):
        config["alpha"]
