"""Malformed settings: each is refused in one line that names the field, before anything is loaded."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from trainer import config_checks
from trainer.config import validate
from trainer.errors import ConfigError, one_line
from trainer.instantiate import make
from trainer.loop import optim
from trainer.record import flatten
from trainer.sweeps.plan import plan

OTHER = ["~optim.optimizer.betas", "~optim.optimizer.eps"]  # AdamW's own settings


def refused(config_of, overrides: list[str]) -> str:
    """What is said of a config that no run can have."""
    with pytest.raises(Exception) as caught:
        plan(config_of(overrides))
    line = one_line(caught.value)
    assert "\n" not in line
    return line


def validate_with(config, name: str, value: object) -> None:
    OmegaConf.update(config, name, value)
    validate(config)


def test_no_setting_is_a_number_that_is_none(configured):
    config = configured(["tracker=wandb"])
    texts = ("study", "runs_dir", "glue.path", "machine.device", "init_from", "train.teacher")  # there it is a name
    for name, before in flatten(OmegaConf.to_container(config, resolve=True)):
        if name in texts or name.startswith("model.files"):
            continue
        with pytest.raises(Exception) as caught:
            validate_with(config, name, float("nan"))
        assert one_line(caught.value).startswith(f"{name}: ")
        OmegaConf.update(config, name, before)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+variant.rank_pattern={query:nan}", "variant.rank_pattern.query: nan, allowed: a finite number"),
        ("optim.optimizer.betas=[nan,0.9]", "optim.optimizer.betas: nan, allowed: a finite number"),
        ("variant.seed=99999999999999999999", "variant.seed: 99999999999999999999, allowed: a whole number of 64 bits"),
        ("+variant.rank_pattern={1:4}", "variant.rank_pattern: 1, allowed: text as its names"),
    ],
)
def test_what_a_record_could_not_hold_is_refused(configured, override, message):
    extra = ["variant=dylora"] if "seed" in override else []
    assert refused(configured, [*extra, override]) == message


def test_half_a_character_is_refused(configured):
    config = configured([])
    config.model.dropout = "caf\udce9"
    with pytest.raises(ConfigError, match=r"^model\.dropout: 'caf\\udce9', allowed: text in UTF-8"):
        config_checks.check(config)


@pytest.mark.parametrize("field", ["variant.name", "task.name", "model.name"])
@pytest.mark.parametrize("value", ["2024", "1.50", "true", "null", "[a]", "{a:1}", "''", "' '"])
def test_a_name_is_text(configured, field, value):
    assert refused(configured, [f"{field}={value}"]).startswith(f"{field}: ")


def test_a_number_in_quotes_is_a_name(configured):
    config = configured(["task.name='2024'"])
    config_checks.check(config)
    assert config.task.name == "2024"
    assert "in quotes it is text: \"task.name='2024'\"" in refused(configured, ["task.name=2024"])


@pytest.mark.parametrize("group", ["variant", "task", "model", "data", "optim", "train", "machine", "glue"])
def test_a_field_that_nothing_reads_is_refused(configured, group):
    if group == "variant":
        with pytest.raises(ConfigError) as caught:
            make("variant", configured(["+variant.fooo=1"]).variant)
        line = str(caught.value)
    else:
        line = refused(configured, [f"+{group}.fooo=1"])
    assert line.startswith(f"{group}.fooo: ") and "no such field, allowed: " in line


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+task.source.foo=1"], "task.source.foo: 1, Movie has no such field, allowed: distribution, sha256"),
        (["tracker=wandb", "+tracker.foo=1"], "tracker.foo: 1, Wandb has no such field, allowed: project, "),
        (
            ["model.sources=[{_target_:trainer.data.sources.folder.FolderModel,path:m,foo:1}]"],
            "model.sources.foo: 1, FolderModel has no such field, allowed: path",
        ),
        (["model=folder", "model.path=m", "+model.id=x"], "model.id: no such field, allowed: name, "),
        (["+task.source._partial_=true"], "task.source._partial_: no such field, allowed: _target_ and"),
        (["+variant._args_=[1]"], "variant._args_: no such field"),
    ],
)
def test_a_misspelt_field_of_a_part_is_refused(configured, overrides, message):
    assert refused(configured, overrides).startswith(message)


def test_a_field_that_another_of_the_group_refers_to_is_read(configured):
    config_checks.refuse_ignored(configured(["+task.year=2024", "task.name=movie-${.year}"]))
    config_checks.refuse_ignored(configured(["model=hub", "model.id=a/b"]))


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["task.source=null"], "task.source"),
        (["task.source=[1]"], "task.source"),
        (["task.source._target_=5"], "task.source._target_"),
        (["task.source._target_=os.system"], "task.source._target_"),
        (["task.source._target_=builtins.dict"], "task.source._target_"),
        (["task.source._target_=nowhere.Nothing"], "task.source._target_"),
        (["model.sources=null"], "model.sources"),
        (["model.sources=[]"], "model.sources"),
        (["model.sources=[5]"], "model.sources"),
        (["model.sources=[{_target_:builtins.dict}]"], "model.sources._target_"),
        (["model.files=[1]"], "model.files"),
        (["model.files=null"], "model.files"),
        (["optim.optimizer._target_=null"], "optim.optimizer._target_"),
        (["machine.judge=5"], "machine.judge"),
        (["machine.judge={a:1}"], "machine.judge._target_"),
        (["task.metrics=accuracy"], "task.metrics"),
        (["task.metrics=[accuracy,accuracy]"], "task.metrics"),
        (["task.metrics=[1]"], "task.metrics"),
        (["task=file", "task.source.train_path=5"], "task.source.train_path"),
        (["task=file", "task.source.train_path=null"], "task.source.train_path"),
        (["task=file", "task.source.train_path=x.csv", "task.source.text=null"], "task.source.text"),
        (["task=file", "task.source.train_path=x.csv", "task.source.text=[a]"], "task.source.text"),
        (["task=file", "task.source.train_path=x.csv", "task.source.holdout=x"], "task.source.holdout"),
        (["model=folder", "model.path=[a]"], "model.sources.path"),
        (["model=folder", "model.path=null"], "model.sources.path"),
        (["tracker=wandb", "tracker.tags=x"], "tracker.tags"),
        (["tracker=wandb", "tracker.tags=[1]"], "tracker.tags"),
        (["tracker=wandb", "tracker.system_stats=2"], "tracker.system_stats"),
        (["tracker=wandb", "tracker.timeout=true"], "tracker.timeout"),
        (["tracker=5"], "tracker"),
        (["variant=5"], "variant"),
        (["train.autocast=2"], "train.autocast"),
        (["train.group_by_length=yes"], "train.group_by_length"),
        (["machine.progress=0"], "machine.progress"),
        (["machine.dry_run=1"], "machine.dry_run"),
        (["train.recompute=1"], "train.recompute"),
        (["optim.lr=true"], "optim.lr"),
        (["data.limit=true"], "data.limit"),
        (["train.eval_every=true"], "train.eval_every"),
        (["optim.warmup=1.5"], "optim.warmup"),
        (["machine.threads=0"], "machine.threads"),
        (["machine.threads=100000000"], "machine.threads"),
        (["machine.workers=-1"], "machine.workers"),
        (["study=' '"], "study"),
        (["runs_dir=''"], "runs_dir"),
        (["runs_dir=/dev/null"], "runs_dir"),
        (["runs_dir=/dev/null/x"], "runs_dir"),
    ],
)
def test_a_setting_of_another_kind_is_refused_by_name(configured, overrides, field):
    assert refused(configured, overrides).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.optimizer.betas=[2,0.9]"], "optim.optimizer.betas: [2, 0.9], AdamW refuses it: Invalid beta"),
        (["optim.optimizer.betas=[0.9]"], "optim.optimizer.betas: [0.9], allowed: [a number"),
        (["optim.optimizer.betas=x"], "optim.optimizer.betas: 'x', allowed: "),
        (["optim.optimizer.eps=-1"], "optim.optimizer.eps: -1, AdamW refuses it: Invalid epsilon"),
        (["optim.optimizer.eps=true"], "optim.optimizer.eps: True, allowed: a number"),
        (["+optim.optimizer.amsgrad=5"], "optim.optimizer.amsgrad: 5, allowed: true, false"),
        (["+optim.optimizer.foo=1"], "optim.optimizer.foo: 1, AdamW has no such field, allowed: params, lr, betas, "),
        (["+optim.optimizer.lr=1"], "optim.optimizer.lr: no such field; optim.lr and optim.weight_decay set these"),
        (
            ["optim.optimizer._target_=torch.nn.Linear"],
            "optim.optimizer._target_: 'torch.nn.Linear', allowed: a subc",
        ),
        (["optim.optimizer._target_=torch.optim.Nope"], "optim.optimizer._target_: 'torch.optim.Nope', allowed: "),
        ([*OTHER, "optim.optimizer._target_=torch.optim.LBFGS"], "optim.optimizer._target_: LBFGS can't train"),
        ([*OTHER, "optim.optimizer._target_=torch.optim.Rprop", "optim.weight_decay=0.1"], "optim.weight_decay: 0.1"),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused_by_name(configured, overrides, message):
    with pytest.raises(ConfigError) as caught:
        optim.check(configured(overrides).optim)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adagrad", "RMSprop", "Rprop"])
def test_optimizers_of_torch_are_taken(configured, name):
    optim.check(configured([*OTHER, f"optim.optimizer._target_=torch.optim.{name}"]).optim)
