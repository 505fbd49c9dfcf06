"""Configs: what composes, what is refused and in which words, and what names a run."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf, open_dict
from transformers import BertConfig, BertForSequenceClassification

from tests.composing import by_hydra
from tests.conftest import ROOT
from trainer import config as run_config
from trainer.data.sources.glue import TASKS
from trainer.errors import ConfigError, one_line
from trainer.instantiate import make
from trainer.loop.loop import total_steps
from trainer.model import backbone as models
from trainer.objectives import kinds
from trainer.runs.run import run
from trainer.sweeps.plan import plan
from variants.core.kernels import low_rank
from variants.core.variant import field_names

GROUPS = [
    (group, path.stem)
    for group in ("variant", "task", "model")
    for path in sorted((ROOT / "conf" / group).glob("*.yaml"))
]
FAMILIES = sorted(path.stem for path in (ROOT / "conf" / "variant" / "families").glob("*.yaml"))
NEEDED = {
    "file": ["task.source.train_path=train.csv"],
    "images": ["task.source.train_path=images"],
    "sounds": ["task.source.train_path=sounds"],
    "speech": ["task.source.train_path=speech.csv"],
    "ratings": ["task.source.train_path=ratings.csv"],
    "two_tower": ["task=ratings", "task.source.train_path=ratings.csv"],
    "hub": ["model.id=roberta-base"],
    "folder": ["model.path=model"],
    "vtab": ["task.set=dtd"],
    "mixture": ["task.source.tasks={piqa: 1, openbookqa: 2}"],
}


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_every_group_file_composes_and_is_valid(configured, group, name):
    run_config.validate(configured([f"{group}={name}", *NEEDED.get(name, [])]))


@pytest.mark.parametrize("name", [name for group, name in GROUPS if group == "variant"])
def test_a_variants_yaml_names_every_field_of_its_class_and_instantiates(configured, name):
    node = configured([f"variant={name}"]).variant
    variant = make("variant", node)
    assert set(node) - {"_target_"} == set(field_names(type(variant)))
    assert variant.name == node.name


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pissa", {"init": "pissa", "alpha": 4}),
        ("milora", {"init": "milora", "alpha": 4}),
        ("olora", {"init": "olora", "alpha": 16}),
        ("rslora", {"scaling": "rslora"}),
        ("lora_plus", {"lr_ratio": 16}),
    ],
)
def test_a_preset_of_lora_has_its_papers_settings(configured, name, settings):
    variant = make("variant", configured([f"variant={name}", "variant.rank=4"]).variant)
    assert {field: getattr(variant, field) for field in settings} == settings and variant.name == name


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_composes(configured, path):
    config = by_hydra([f"experiment={path.stem}"])
    assert config.study and configured([f"experiment={path.stem}"]) == config


def test_an_option_of_the_fused_kernel_is_refused_with_the_plain_one(configured):
    with pytest.raises(ConfigError, match=r"train.recompute: true with machine.kernel: plain, allowed: false"):
        run_config.validate(configured(["train.recompute=true", "machine.kernel=plain"]))


def test_the_kernels_are_those_that_there_are():
    assert run_config.KERNELS == low_rank.KERNELS


def test_the_families_experiment_runs_every_family_at_one_budget(configured):
    params = OmegaConf.load(ROOT / "conf" / "experiment" / "families.yaml").hydra.sweeper.params
    assert sorted(params.variant.strip().split(",")) == [f"families/{name}" for name in FAMILIES]
    budgets = {
        name: configured([f"variant=families/{name}", "experiment=families"]).variant.get("budget") for name in FAMILIES
    }
    # All singular values of the encoder are fewer than that, and the head alone has no adapter.
    assert {name for name, budget in budgets.items() if budget != 300_000} == {"svdiff", "head"}
    assert budgets["svdiff"] is budgets["head"] is None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_schedule_fits_the_experiment_and_its_name_is_that_of_its_file(configured, name):
    config = configured([f"variant=families/{name}", "experiment=families"])
    run_config.validate(config)
    assert config.variant.name == name
    make("variant", config.variant).plan(total_steps(config.data.limit, config.train))


ZOO = OmegaConf.load(ROOT / "conf" / "experiment" / "zoo.yaml").hydra.sweeper.params.variant.strip().split(",")
# base has nothing to say on a task whose head is new, and the files peft_… are settings of peft.
NOT_IN_THE_ZOO = {"base", "peft"}
# Methods of ours whose size is not a choice, or that can't reach 300,000 on MiniLM (vera: only by ranks of thousands).
WITHOUT_BUDGET = {"aflora", "bitfit", "full", "head", "svdiff", "vera"}


@functools.cache
def minilm() -> Any:
    """The modules of the default model, on the meta device."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    with torch.device("meta"):
        return BertForSequenceClassification(BertConfig(**sizes))


