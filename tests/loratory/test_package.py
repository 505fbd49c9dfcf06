"""The wheel: it adds one name to an environment, and its command does in any folder what a checkout does."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, tiny_run
from trainer.sweeps.plan import plan
from variants.core import placement

# An editable installation in this environment would offer the checkout's modules.
ALONE = """import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "").lower()]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__name__", "").lower()]
sys.path[:] = [path for path in sys.path if "__editable__" not in path]
"""
BUILT_FROM = ("loratory", "variants", "trainer", "analysis", "weights", "hydra_plugins", "conf")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel was installed into. It is built from a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "train.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(folder / "source")], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def call(site: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs Python in an empty folder beside the installed package; returns its output, errors for another exit code."""
    alone = tmp_path_factory.mktemp("alone")
    (alone / "sitecustomize.py").write_text(ALONE)

    def run(*arguments: str, code: int = 0) -> str:
        environment = {**os.environ, "PYTHONPATH": f"{alone}{os.pathsep}{site}"}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout

    return run


def theirs(folder: Path) -> None:
    """Files of other code with the names of the suite's."""
    (folder / "variants").mkdir()
    (folder / "variants" / "__init__.py").write_text("MINE = True\n")
    for name in ("trainer", "analysis", "weights", "train"):
        (folder / f"{name}.py").write_text("MINE = True\n")


def test_a_wheel_adds_one_name_to_an_environment(site: Path) -> None:
    assert {path.name.partition("-")[0] for path in site.iterdir()} == {"loratory"}
    assert (site / "loratory" / "py.typed").is_file()
    data = [path for name in ("analysis", "trainer", "variants", "conf") for path in (ROOT / name).rglob("*.*")]
    wanted = {path.relative_to(ROOT) for path in data if path.suffix in (".json", ".jinja", ".yaml", ".js", ".css")}
    assert [
        path for path in wanted if path.parts[:2] != ("conf", "rates") and not (site / "loratory" / path).is_file()
    ] == []


def test_a_script_beside_files_of_the_same_names_has_its_own_and_ours(call: Callable[..., str], tmp_path: Path) -> None:
    theirs(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import sys, loratory\n"
        "assert 'torch' not in sys.modules\n"
        "import analysis, train, trainer, variants, weights\n"
        "from loratory import AdaLoRA, LoRA\n"
        "assert all(module.MINE for module in (analysis, train, trainer, variants, weights))\n"
        "print(LoRA.__module__, AdaLoRA.__name__, loratory.__version__)\n"
    )
    assert call("mine.py").startswith("loratory.variants.lora AdaLoRA 0.")


def test_its_runs_are_those_of_a_checkout(
    call: Callable[..., str], tmp_path: Path, tiny_model, tiny_task, configured
) -> None:
    theirs(tmp_path)
    (tmp_path / "mine.py").write_text("from variants.lora import LoRA\n\n\nclass Mine(LoRA):\n    pass\n")
    (tmp_path / "conf" / "variant").mkdir(parents=True)
    (tmp_path / "conf" / "variant" / "mine.yaml").write_text("_target_: mine.Mine\nname: mine\n")
    short = [*tiny_run(tiny_model, tiny_task, tmp_path), "train.max_steps=2", "runs_dir=runs"]
    call("-m", "loratory", "train", "-m", "variant=lora,mine", *short)
    found = {json.loads(path.read_text())["variant"]: path for path in tmp_path.glob("runs/test/*/record.json")}
    assert found.keys() == {"lora", "mine"}
    record = json.loads(found["lora"].read_text())
    here = plan(configured(["variant=lora", *short]))
    assert (record["run_id"], record["code.variant"]) == (here.run_id, here.code["variant"])
    assert record["config.variant._target_"] == "variants.lora.LoRA"
    there = plan(configured(["variant=lora", *short, f"runs_dir={tmp_path / 'runs'}"]))
    assert there.done
    table = call("-m", "loratory", "table", "runs/test")
    assert "| lora " in table and "| mine " in table


