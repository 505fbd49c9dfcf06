"""The trainer knows no method: not by name, not by class, not by a comparison."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.variants.found import all_variants

FILES = [*sorted(Path(ROOT, "trainer").rglob("*.py")), ROOT / "train.py"]
# Words that are also the names of methods.
ENGLISH = {"allocated", "base", "masked", "full", "head", "peft", "sparse", "template", "incremental"}
KNOWN = {"lora", "adalora", "sora", "increlora", "svft", "svdiff", "lora_xs", "pissa", "olora", "milora", "shira"} | {
    "bitfit", "dylora", "rosa", "relora", "elalora", "spiel", "dora"
}  # fmt: skip


@functools.cache
def names() -> set[str]:
    """What methods are called: their files, their classes, their `name`."""
    stems = {path.stem for path in Path(ROOT, "variants").glob("*.py") if not path.stem.startswith("_")}
    classes = all_variants()
    called = {cls.__name__.lower() for cls in classes} | {cls.__dataclass_fields__["name"].default for cls in classes}
    return (stems | called | KNOWN) - ENGLISH - {""}


def knows(source: str) -> list[str]:
    """What in `source` tells methods apart. The module's docstring may show how one is called."""
    tree = ast.parse(source)
    text = source.replace(ast.get_docstring(tree, clean=False) or "\0", "")
    pattern = rf"(?<![a-z0-9_])({'|'.join(sorted(map(re.escape, names())))})(?![a-z0-9_])"
    found = [f"names {word}" for word in re.findall(pattern, text, re.IGNORECASE)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            wanted = [m for m in modules if re.fullmatch(r"variants(\.(?!core\b).*)?", m)]
            found += [f"imports from {module}" for module in wanted]
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            literal = any(isinstance(c, ast.Constant) and isinstance(c.value, str) for s in sides for c in ast.walk(s))
            about = [ast.unparse(side) for side in sides if re.search(r"variant\S*(name|_target_)", ast.unparse(side))]
            found += [f"compares {side}" for side in about if literal]
        elif isinstance(node, ast.Match) and "variant" in ast.unparse(node.subject):
            found.append(f"matches {ast.unparse(node.subject)}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_the_trainer_knows_a_method(path: Path) -> None:
    assert knows(path.read_text()) == []


def test_names_are_those_of_the_files_that_are_there() -> None:
    assert {"lora", "adalora", "increlora", "sora", "svft", "lora_xs", "bitfit", "shira"} <= names()
    assert not names() & ENGLISH


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = 1  # AdaLoRA prunes here", ["names AdaLoRA"]),
        ('frozen = ["lora_xs"]', ["names lora_xs"]),
        ('"""python train.py variant=lora"""\nx = 1', []),
        ("from variants.sparse import SparseLoRA", ["names SparseLoRA", "imports from variants.sparse"]),
        ("import variants.full as methods", ["imports from variants.full"]),
        ("from variants import full", ["imports from variants"]),
        ("from variants.core.variant import Variant", []),
        ('if config.variant.name == "full": pass', ["compares config.variant.name"]),
        ('ok = variant.name in ("head", "full")', ["compares variant.name"]),
        ('ok = "full" in config.variant._target_', ["compares config.variant._target_"]),
        ('match variant.name:\n    case "full":\n        pass', ["matches variant.name"]),
        ("ok = type(variant).on_train_end is not Variant.on_train_end", []),
        ("color = explore(sorafenib)", []),
    ],
)
def test_what_would_be_noticed(source: str, found: list[str]) -> None:
    assert knows(source) == found