def test_the_zoo_has_every_method_once():
    methods = {name for group, name in GROUPS if group == "variant" and not name.startswith("_")}
    assert sorted(name.removeprefix("zoo/") for name in ZOO) == sorted(methods - NOT_IN_THE_ZOO), (
        "a new method needs conf/variant/zoo/<method>.yaml, with a schedule for 60 steps, and a place in the experiment"
    )
    own = {path.stem for path in (ROOT / "conf" / "variant" / "zoo").glob("*.yaml")}
    assert own == {name.removeprefix("zoo/") for name in ZOO if name.startswith("zoo/")}


@pytest.mark.parametrize("name", ZOO)
def test_a_method_of_the_zoo_has_its_budget_and_its_schedule_fits(configured, name):
    stem, own = name.removeprefix("zoo/"), name.startswith("zoo/")
    config = configured([f"variant={name}", "experiment=zoo"] if own else [f"variant={name}"])
    if own:
        run_config.validate(config)
        assert total_steps(config.data.limit, config.train) == 60 and config.optim.head_lr == 1e-3
    assert config.variant.name == stem.replace("peft_", "peft-")
    with_budget = not stem.startswith("peft_") and stem not in WITHOUT_BUDGET
    assert config.variant.get("budget") == (300_000 if with_budget else None)
    variant = make("variant", config.variant)
    variant.plan(60)
    model = minilm()
    variant.check(model, models.head_modules(model))


def test_the_glue_experiment_runs_every_method_on_every_task(configured):
    params = OmegaConf.load(ROOT / "conf" / "experiment" / "glue.yaml").hydra.sweeper.params
    assert sorted(params.task.split(",")) == sorted(TASKS)
    for task in TASKS:
        config = configured([f"task={task}", "experiment=glue"])
        run_config.validate(config)
        assert config.task.source.task == task == config.task.name
    for method in params.variant.split(","):
        config = configured([f"variant={method}", "experiment=glue"])
        run_config.validate(config)
        for task in TASKS.values():
            make("variant", config.variant).plan(total_steps(task.sizes["train"], config.train))


