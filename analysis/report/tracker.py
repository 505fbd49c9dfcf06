"""Reads `tracker.json`: where a dashboard shows the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.errors import message

FILENAME = "tracker.json"
_SCHEMES = ("http", "https")


def read(folder: Path) -> dict[str, Any] | str | None:
    """The entries of the file as text; the reason if it can't be used; None if there is no file.

    `url` is among them only if it is a safe link: http or https, with a host.
    """
    try:
        content = json.loads((folder / FILENAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        return f"{FILENAME}: can't be read ({message(error)})"
    if not isinstance(content, dict) or not content:
        return f"{FILENAME}: not an object with entries"
    # Nested entries are for the tracker only.
    shown = {name: value for name, value in content.items() if isinstance(value, str | int | float) and name != "url"}
    entries = {name: _text(value) for name, value in shown.items()}
    url = content.get("url")
    if url is not None:
        entries["url" if is_link(url) else "address"] = _text(url)
    return entries


def is_link(url: Any) -> bool:
    """Whether a browser may follow the link; `javascript:` and the like are refused."""
    if not isinstance(url, str) or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in _SCHEMES and bool(parts.hostname)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