def test_a_config_with_the_name_of_one_of_the_suites_is_refused(call: Callable[..., str], tmp_path: Path) -> None:
    own = tmp_path / "conf" / "variant" / "lora.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("_target_: mine.Mine\n")
    error = call("-m", "loratory", "train", "variant=lora", code=1)
    assert error.startswith(
        f"error: {own}: the suite has a config of this name; allowed: another name, or --config-dir"
    )
    assert error.endswith(" FOLDER with a folder for configs of loratory train alone\n")


def test_a_module_with_the_name_of_one_of_the_suites_is_refused(call: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "variants").mkdir()
    (tmp_path / "variants" / "lora.py").write_text("class LoRA: pass\n")
    error = call("-m", "loratory", "train", "variant=lora", "task=movie", code=1)
    assert "variants/lora.py: the installed suite has its own variants.lora, allowed" in error
    assert "Traceback" not in error


def test_its_verbs_are_listed_as_they_are_typed(call: Callable[..., str]) -> None:
    listed = call("-m", "loratory", "--help")
    assert all(f"\n    {verb} " in listed for verb in ("train", "variants", "table", "compare", "export"))
    assert "\n  loratory table runs/demo" in call("-m", "loratory", "table", "--help")
    assert "\nadalora " in call("-m", "loratory", "variants", "list")
    assert "usage: " in call("-m", "loratory.variants", "export", "--help")


REWRITTEN = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["rewritten"]


@pytest.mark.parametrize(
    "source, expected",
    [
        ("from trainer import record\n", "from loratory.trainer import record\n"),
        (
            "def f():\n    from variants.core.step import take\n",
            "def f():\n    from loratory.variants.core.step import take\n",
        ),
        ("import trainer.record as r, os\n", "import loratory.trainer.record as r, os\n"),
        ("é = 1; from train import cli  # from trainer\n", "é = 1; from loratory.train import cli  # from trainer\n"),
        ("from trainers import x\nfrom . import trainer\n", "from trainers import x\nfrom . import trainer\n"),
    ],
)
def test_imports_are_rewritten_and_nothing_else(source: str, expected: str) -> None:
    assert REWRITTEN(source) == expected


def test_an_import_that_can_not_be_rewritten_ends_the_build() -> None:
    with pytest.raises(ValueError, match=r"m\.py:1: import trainer.record, allowed: from … import"):
        REWRITTEN("import trainer.record\n", "m.py")


def test_commands_in_texts_are_those_of_the_installed_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = ["python train.py -m", "python -m analysis sync", "python -m weights predict", "python -m variants list"]
    assert [placement.typed(text) for text in commands] == commands
    monkeypatch.setattr(placement, "PREFIX", "loratory.")
    assert [placement.typed(text) for text in commands] == [
        "loratory train -m", "loratory sync", "loratory predict", "loratory variants list",
    ]  # fmt: skip


def test_no_text_of_the_suite_names_a_command_that_an_installed_one_has_not() -> None:
    """Texts that a user reads go through `placement.typed`, or `CommandLine` for the examples of verbs."""
    names = re.compile(r"python -m (analysis|weights|variants)\b|make [a-z]+\b|python train\.py")
    rooms = [ROOT / name for name in ("trainer", "analysis", "weights", "variants")]
    found = []
    for path in [path for room in rooms for path in room.rglob("*.py") if names.search(path.read_text())]:
        nodes = [*ast.walk(ast.parse(path.read_text()))]
        typed = {text for node in nodes if _is_typed(node) for text in ast.walk(node)}
        said = {text for node in nodes if isinstance(node, ast.Raise | ast.Return) for text in ast.walk(node)} - typed
        texts = [node.value for node in said if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        found += [f"{path}: {text}" for text in texts if names.search(text)]
    assert found == []


def _is_typed(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "typed"