def test_the_debug_experiment_is_one_run_of_ten_steps(configured, tiny_overrides):
    kept = [text for text in tiny_overrides if not text.startswith(("train.", "study="))]
    config = configured(["experiment=debug", *kept])
    record = run(plan(config), kept)
    assert (record.status, record.study, record.steps.done) == ("done", "debug", 10)
    assert (record.data.train, record.data.report) == (48, 24) and config.data.limit == config.data.eval_limit == 64


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("variant=lorra", "variant: 'lorra', allowed: adalora, "),
        ("task=movies", "task: 'movies', allowed: alpaca, arithmetic, "),
        ("variant=families/dora", "variant: 'families/dora', allowed: adalora, "),
        ("variant.rnak=3", "variant.rnak: no such field of the variant lora, allowed: name, rank, alpha, "),
        ("optim.lrr=3", "optim.lrr: no such field, allowed: lr, head_lr, "),
        ("traim.epochs=3", "traim: no such field, allowed: variant, task, model, "),
        ("seed=0,1", "seed: '0,1' in a single run, allowed: one value; -m sweeps over several, or [a,b] for "),
        ("variant=lora,head", "variant: 'lora,head' in a single run, allowed: one value; -m sweeps over several, "),
        ("variant=glob(l*)", "variant: 'glob(l*)' in a single run, allowed: one value; -m sweeps over several"),
        ("seed=range(0,3)", "seed: 'range(0,3)' in a single run, allowed: one value; -m sweeps over several"),
        ("optim.lr=fast", "optim.lr: Value 'fast' of type 'str' could not be converted to Float"),
    ],
)
def test_a_misspelt_name_is_refused_in_one_line(configured, override, message):
    with pytest.raises(Exception) as caught:
        configured([override])
    line = one_line(caught.value)
    assert line.startswith(message)
    assert "\n" not in line


def test_a_field_with_a_method_s_name_before_it_says_which_one_is_meant(configured):
    with pytest.raises(Exception) as caught:
        configured(["lora.rank=4"])
    assert one_line(caught.value).endswith("; did you mean variant.rank?")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.protocol=test", "data.protocol: 'test', allowed: dev, split"),
        ("data.limit=0", "data.limit: 0, allowed: a whole number ≥ 1, or null"),
        ("data.select_share=1", "data.select_share: 1.0, allowed: 0 < share < 1"),
        ("optim.lr=0", "optim.lr: 0.0, allowed: a number > 0"),
        ("optim.schedule=linaer", "optim.schedule: 'linaer', allowed: "),
        ("+data.limt=4", "data.limt: no such field, allowed: protocol, select_share, limit, "),
        ("+foo=1", "foo: no such field, allowed: variant, task, model, "),
        ("optim.head_lr=inf", "optim.head_lr: inf, allowed: a finite number"),
        ("seed=-1", "seed: -1, allowed: 0 ≤ seed < 2³²"),
        ("train.batch_size=0", "train.batch_size: 0, allowed: a whole number ≥ 1"),
        ("train.eval_every=never", "train.eval_every: 'never', allowed: \"epoch\" or a number of steps ≥ 1"),
        ("train.checkpoint=first", "train.checkpoint: 'first', allowed: best, last"),
        ("study=a/b", "study: 'a/b', allowed: the name of a folder"),
        ("model.dtype=float8", "model.dtype: 'float8', allowed: float32, bfloat16, float64"),
        ("model.dropout=1", "model.dropout: 1, allowed: 0 ≤ dropout < 1, or null"),
        ("model.dropout=low", "model.dropout: 'low', allowed: 0 ≤ dropout < 1, or null"),
        ("machine.kernel=fast", "machine.kernel: 'fast', allowed: fused, plain"),
        ("machine.device=gpu", "machine.device: 'gpu', allowed: auto, cpu, cuda, cuda:N"),
    ],
)
def test_a_value_that_no_run_can_use_is_refused(configured, override, message):
    with pytest.raises(ConfigError) as caught:
        run_config.validate(configured([override]))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("override", "field"),
    [("task=file", "task.source.train_path"), ("model=hub", "model.id"), ("model=folder", "model.path")],
)
def test_a_value_that_must_be_given_is_asked_for(configured, override, field):
    with pytest.raises(Exception) as caught:
        plan(configured([override]))
    assert one_line(caught.value) == f"{field}: not given; set {field}=… on the command line"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("variant.rank=0", "variant.rank: 0, allowed: a whole number ≥ 1"),
        ("variant.rank=-3", "variant.rank: -3, allowed: a whole number ≥ 1"),
        ("variant.dropout=1", "variant.dropout: 1, allowed: 0 ≤ dropout < 1"),
        ("variant.scaling=none", "variant.scaling: 'none', allowed: lora, rslora"),
        ("+variant.rnak=3", "variant.rnak: 3, LoRA has no such field, allowed: name, targets, "),
    ],
)
def test_a_variant_refuses_its_own_bad_values(configured, override, message):
    with pytest.raises(ConfigError) as caught:
        make("variant", configured([override]).variant)
    assert str(caught.value).startswith(message)


