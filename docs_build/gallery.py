"""The gallery of methods, from their cards and the files of `conf/variant`: one page for each family."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import yaml

from docs_build.fields import Field, of_class, resolved, shown
from docs_build.markdown import code, table
from variants.catalogue.cards import CONF, FAMILIES, ROOT, Method, methods

INTRODUCTION = {
    "low rank": "Methods whose update is a product of two thin matrices, at ranks that stay as they are set.",
    "adaptive ranks": "Methods that decide the rank of each layer: before, in or after training.",
    "sparse": "Methods that train some entries of the weights, or of the factors.",
    "singular basis": "Methods that train in the basis of a weight's singular vectors.",
    "reference": "What methods are compared with: the bounds.",
    "library": "Methods of Hugging Face PEFT, in the same trainer and counted alike. The card is the bridge's.",
}
# A method that a classifier of texts can't show, and the command that does.
COMMANDS = {"base": "python train.py variant=base model=smollm2 task=arithmetic"}


_methods = functools.cache(methods)  # a card is read once


def places() -> list[str]:
    """Where the pages are in the site."""
    return [_place(family) for family in FAMILIES]


def pages() -> dict[str, str]:
    """The text of each page, by its place in the site."""
    found = _methods()
    return {_place(family): _page(family, [m for m in found if m.family == family]) for family in FAMILIES}


def anchors() -> dict[Path, str]:
    """Where each method's file is described."""
    own = [m for m in _methods() if not m.comment]
    return {ROOT / m.module: f"{_place(m.family)}#{_anchor(m.name)}" for m in own}


def command(method: Method) -> str:
    """A command that runs the method as it is set."""
    return COMMANDS.get(method.name, f"python train.py variant={method.name} task=movie")


def settings(method: Method) -> list[Field]:
    """The settings of a method: a value of its file, and the meaning that file, class or the base class gives."""
    path = CONF / f"{method.name}.yaml"
    node, said = _composed(path)
    meanings = {f.name: f for f in of_class(resolved(str(node["_target_"])))}
    found = []
    for name, value in node.items():
        if name not in ("_target_", "defaults"):
            known = meanings.get(name)
            meaning = said.get(name) or (known.meaning if known else "")
            found.append(Field(name, known.type if known else "", shown(value), meaning))
    return found


def _composed(path: Path) -> tuple[dict[str, object], dict[str, str]]:
    """The node of a file with those of its defaults below it, and the comments behind its fields."""
    text = path.read_text(encoding="utf-8")
    node = yaml.safe_load(text)
    node = node.get("variant", node)
    said = {m[1]: m[2] for m in re.finditer(r"^ *(\w+):.*? # ?(.+)$", text, re.MULTILINE)}
    for name in node.get("defaults", ()):
        if name != "_self_":
            below, meanings = _composed(path.parent / f"{name}.yaml")
            node, said = below | node, meanings | said
    return node, said


def _place(family: str) -> str:
    return f"methods/{family.replace(' ', '_')}.md"


def _anchor(name: str) -> str:
    return name.replace("_", "-")


def _page(family: str, found: list[Method]) -> str:
    parts = [
        f"# {family[0].upper()}{family[1:]}\n\n{INTRODUCTION[family]} [All methods in one table](../variants.md).\n"
    ]
    cards: set[str] = set()
    for method in found:
        parts.append(_entry(method, with_card=method.module not in cards))
        cards.add(method.module)
    return "\n".join(parts)


def _entry(method: Method, *, with_card: bool) -> str:
    paper = f"[arXiv {method.paper}](https://arxiv.org/abs/{method.paper})" if method.paper else ""
    checks = "; ".join(
        f"{kind} ({', '.join(f'`{test}`' for test in tests)})" if tests else kind
        for kind, tests in method.checks.items()
    )
    trained, products = method.costs
    facts = [
        ("paper", ", ".join(filter(None, (paper, method.year)))),
        ("trains", method.sections["Trains"]),
        ("changes", method.sections["Changes"]),
        ("extra passes", method.passes),
        ("checked against", checks),
        ("beside LoRA", f"{trained} × the trained parameters, {products} × the products of a step" if trained else ""),
    ]
    lines = [f"## {method.title} {{#{_anchor(method.name)}}}\n", f"```\n{command(method)}\n```\n"]
    lines.append("\n".join(f"- **{name}**: {value}" for name, value in facts if value) + "\n")
    if method.comment:
        lines.append(f"```text\n{method.comment.rstrip()}\n```\n")
    rows = [(code(f"variant.{f.name}"), code(f.default), f.type, f.meaning) for f in settings(method)]
    lines.append(_folded("Settings", table(("setting", "default", "type", "meaning"), rows)))
    if with_card:
        lines.append(_folded(f"Card: `{method.module}`", f"```text\n{method.card.rstrip()}\n```\n"))
    return "\n".join(lines)


def _folded(title: str, text: str) -> str:
    """A part of a page that a click opens."""
    body = "\n".join(f"    {line}".rstrip() for line in text.splitlines())
    return f'??? note "{title}"\n\n{body}\n'
