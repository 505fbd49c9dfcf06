"""`choose`: a file of rates that a config reads back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.commands import cli
from trainer import chosen
from trainer.errors import ConfigError, one_line


@pytest.fixture
def rates(store):
    for rate, score in ((1e-3, 0.7), (1e-2, 0.8), (1e-1, 0.6)):
        store.add("lora", 100, 0.5, config={"optim.lr": rate}, metrics__accuracy=0.5, select__accuracy=score)
        store.add("sora", 100, 0.5, config={"optim.lr": rate}, metrics__accuracy=0.5, select__accuracy=rate)
    assert cli.main(["choose", "runs", "--output", "rates.yaml"]) == 0


def test_the_file(rates, capsys):
    content = yaml.safe_load(Path("rates.yaml").read_text())
    assert content["setting"] == "optim.lr" and content["by"] == "select"
    assert content["choices"]["movie"]["lora"] == {
        "value": 0.01,
        "edge": False,
        "good": [0.01, 0.01],
        "metric": "accuracy",
        "seeds": [100],
        "means": {0.001: 0.7, 0.01: 0.8, 0.1: 0.6},
    }


def test_a_best_value_at_the_edge_is_said(rates, capsys):
    assert cli.main(["choose", "runs"]) == 0
    assert capsys.readouterr().err == "At the edge of the grid: sora on movie, optim.lr 0.1\n"


def test_a_config_takes_its_rate_from_the_file(rates):
    chosen.register()
    config = OmegaConf.create({"v": "lora", "t": "movie", "lr": "${chosen:rates.yaml,${v},${t}}"})
    assert config.lr == 0.01


def test_a_rate_that_was_not_chosen_is_an_error_of_its_field_without_the_words_of_omegaconf(rates):
    chosen.register()
    config = OmegaConf.create({"optim": {"lr": "${chosen:rates.yaml,dora,movie}"}})
    with pytest.raises(OmegaConfBaseException) as raised:
        _ = config.optim.lr
    assert one_line(raised.value).startswith("optim.lr: chosen: no method 'dora' in rates.yaml, allowed: lora, sora")
    assert "full_key" not in one_line(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.yaml", "lora", "movie"), "chosen: none.yaml: No such file or directory"),
        (
            ("rates.yaml", "lora", "movies"),
            "chosen: no task 'movies' in rates.yaml, allowed: movie; did you mean movie?",
        ),
        (("rates.yaml", "dora", "movie"), "chosen: no method 'dora' in rates.yaml, allowed: lora, sora; did you mean "),
        (("other.yaml", "lora", "movie"), "chosen: other.yaml: not written by `python -m analysis choose`"),
    ],
)
def test_what_can_not_be_taken_is_named(rates, arguments, message):
    Path("other.yaml").write_text("- a list\n")
    with pytest.raises(ConfigError) as raised:
        chosen.chosen(*arguments)
    assert str(raised.value).startswith(message)
