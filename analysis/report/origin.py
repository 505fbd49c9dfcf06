"""The code, libraries and machines of the runs, and the command that makes the page again."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.records import settings
from analysis.text.phrases import runs as counted
from analysis.text.sorting import natural
from trainer.record import Record
from variants.core.placement import typed

# The packages that affect the page.
PACKAGES = ("loratory", "jinja2", "matplotlib", "numpy", "pandas", "pyarrow", "safetensors", "scipy", "scikit-posthocs")


@dataclass(frozen=True)
class Maker:
    """The command and the code that make the page. commit: empty outside of a checkout."""

    command: str
    commit: str
    dirty: bool
    versions: tuple[tuple[str, str], ...]


def maker(arguments: Sequence[str]) -> Maker:
    """The maker of a page. arguments: those of `python -m analysis`."""
    commit, dirty = _git()
    return Maker(typed(f"python -m analysis {shlex.join(arguments)}"), commit, dirty, tuple(_versions()))


def made_with(records: Iterable[Record]) -> list[tuple[str, str]]:
    """Code, libraries and machines of the runs, by name; with numbers of runs if they differ."""
    values: dict[str, Counter[str]] = {}
    total = 0
    for record in records:
        total += 1
        groups = {"git": record.git, "versions": record.versions, "hardware": record.hardware}
        for group, entries in groups.items():
            for name, value in entries.items():
                shown = value if isinstance(value, str) else settings.text(value)
                values.setdefault(f"{group}.{name}", Counter())[shown] += 1

    def text(counts: Counter[str]) -> str:
        missing = total - sum(counts.values())
        parts = sorted(counts.items(), key=lambda item: natural(item[0]))
        if len(parts) == 1 and not missing:
            return parts[0][0]
        listed = [f"{value} ({counted(n)})" for value, n in parts]
        return ", ".join([*listed, *([f"not recorded ({counted(missing)})"] if missing else [])])

    groups_in_order = ["git", "versions", "hardware"]
    order = sorted(values, key=lambda name: (groups_in_order.index(name.partition(".")[0]), natural(name)))
    return [(name, text(values[name])) for name in order]


def period(records: Iterable[Record]) -> tuple[str, str] | None:
    """The first and the last day of the runs."""
    days = [time[:10] for record in records for time in (record.started, record.finished) if time]
    return (min(days), max(days)) if days else None


def _versions() -> Iterable[tuple[str, str]]:
    yield "python", platform.python_version()
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue


def _git() -> tuple[str, bool]:
    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", __file__)  # an installed suite may lie in a checkout of other code
        return ask("rev-parse", "HEAD"), bool(ask("status", "--porcelain", "-uno"))
    except (OSError, subprocess.SubprocessError):
        return "", False
