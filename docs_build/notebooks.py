"""A notebook as a page: its text, code and outputs as they were saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def page(name: str) -> str:
    """The Markdown of `notebooks/NAME.ipynb`."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    return "\n\n".join(part for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for part in _cell(cell))


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield text
        return
    yield f"```python\n{text}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield f'<img alt="what this cell draws" src="data:image/png;base64,{data["image/png"].strip()}">'
        elif said := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
            yield f"```text\n{said}\n```"