def test_run_id_is_the_same_for_the_same_result(configured):
    def run_id(*overrides: str) -> str:
        return plan(configured(list(overrides))).run_id

    base = run_id()
    same = ["runs_dir=elsewhere", "study=other", "machine.threads=1", "machine.workers=2", "machine.save_every=7"]
    assert all(run_id(override) == base for override in same)
    assert run_id("variant.alpha=16.0") == base
    different = ["seed=1", "variant.rank=4", "task=opinion", "optim.lr=2e-3", "train.epochs=4", "data.limit=10"]
    different += ["model.dropout=0.1"]
    ids = [run_id(override) for override in different]
    assert len({base, *ids}) == len(different) + 1


def test_run_id_follows_the_content_of_the_users_files_not_their_place(configured, tmp_path):
    def run_id(folder: str, text: str) -> str:
        path = tmp_path / folder / "train.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return plan(configured(["task=file", f"task.source.train_path={path}"])).run_id

    assert run_id("a", "text,label\nx,1\n") == run_id("b", "text,label\nx,1\n")
    assert run_id("a", "text,label\nx,1\n") != run_id("c", "text,label\ny,1\n")


def test_a_mirror_of_the_model_changes_no_run_id(configured):
    config = configured([])
    before = plan(config).run_id
    with open_dict(config):
        config.model.sources = config.model.sources[:1]
    assert plan(config).run_id == before


@pytest.mark.parametrize("arguments", [["--cfg", "job"], ["--help"]])
def test_help_and_config_come_up_without_torch(arguments):
    command = [sys.executable, "-X", "importtime", "train.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "hydra" in imported
    assert "torch" not in imported


def test_half_a_character_in_a_setting_is_refused(configured):
    with pytest.raises(ConfigError, match=r"task.name: '\\udcff', allowed: text in UTF-8"):
        run_config.validate(configured(["task.name='\udcff'"]))
    with pytest.raises(ConfigError, match=r"variant.targets: 'a\\ud83d', allowed: text in UTF-8"):
        run_config.validate(configured(["variant.targets=['a\ud83d']"]))


def test_the_language_experiments_schedules_fit_its_steps(configured):
    params = OmegaConf.load(ROOT / "conf" / "experiment" / "language.yaml").hydra.sweeper.params
    methods = params.variant.strip().split(",")
    files = sorted((ROOT / "conf" / "variant" / "language").glob("*.yaml"))
    assert methods[0] == "base" and sorted(methods[1:]) == [f"language/{path.stem}" for path in files]
    for task in params.task.split(","):
        for method in methods:
            config = configured([f"variant={method}", f"task={task}", f"model={params.model}", "experiment=language"])
            run_config.validate(config)
            variant = make("variant", config.variant)
            steps = total_steps(config.data.limit, config.train, variant.trains)
            assert steps == (0 if method == "base" else config.train.max_steps)
            variant.plan(steps)


def test_the_experiment_of_kinds_has_one_run_of_each(configured):
    params = OmegaConf.load(ROOT / "conf" / "experiment" / "kinds.yaml").hydra.sweeper.params
    choices = params.variant.strip().split(",")
    assert sorted(choices) == sorted(f"kinds/{kind}" for kind in kinds.KINDS)
    for choice in choices:
        config = configured([f"variant={choice}", "experiment=kinds"])
        run_config.validate(config)
        assert (config.task.get("kind") or kinds.DEFAULT) == choice.removeprefix("kinds/")
        assert {*config.task.metrics} <= {*kinds._class(config.task.get("kind")).metrics}
