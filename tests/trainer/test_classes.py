"""What a `_target_` may name: a class of the kind that its place needs, and nothing else is called."""

from __future__ import annotations

import pytest

from trainer.classes import KINDS, chosen
from trainer.errors import ConfigError
from trainer.instantiate import make

GOOD = {
    "variant": "variants.lora.LoRA",
    "task.source": "trainer.data.sources.files.Files",
    "task.kind": "trainer.objectives.causal_lm.CausalLM",
    "model.sources": "trainer.data.sources.folder.FolderModel",
    "optim.optimizer": "torch.optim.SGD",
    "machine.judge": "trainer.sweeps.search.TrialPruner",
    "tracker": "trainer.trackers.wandb.Wandb",
}
FUNCTIONS = [
    "pandas.read_pickle",
    "joblib.load",
    "numpy.load",
    "torch.load",
    "builtins.exec",
]


def refusal(field, node):
    with pytest.raises(ConfigError) as caught:
        chosen(field, node)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_place_takes_the_classes_of_its_kind():
    assert GOOD.keys() == KINDS.keys()
    for field, target in GOOD.items():
        chosen(field, {"_target_": target})


@pytest.mark.parametrize("field", KINDS)
def test_no_place_takes_a_function_or_the_class_of_another(field):
    for target in FUNCTIONS:
        assert refusal(field, {"_target_": target}).startswith(
            f"{field}._target_: {target!r} is not a class, allowed: "
        )
    for other in {*GOOD, field} - {field}:
        assert refusal(field, {"_target_": GOOD[other]}).startswith(f"{field}._target_: ")
    assert refusal(field, {"_target_": "subprocess.Popen"}).startswith(f"{field}._target_: ")


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"path": {"_target_": "pandas.read_pickle"}}, "path._target_"),
        ({"paths": [1, {"deep": {"_target_": "pandas.read_pickle"}}]}, "paths.1.deep._target_"),
        ({"_args_": ["x"]}, "_args_"),
        ({"_partial_": True}, "_partial_"),
    ],
)
def test_the_settings_of_a_class_are_values(settings, name):
    text = refusal("model.sources", {"_target_": GOOD["model.sources"], **settings})
    assert text.startswith(f"model.sources.{name}: ")


@pytest.mark.parametrize("node", [{}, {"_target_": None}, {"_target_": ["x"]}, None, "x"])
def test_a_place_without_a_class_is_refused(node):
    assert refusal("task.source", node).startswith("task.source._target_: ")


def test_what_is_refused_is_not_called(tmp_path):
    path = tmp_path / "made"
    with pytest.raises(ConfigError, match=r"task\.source\._target_: 'pathlib\.Path\.touch' is not a class"):
        make("task.source", {"_target_": "pathlib.Path.touch", "self": str(path)})
    assert not path.exists()


def test_a_class_that_is_not_there_is_said_as_before():
    with pytest.raises(ConfigError, match=r"task\.source\._target_: 'nowhere\.Source', allowed: the dotted name"):
        make("task.source", {"_target_": "nowhere.Source"})
