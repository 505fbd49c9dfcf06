"""The reference of settings: the schema in `trainer/config.py`, and the fields of the files in `conf/`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from docs_build.fields import Field, of_class, resolved, shown
from docs_build.markdown import code, table
from trainer import config

ROOT = Path(__file__).parents[1]
SCHEMAS = {
    "data": config.Data,
    "optim": config.Optim,
    "train": config.Train,
    "machine": config.Machine,
    "glue": config.Glue,
}
GROUPS = {
    "task": "A task is a file of `conf/task`. Those that are packaged set what they are; yours are `task=file`, "
    "`images`, `sounds`, `speech` and `ratings`, see [data and models of your own](../data_and_models.md).",
    "model": "A backbone is a file of `conf/model`; yours is `model=folder` or `model=hub`.",
    "tracker": "A dashboard is a file of `conf/tracker`, see [dashboards](../dashboards.md).",
    "hydra/launcher": "A launcher is a file of `conf/hydra/launcher`, see "
    "[sweeps](../sweeps.md#launchers-and-searches).",
}
# Types of fields that are null in their file, where no class of the suite has them.
TYPES = {
    "task.kind": "str",
    "task.positive": "str",
    "task.loss_on": "str",
    "task.max_new_tokens": "int",
    "task.stride": "int",
    "task.max_answer_tokens": "int",
    "task.null_threshold": "float",
    "task.retention": "str",
    "task.retention_path": "str",
    "task.relevant": "float",
    "task.set": "str",
    "model.dropout": "float",
    "model.keep_head": "bool",
    "model.quantize": "str",
    "model.path": "str",
    "model.id": "str",
    "hydra.launcher.timeout": "float",
    "hydra.launcher.partition": "str",
    "hydra.launcher.account": "str",
    "hydra.launcher.qos": "str",
    "hydra.launcher.constraint": "str",
    "hydra.launcher.exclude": "str",
    "hydra.launcher.setup": "list",
    "hydra.launcher.ray.init.address": "str",
}
INTRODUCTION = """\
# Settings

Every field of a run's config: what is typed as `name=value` behind `python train.py`. A misspelt name is refused with
the names that exist, a value with what is allowed. An empty default must be given. `python train.py … --cfg job` prints
all values of a run. The settings of a method, `variant.…`, are in the gallery: [methods](../variants.md).
"""


def page() -> str:
    """The text of the page."""
    parts = [INTRODUCTION, "## The run\n", _table(run())]
    for group, cls in SCHEMAS.items():
        parts += [f"## `{group}`\n", (cls.__doc__ or "").strip() + "\n", _table(of_schema(group))]
    for group, text in GROUPS.items():
        parts += [f"## `{group}`\n", text + "\n", _in_files(group)]
    return "\n".join(parts)


def run() -> list[Field]:
    """The fields of the config itself, without its groups."""
    return [f for f in of_class(config.Config) if f.name not in SCHEMAS]


def of_schema(group: str) -> list[Field]:
    """The fields of a typed group; the defaults of `optim` are those of its file."""
    path = ROOT / "conf" / group / "adamw.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return [
        Field(f"{group}.{f.name}", f.type, shown(values[f.name]) if f.name in values else f.default, f.meaning)
        for f in of_class(SCHEMAS[group])
    ]


def in_files(group: str) -> dict[str, tuple[Field, list[str]]]:
    """The fields that the files of a group of `conf/` set, each with the names of the files that have it."""
    found: dict[str, tuple[Field, list[str]]] = {}
    for path in sorted((ROOT / "conf" / group).rglob("*.yaml"), key=lambda p: (p.stem != "file", p)):
        name = path.relative_to(ROOT / "conf" / group).with_suffix("").as_posix()
        for f in _of_file(path, group):
            before, files = found.get(f.name, (f, []))
            better = f if f.meaning and (not before.meaning or before.meaning.startswith("see ")) else before
            found[f.name] = (better, [*files, name])
    return found


def undescribed() -> list[str]:
    """Names of fields without a meaning."""
    fields = [*run(), *(f for group in SCHEMAS for f in of_schema(group))]
    fields += [f for group in GROUPS for f, _ in in_files(group).values()]
    return [f.name for f in fields if not f.meaning]


def given_otherwise() -> list[str]:
    """Fields of `TYPES` to which a file gives a value of another type."""
    found = []
    for group in GROUPS:
        for path in sorted((ROOT / "conf" / group).rglob("*.yaml")):
            node = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            for name, value in _leaves(node, whole="hydra" not in group):
                field, kind = f"{group.replace('/', '.')}.{name}", type(value).__name__
                if value not in (None, "???") and TYPES.get(field, kind) != kind:
                    found.append(f"{field}: {kind} in {path.name}, {TYPES[field]} in TYPES")
    return found


def _of_file(path: Path, group: str) -> Iterator[Field]:
    text = path.read_text(encoding="utf-8")
    node = yaml.safe_load(text) or {}
    if "@package _global_" in text:
        return  # it sets fields of other groups
    start = group.replace("/", ".")
    for name, value in _leaves(node, whole="hydra" not in group):
        cls = _class_of(node, name)
        known = {f.name: f for f in of_class(cls)}.get(name.rpartition(".")[2]) if cls else None
        comment = _comment(text, name)
        of_value = type(value).__name__ if value not in (None, "???") else TYPES.get(f"{start}.{name}", "")
        kind = known.type if known else of_value
        yield Field(f"{start}.{name}", kind, shown(value), comment or (known.meaning if known else ""))


def _leaves(node: dict[str, Any], start: str = "", *, whole: bool) -> Iterator[tuple[str, Any]]:
    """The fields below a node by dotted name. whole: whether a mapping that isn't a class's is one value."""
    for name, value in node.items():
        if name in ("_target_", "defaults"):
            continue
        if isinstance(value, dict) and ("_target_" in value or not whole) and value:
            yield from _leaves(value, f"{start}{name}.", whole=whole)
        else:
            yield f"{start}{name}", value


def _class_of(node: dict[str, Any], name: str) -> type | None:
    for part in name.split(".")[:-1]:
        node = node[part]
    return resolved(node["_target_"]) if str(node.get("_target_", "")).startswith("trainer.") else None


def _comment(text: str, name: str) -> str:
    """The comment behind a field, which is indented where it lies in another."""
    indent = " +" if "." in name else ""
    found = re.search(rf"^{indent}{name.rpartition('.')[2]}:.*? # ?(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _in_files(group: str) -> str:
    rows = []
    for f, files in in_files(group).values():
        where = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        rows.append((code(f.name), f.type, code(f.default) if len(files) == 1 else "", f.meaning, where))
    return table(("setting", "type", "default", "meaning", "in"), rows)


def _table(fields: list[Field]) -> str:
    rows = [(code(f.name), f.type, code(f.default), f.meaning) for f in fields]
    return table(("setting", "type", "default", "meaning"), rows)
