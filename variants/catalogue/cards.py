"""What a card says of a method, from the source of its module and the comment at the top of its YAML.

A card is the docstring of `variants/<method>.py`. A line that begins with a capitalised word and two spaces opens
a section; indented lines belong to it. A YAML that sets another method's class is a preset; the sections in its comment
replace those of the card.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf" / "variant"
COSTS = Path(__file__).parent / "costs.json"  # written by `python -m benchmarks.count`
FAMILIES = ("low rank", "adaptive ranks", "sparse", "singular basis", "reference", "library")
_ARXIV = re.compile(r"arXiv:? ?(\d{4}\.\d{4,5})")


@dataclass(frozen=True)
class Method:
    """A file of `conf/variant`.

    name: what `variant=` takes. title: its name in the field.
    module: the file of its class, below the project's folder. card: the docstring of that file.
    comment: that of a preset's YAML; empty for others.
    sections: by name, in one line each.
    """

    name: str
    title: str
    module: str
    card: str
    comment: str
    sections: Mapping[str, str]

    @property
    def family(self) -> str:
        return self.sections["Family"]

    @property
    def paper(self) -> str:
        """The arXiv number of the method's paper; empty if there is no such paper."""
        found = _ARXIV.search(self._source)
        return found[1] if found else ""

    @property
    def year(self) -> str:
        found = re.search(r"\b(?:19|20)\d\d\b", _ARXIV.sub("", self._source))
        return found[0] if found else ""

    @property
    def costs(self) -> tuple[str, str]:
        """Trained parameters and matrix products of a training step, divided by LoRA's; empty where not counted."""
        row = _costs().get(self.name, {})
        return tuple(f"{row[key]:g}" if key in row else "" for key in ("trained", "products"))  # type: ignore[return-value]

    @property
    def passes(self) -> str:
        """The passes beside the run's steps: the card's Passes, or what its Hooks say of those before training."""
        if "Passes" in self.sections:
            return self.sections["Passes"]
        found = re.search(r"before_training (.+?)(?= (?:on_\w+|penalty|attach) |$)", self.sections["Hooks"])
        return found[1] if found else ""

    @property
    def checks(self) -> dict[str, list[str]]:
        """{what it is checked against: ["test_file.py::test_function", …]}; no tests for the contract alone.

        A preset that names none has those of its class with other settings, and they are called so.
        """
        found: dict[str, list[str]] = {}
        borrowed = (
            f", as `{Path(self.module).stem}`" if self.comment and "Checked" not in sections(self.comment) else ""
        )
        for part in self.sections["Checked"].split("; "):
            kind, _, names = part.partition(": ")
            file, tests = "", found.setdefault(f"{kind}{borrowed}", [])
            for name in filter(None, names.split(", ")):
                file, function = name.split() if " " in name else (file, name)
                tests.append(f"{file}.py::{function}")
        return found

    @property
    def _source(self) -> str:
        own = _ARXIV.search(self.comment)
        return self.comment if own else self.sections.get("Paper", "")


def methods(folder: Path = CONF) -> list[Method]:
    """Every file of `folder` but templates, by family and name. ValueError, in one line, where a card is short."""
    found = [_method(path) for path in sorted(folder.glob("[!_]*.yaml"))]
    return sorted(found, key=lambda method: (FAMILIES.index(method.family), method.name))


@functools.cache
def _costs() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(COSTS.read_text())
    return found


def own_card(name: str) -> str | None:
    """The card of a method whose YAML is in `conf/variant/` of the current folder, as its module is; None without."""
    file = Path("conf") / "variant" / f"{name}.yaml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    target = re.search(r"^_target_: ([\w.]+)\.\w+", text, re.MULTILINE)
    if target is None:
        return None
    module = Path(*target[1].split(".")).with_suffix(".py")
    return ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) if module.is_file() else None


def sections(card: str) -> dict[str, str]:
    """The sections of a card: {"Hooks": "none: only the parameters change in training.", …}.

    What a template says behind `# todo` is left out, so that a method whose card isn't finished can be tried.
    """
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in re.sub(r" *# todo.*", "", card).splitlines():
        if opened := re.match(r"([A-Z][\w+-]*) {2,}(\S.*)$", line):
            lines = found.setdefault(opened[1], [])
            lines.append(opened[2].strip())
        elif line.startswith("  ") and line.strip():
            lines.append(line.strip())
        else:
            lines = []
    return {name: " ".join(" ".join(text).split()) for name, text in found.items()}


def _method(path: Path) -> Method:
    node = _composed(path)
    stem = str(node["_target_"]).split(".")[1]
    module = ROOT / "variants" / f"{stem}.py"
    card = ast.get_docstring(ast.parse(module.read_text())) or ""
    comment = _comment(path.read_text()) if stem != path.stem else ""
    said = sections(card) | sections(comment)
    for name in ("Family", "Trains", "Changes", "Checked", "Hooks"):
        if name not in said:
            raise ValueError(f"{module.name}: the card has no section {name}")
    if said["Family"] not in FAMILIES:
        raise ValueError(f"{module.name}: Family {said['Family']!r}, allowed: {', '.join(FAMILIES)}")
    title = re.split(r" \(|: ", comment or card, maxsplit=1)[0]
    return Method(path.stem, title, str(module.relative_to(ROOT)), card, comment, said)


def _composed(path: Path) -> dict[str, Any]:
    """The node of a YAML with those of its defaults below it."""
    node = yaml.safe_load(path.read_text())
    node = node.get("variant", node)
    for name in node.get("defaults", ()):
        if name != "_self_":
            node = _composed(path.parent / f"{name}.yaml") | node
    return dict(node)


def _comment(text: str) -> str:
    """The comment that a YAML begins with, without `#`."""
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(head)
