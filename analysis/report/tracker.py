"""`tracker.json`: where a run can be seen on a dashboard, if one watched it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.errors import message

FILENAME = "tracker.json"
_SCHEMES = ("http", "https")


def read(folder: Path) -> dict[str, Any] | str | None:
    """What the file says of the run, each value as text; why it can't be used; or None where there is none.

    `url` is there only where it is one that a browser may follow: http or https, with a host.
    """
    try:
        content = json.loads((folder / FILENAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        return f"{FILENAME}: can't be read ({message(error)})"
    if not isinstance(content, dict) or not content:
        return f"{FILENAME}: not an object with entries"
    # What is deeper is the tracker's own book-keeping.
    shown = {name: value for name, value in content.items() if isinstance(value, str | int | float) and name != "url"}
    found = {name: _text(value) for name, value in shown.items()}
    url = content.get("url")
    if url is not None:
        found["url" if is_link(url) else "address"] = _text(url)
    return found


def is_link(url: Any) -> bool:
    """Whether a browser may follow it: `javascript:` and the like it may not."""
    if not isinstance(url, str) or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in _SCHEMES and bool(parts.hostname)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
