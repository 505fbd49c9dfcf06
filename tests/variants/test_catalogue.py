"""The catalogue: every method is in it, it agrees with the classes and the tests, and the page is up to date."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.variants.found import CONF, all_variants
from variants.catalogue import cards
from variants.catalogue.cards import Method, methods
from variants.catalogue.cli import main
from variants.catalogue.tables import PAGE, page
from variants.core.variant import Variant

METHODS = methods()
BY_NAME = {method.name: method for method in METHODS}
DECIDES = ("before_training", "on_gradients", "on_update")  # a method that changes itself overrides one of these
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def classes(method: Method) -> list[type[Variant]]:
    module = method.module.removesuffix(".py").replace("/", ".")
    return [cls for cls in all_variants() if cls.__module__ == module]


@functools.cache
def functions(file: Path) -> dict[str, str]:
    """The functions of a file by name, with their source."""
    source = file.read_text()
    return {n.name: ast.unparse(n) for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}


def test_every_file_but_templates_is_a_method_and_every_class_has_one() -> None:
    assert sorted(BY_NAME) == sorted(path.stem for path in CONF.glob("*.yaml") if not path.stem.startswith("_"))
    modules = {f"variants/{cls.__module__.partition('.')[2]}.py" for cls in all_variants()}
    assert {method.module for method in METHODS} == {name for name in modules if not name.startswith("variants/_")}


@every_method
def test_a_card_names_paper_and_year_or_is_of_no_single_paper(method: Method) -> None:
    assert bool(method.paper) == bool(method.year)
    without = method.family in ("reference", "library") or "Sources" in method.sections
    assert method.paper or without, "neither a section Paper with an arXiv number nor Sources"


@every_method
def test_what_changes_is_said_exactly_where_a_hook_changes_it(method: Method) -> None:
    if method.comment:  # a preset's settings may leave a hook of its class without effect
        return
    changing = any(getattr(cls, hook) is not getattr(Variant, hook) for cls in classes(method) for hook in DECIDES)
    assert (method.sections["Changes"] != "nothing") == changing
    makes = any(cls.before_training is not Variant.before_training for cls in classes(method))
    may = any(cls.hold_passes is not Variant.hold_passes for cls in classes(method))  # as its settings decide
    assert makes <= bool(method.passes) <= (makes or may)


@every_method
def test_the_named_checks_are_tests_that_there_are_and_use_what_they_are_said_to(method: Method) -> None:
    assert method.checks
    for kind, names in method.checks.items():
        assert bool(names) == (kind != "the contract alone")
        for name in names:
            file, _, function = name.partition("::")
            source = functions(ROOT / "tests" / "variants" / file).get(function)
            assert source, f"there is no {name}"
            if kind.startswith(("released code", "stored run")):
                called = [
                    functions(ROOT / "tests" / "variants" / file).get(n, "") for n in re.findall(r"\b(\w+)\(", source)
                ]
                assert "oracles." in "".join([source, *called]), f"{name} uses no stored run"
            elif kind == "PEFT" and "importorskip" not in source:
                assert "oracles.load('eva_peft')" in source, f"{name} uses no PEFT"


def test_every_test_against_a_stored_run_stands_behind_a_method() -> None:
    named = {name.partition("::")[0] for method in METHODS for names in method.checks.values() for name in names}
    folder = ROOT / "tests" / "variants"
    using = {p.name for p in folder.glob("test_*.py") if any("oracles.load(" in s for s in functions(p).values())}
    assert using - {"test_decay.py", "test_catalogue.py"} <= named


def test_the_page_is_what_the_cards_say() -> None:
    assert PAGE.read_text() == page(METHODS), "write it anew: python -m variants docs"


@pytest.mark.parametrize(
    ("name", "paper", "year", "passes"),
    [
        ("adalora", "2303.10512", "2023", ""),
        ("gora", "2502.12171", "2025", "32 steps forward and backward before training (`batches`)"),
        ("gps", "2312.10136", "2024", "8 steps forward and backward before training (`batches`)"),
        ("lota", "2406.16797", "2024", ""),  # of the preset's comment
        ("para", "2604.27796", "2026", ""),
        ("random_masking", "2405.02596", "2024", ""),
        ("full", "", "", ""),
    ],
)
def test_what_a_card_says(name: str, paper: str, year: str, passes: str) -> None:
    method = BY_NAME[name]
    assert (method.paper, method.year, method.passes) == (paper, year, passes)


@every_method
def test_passes_are_said_with_the_numbers_of_the_file(method: Method) -> None:
    node = cards._composed(CONF / f"{method.name}.yaml")
    for number, field in re.findall(r"(\d[\d,]*) [^`]*?\(`(\w+)`\)", method.passes):
        assert int(number.replace(",", "")) == node[field]


def test_costs_stand_beside_lora_s() -> None:
    assert BY_NAME["lora"].costs == ("1", "1") and BY_NAME["base"].costs == ("", "")
    trained, products = BY_NAME["full"].costs
    assert float(trained) > 10 and float(products) > 1


def test_the_page_says_why_a_method_of_peft_s_can_t_be_trained() -> None:
    assert "| `xlora` | it mixes trained adapters |" in PAGE.read_text()


def test_a_preset_says_whose_checks_it_relies_on() -> None:
    assert list(BY_NAME["lota"].checks) == ["released code, as `lt_sft`"]
    assert list(BY_NAME["para"].checks) == ["written out"]


def test_the_family_is_one_of_those_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "variants").mkdir()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"_target_": "variants.mine.Mine", "name": "mine"}))
    card = '"""Mine: a method.\n\nFamily    rank\nTrains    A\nChanges   nothing\nChecked   x\nHooks     none.\n"""\n'
    monkeypatch.setattr(cards, "ROOT", tmp_path)
    (tmp_path / "variants" / "mine.py").write_text(card)
    with pytest.raises(ValueError, match=r"^mine.py: Family 'rank', allowed: low rank, adaptive ranks, sparse, "):
        methods(tmp_path)
    (tmp_path / "variants" / "mine.py").write_text(card.replace("Trains    A\n", ""))
    with pytest.raises(ValueError, match=r"^mine.py: the card has no section Trains$"):
        methods(tmp_path)


@pytest.mark.parametrize("template", ["_template", "_template_adaptive"])
def test_the_card_of_a_copied_template_can_be_read(template: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "variants").mkdir()
    shutil.copy(ROOT / "variants" / f"{template}.py", tmp_path / "variants" / "mine.py")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"_target_": "variants.mine.Mine", "name": "mine"}))
    monkeypatch.setattr(cards, "ROOT", tmp_path)
    (mine,) = methods(tmp_path)
    assert mine.name == "mine" and "todo" not in "".join(mine.sections.values())


def test_list_has_a_line_for_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *BY_NAME]


def test_show_prints_the_card_and_of_a_preset_its_comment_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "sora"]) == 0
    assert capsys.readouterr().out.rstrip() == inspect.getdoc(importlib.import_module("variants.sora"))
    assert main(["show", "lota"]) == 0
    assert capsys.readouterr().out.startswith("LoTA (Panda et al. 2024, arXiv 2406.16797): ")


def test_the_card_of_a_method_in_the_current_folder_is_shown(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "variant").mkdir(parents=True)
    (tmp_path / "conf" / "variant" / "mine.yaml").write_text("_target_: own.mine.Mine\n")
    assert main(["show", "mine"]) == 2
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").write_text('"""Mine: LoRA."""\n')
    capsys.readouterr()
    assert main(["show", "mine"]) == 0 and capsys.readouterr().out == "Mine: LoRA.\n"


def test_an_unknown_name_is_one_line_with_what_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "lorra"]) == 2
    shown = capsys.readouterr()
    assert not shown.out and re.fullmatch(r"variants: name: 'lorra', allowed: adalora, [^\n]*svft[^\n]*\n", shown.err)


def test_the_command_imports_no_method() -> None:
    code = "import sys; from variants.catalogue.cli import main; main(['list']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


def test_a_reader_may_close_the_pipe_early_and_a_terminal_may_have_another_encoding() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "variants", "show", "lora"]
    called = subprocess.run(command, cwd=ROOT, env=environment, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (called.returncode, called.stderr) == (0, b"")
