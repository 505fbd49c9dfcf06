"""The installed package: a wheel adds one name to an environment, and its command works in any folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, tiny_run
from trainer.sweeps.plan import plan


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs. The wheel is built from a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in files:
        if not name.startswith(("tests/", "runs/", "docs/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def call(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Python in an empty folder with the package. Its output, and what it wrote to standard error."""

    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    return run


def test_it_adds_one_name_to_an_environment(installed):
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"loratory"}
    assert (installed / "loratory" / "_suite" / "conf" / "config.yaml").is_file()
    assert (installed / "loratory" / "py.typed").is_file()


def test_the_library_leaves_names_of_other_code_alone(call, tmp_path):
    for name in ("analysis.py", "train.py", "weights.py"):
        (tmp_path / name).write_text("MINE = True\n")
    (tmp_path / "mine.py").write_text(
        "import sys\nimport loratory\nassert 'torch' not in sys.modules\n"
        "from loratory import AdaLoRA, LoRA\nimport analysis, train, weights\n"
        "print(analysis.MINE, train.MINE, weights.MINE, LoRA.__name__, AdaLoRA.__module__, loratory.__file__)\n"
    )
    out, _ = call("mine.py")
    assert out.startswith("True True True LoRA variants.adalora ") and str(ROOT) not in out


def test_a_module_of_other_code_with_the_name_of_a_package_is_named(call, tmp_path):
    (tmp_path / "trainer.py").write_text("")
    _, error = call("-c", "from loratory import LoRA", code=1)
    hidden = tmp_path / "trainer.py"
    assert error.splitlines()[-1] == (
        f"ImportError: loratory: a module 'trainer' of other code, {hidden}, hides the suite's: rename it"
    )


@pytest.mark.slow
def test_the_command_trains_and_tabulates_in_any_folder_as_the_checkout_does(
    call, tmp_path, tiny_model, tiny_task, configured
):
    (tmp_path / "mine.py").write_text("from variants.lora import LoRA\n\n\nclass Mine(LoRA):\n    pass\n")
    (tmp_path / "analysis.py").write_text("raise RuntimeError('the suite has its own')\n")
    own = tmp_path / "conf" / "variant" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("_target_: mine.Mine\nname: mine\n")
    short = [*tiny_run(tiny_model, tiny_task, Path("here")), "train.max_steps=2", "runs_dir=runs"]
    call("-m", "loratory", "train", "-m", "variant=lora,mine", *short)
    found = {json.loads(path.read_text())["variant"]: path for path in tmp_path.glob("runs/test/*/record.json")}
    assert set(found) == {"lora", "mine"}
    here = plan(configured(["variant=lora", *short]))
    record = json.loads(found["lora"].read_text())
    assert (record["run_id"], record["code.variant"]) == (here.run_id, here.code["variant"])
    assert "git.commit" not in record and record["versions.loratory"]
    table, _ = call("-m", "loratory", "table", "runs/test")
    assert "| lora " in table and "| mine " in table


def test_a_config_with_the_name_of_the_suites_is_refused(call, tmp_path):
    own = tmp_path / "conf" / "variant" / "lora.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("_target_: mine.Mine\n")
    _, error = call("-m", "loratory", "train", "variant=lora", code=1)
    assert error == "error: conf/variant/lora.yaml: the suite has a config of this name; allowed: another name\n"


def test_its_help_lists_all_verbs_as_they_are_typed(call):
    out, _ = call("-m", "loratory", "--help")
    assert all(f"\n    {verb} " in out for verb in ("table", "compare", "export", "predict"))
    out, _ = call("-m", "loratory", "table", "--help")
    assert "\n  loratory table runs/" in out and "python -m" not in out
