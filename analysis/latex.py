"""A table as LaTeX, with booktabs' rules."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.grid import COSTS, Cell, Column, Grid
from analysis.markdown import one_line
from analysis.notes import Note


def render(grid: Grid, notes: Sequence[Note]) -> str:
    """A `table` environment: the tabular, then the notes in small print."""
    head = ["variant", *map(_header, grid.columns), *(escape(cost.header) for cost in COSTS)]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        "\\toprule",
        " & ".join(head) + " \\\\",
        "\\midrule",
    ]
    for place, row in enumerate(grid.rows):
        # Behind the \\\\ of the line before, a bracket or a star would belong to it.
        line = [("{}" if row.label.startswith(("[", "*")) else "") + escape(row.label)]
        for column, cell in zip(grid.columns, grid.cells[place], strict=True):
            line.append(_cell(cell, place in column.best))
        for cost, value in zip(COSTS, grid.costs[place], strict=True):
            line.append("" if value is None else cost.text(value))
        lines.append(" & ".join(line) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}", "", "\\medskip"]
    lines += ["\\begin{minipage}{\\linewidth}\\footnotesize"]
    lines += [f"{escape(note.text)}\\par" for note in notes]
    lines += ["\\end{minipage}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def _header(column: Column) -> str:
    """Task, metric and checkpoint one below the other: they are longer than the numbers."""
    parts = [escape(part) for part in (column.task, column.metric, column.reading) if part]
    if len(parts) == 1:
        return parts[0]
    return "\\shortstack[r]{" + " \\\\ ".join(parts) + "}"


def _cell(cell: Cell, best: bool) -> str:
    if not cell.n:
        return ""
    mean = _number(cell.mean_text)
    spread = f" $\\pm$ {_number(cell.sd_text)}" if cell.sd_text else ""
    if best:
        mean = f"\\textbf{{{mean}}}"
    return f"{mean}{spread} ({cell.n})"


def _number(text: str) -> str:
    """A minus in text is a hyphen."""
    return f"$-${text[1:]}" if text.startswith("-") else text


_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "|": r"\textbar{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "×": r"$\times$",
        "…": r"\ldots{}",
    }
)


def escape(text: str) -> str:
    """`text` as LaTeX prints it letter by letter, on one line."""
    # Two hyphens are two hyphens, not a dash.
    return one_line(text).translate(_SPECIAL).replace("--", "-{}-").replace("--", "-{}-")
