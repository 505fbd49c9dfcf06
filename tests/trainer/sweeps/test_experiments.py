"""What an experiment or a command line says to Hydra and Hydra takes without a word: it works, or one line says why."""

from __future__ import annotations

import pytest

from tests.trainer.sweeping import finished
from trainer.errors import ConfigError, did_you_mean
from trainer.sweeps import sweep


@pytest.fixture
def tried(tiny_overrides, tmp_path):
    """What a command says that can't be carried out; `experiment` is the text of a file."""

    def told(*arguments: str, experiment: str | None = None, flags: tuple[str, ...] = ()) -> str:
        if experiment is not None:
            folder = tmp_path / "conf" / "experiment"
            folder.mkdir(parents=True)
            (folder / "own.yaml").write_text(experiment)
            flags = (*flags, "--config-dir", str(tmp_path / "conf"))
            arguments = (*arguments, "experiment=own")
        code, output = finished([*tiny_overrides, *arguments], tmp_path / "log", flags)
        assert code == 1, output
        (line,) = output.splitlines()
        assert not (tmp_path / "runs").exists()
        return line

    return told


SWEPT = "hydra: {sweeper: {params: {seed: '0,1'}}}\n"


def test_parameters_of_a_sweep_without_one_are_refused(tried):
    line = tried(experiment=f"# @package _global_\n{SWEPT}")
    assert line.startswith(
        "error: hydra.sweeper.params: seed in a single run, allowed: none; `hydra: {mode: MULTIRUN}`"
    )


def test_an_experiment_without_its_package_is_refused(tried):
    line = tried(experiment=f"study: own\n{SWEPT}")
    assert line.removeprefix("error: ") == (
        "experiment: the file that was chosen in conf/experiment/ needs the line `# @package _global_` at its top"
    )


@pytest.mark.parametrize(
    ("group", "name", "begin"),
    [
        ("variant", "dora", "variant: 'dora', allowed: "),
        ("tracker", "trackio", "tracker: 'trackio', allowed: "),
        ("optim", "adamw", "optim: 'adamw' in conf/experiment/own.yaml, allowed: "),
    ],
)
def test_an_experiment_that_names_a_file_in_place_of_fields_is_told_how(tried, tiny_overrides, group, name, begin):
    tiny_overrides[:] = [text for text in tiny_overrides if not text.startswith("optim.")]
    line = tried(experiment=f"# @package _global_\n{group}: {name}\n")
    assert line.startswith(f"error: {begin}")
    assert line.endswith(f"an experiment chooses a file by `defaults: [{{override /{group}: {name}}}]`")


@pytest.mark.parametrize("place", ["sweep: {dir: elsewhere}", "sweep: {subdir: x}", "run: {dir: elsewhere}"])
def test_folders_of_hydra_in_an_experiment_are_refused(tried, place, monkeypatch):
    line = tried(experiment=f"# @package _global_\nhydra: {{mode: MULTIRUN, {place}}}\n")
    assert line.startswith(f"error: hydra.{place.replace(': {', '.').partition(':')[0]}: ")
    assert "a run's folder is <runs_dir>/<study>/<name of the run>" in line


@pytest.mark.parametrize("flags", [(), ("-m",)])
@pytest.mark.parametrize("name", ["hydra.sweep.dir", "hydra.sweep.subdir", "hydra.run.dir"])
def test_folders_of_hydra_are_refused_before_it_makes_them(tried, tmp_path, name, flags):
    line = tried(f"{name}={tmp_path / 'elsewhere'}", flags=flags)
    assert line.startswith(f"error: {name}: ") and "a run's folder is <runs_dir>/<study>/<name of the run>" in line
    assert not (tmp_path / "elsewhere").exists()


def test_a_glob_that_matches_nothing_is_refused(tried):
    line = tried("variant=glob(nothing*)", flags=("-m",))
    assert line.startswith("error: variant: 'glob(nothing*)' matches no file, allowed: adalora, ")


def test_a_glob_takes_no_template():
    from hydra.core.global_hydra import GlobalHydra

    from tests.conftest import ROOT

    GlobalHydra.instance().clear()
    from hydra import initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        chosen = {text for job in sweep.product(loader, ["variant=glob(*)"]) for text in job}
        assert "variant=lora" in chosen and "variant=_template" not in chosen
        loras = {text for text in chosen if text.startswith("variant=lora")} - {"variant=lora"}
        assert {text for job in sweep.product(loader, ["variant=glob(lora*,exclude=lora)"]) for text in job} == loras
        with pytest.raises(ConfigError, match=r"^seed: 'range\(3,3\)' has no values, allowed: at least one$"):
            sweep.product(loader, ["variant=lora", "seed=range(3,3)"])
    GlobalHydra.instance().clear()


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("lr=1e-3", "optim.lr"),
        ("+lr=1e-3", "optim.lr"),
        ("train.lr=3", "optim.lr"),
        ("sede=3", "seed"),
        ("train.max_step=3", "train.max_steps"),
        ("rank=4", "variant.rank"),
        ("optim.batch_size=4", "train.batch_size"),
        ("learning_rate=1e-3", "optim.lr"),
        ("train.num_train_epochs=1", "train.epochs"),
    ],
)
def test_a_misspelt_field_says_which_one_is_meant(tried, override, meant):
    line = tried(override)
    assert line.startswith(f"error: {override.lstrip('+').partition('=')[0]}: no such field, allowed: ")
    assert line.endswith(f"; did you mean {meant}?")


def test_nothing_is_meant_by_what_is_like_no_field():
    assert did_you_mean("zzz", ["optim.lr", "seed"]) == ""
    assert did_you_mean("optim.lr", ["optim.lr"]) == "", "the field itself is no suggestion"


def test_a_variant_without_the_field_is_named(tried):
    assert tried("variant=head", "variant.rank=4") == (
        "error: variant.rank: no such field of the variant head, allowed: name"
    )


def test_what_hydra_has_by_default_is_no_setting():
    sweep.refuse_hydra_folders(["study=x", "runs_dir=y", "-m"])
    with pytest.raises(ConfigError, match=r"^hydra\.sweep\.dir: 'x', allowed: none"):
        sweep.refuse_hydra_folders(["hydra.sweep.dir=x"])
