"""The hash of a class's code: what changes it, and what does not."""

from __future__ import annotations

import ast
import importlib
import shutil
import sys

import pytest

from tests.conftest import ROOT
from trainer import class_source, code_hash

MINE = "lab_methods.method.Mine"


def hashed(package, file: str, text: str) -> str | None:
    (package / file).write_text(text)
    class_source.read_module.cache_clear()
    return code_hash.of(MINE)


def test_the_hash_follows_the_code_of_the_class_and_of_the_modules_of_its_own(package):
    method, scores = (package / "method.py").read_text(), (package / "scores.py").read_text()
    before = code_hash.of(MINE)
    assert hashed(package, "scores.py", scores.replace("return x", "return -x")) != before
    assert hashed(package, "scores.py", scores) == before
    assert hashed(package, "method.py", method.replace("2 *", "3 *")) != before
    (package / "unrelated.py").write_text("x = 1\n")
    assert hashed(package, "method.py", method) == before


def test_a_sweep_normalises_the_code_of_a_method_once_for_all_its_runs(package, monkeypatch):
    first = code_hash.of(MINE)
    monkeypatch.setattr(ast, "unparse", lambda node: pytest.fail("normalised again"))
    assert code_hash.of(MINE) == first


def test_comments_docstrings_and_layout_are_no_code(package):
    method = (package / "method.py").read_text()
    before = code_hash.of(MINE)
    edited = (
        method.replace("Its card.", "Another card.").replace("# no literal", "# four").replace("2 * score", "2*score")
    )
    assert edited != method and hashed(package, "method.py", edited) == before


def test_a_class_without_source_has_no_hash():
    for target in ("nowhere.at.All", "builtins.dict", "variants.lora.Missing", "plain"):
        assert code_hash.of(target) is None


def test_the_hash_is_the_same_where_a_package_hands_the_class_on(package):
    assert code_hash.of("lab_methods.Mine") == code_hash.of(MINE)


def test_modules_that_move_or_get_another_name_keep_it(package):
    before = code_hash.of(MINE)
    (package / "deep").mkdir()
    (package / "deep" / "__init__.py").touch()
    (package / "scores.py").rename(package / "deep" / "marks.py")
    method = (package / "method.py").read_text().replace("lab_methods.scores", "lab_methods.deep.marks")
    (package / "method.py").unlink()
    (package / "deep" / "own.py").write_text(method)
    class_source.read_module.cache_clear()
    assert code_hash.of("lab_methods.deep.own.Mine") == before


@pytest.mark.parametrize(
    ("now", "same"),
    [
        ("from lab_methods import scores\n", "from . import scores\n"),
        ("from lab_methods import scores\n", "import lab_methods.scores as scores\n"),
        ("from lab_methods.scores import score\n", "from .scores import score\n"),
    ],
)
def test_how_an_import_names_the_module_is_no_code(package, now, same):
    assert hashed(package, "method.py", f"{now}class Mine: ...\n") == hashed(
        package, "method.py", f"{same}class Mine: ...\n"
    )


def test_the_same_name_from_another_module_is_other_code(package):
    (package / "others.py").write_text("def score(x):\n    return -x\n")
    both = "from lab_methods.others import score as other\n" + (package / "method.py").read_text()
    before = hashed(package, "method.py", both)
    assert hashed(package, "method.py", both.replace("lab_methods.scores", "lab_methods.others")) != before
    before = hashed(package, "method.py", both + "from variants.core.masks.sources import Fisher\n")
    assert hashed(package, "method.py", both + "from variants.core.allocation.scores import Fisher\n") != before


def test_modules_that_import_each_other_have_a_hash(package):
    scores = (package / "scores.py").read_text()
    before = hashed(package, "scores.py", "from lab_methods import method\n" + scores)
    assert before != hashed(
        package, "scores.py", "from lab_methods import method\n" + scores.replace("return x", "return -x")
    )


MOVES = {
    "variants.lora": "variants.elsewhere.low_rank",
    "variants.shira": "variants.elsewhere.shira",
    "variants.core.variant": "variants.core.elsewhere.variant",
    "variants.core.adapters.adapter": "variants.core.elsewhere.adapter",
    "variants.core.adapters.sparse_delta": "variants.core.elsewhere.sparse_delta",
}
TARGETS = ("variants.lora.LoRA", "variants.shira.SHiRA", "variants.adalora.AdaLoRA", "variants.dora.DoRA")


def test_modules_of_the_suite_that_move_change_no_method(tmp_path, monkeypatch):
    """As after `git mv` of five modules, the imports adapted."""
    before = [code_hash.of(target) for target in TARGETS]
    shutil.copytree(ROOT / "variants", tmp_path / "variants", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (tmp_path / "variants").rglob("*.py"):
        text = path.read_text()
        for old, new in MOVES.items():
            text = text.replace(f"from {old} import", f"from {new} import")
        path.write_text(text)
    for old, new in MOVES.items():
        place = tmp_path / f"{new.replace('.', '/')}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{old.replace('.', '/')}.py").rename(place)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "variants", raising=False)
    importlib.invalidate_caches()
    class_source.read_module.cache_clear()
    modules = (target.rpartition(".") for target in TARGETS)
    try:
        assert [code_hash.of(f"{MOVES.get(module, module)}.{name}") for module, _, name in modules] == before
    finally:
        class_source.read_module.cache_clear()


def test_a_hash_of_the_first_version_is_known_while_the_code_is_the_same(package):
    (package / "method.py").write_text("from lab_methods import scores\n\n\nclass Mine:\n    x = scores.score(1)\n")
    class_source.read_module.cache_clear()
    recorded = "fc6c7b9689160861"
    assert code_hash.today(MINE, recorded) == code_hash.of(MINE) != recorded
    assert code_hash.today(MINE, code_hash.of(MINE)) == code_hash.of(MINE)
    assert hashed(package, "scores.py", "def score(x):\n    return -x\n") != code_hash.today(MINE, recorded) == recorded
    assert code_hash.today("nowhere.at.All", recorded) == recorded
