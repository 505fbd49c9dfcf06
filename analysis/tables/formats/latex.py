"""Formats a table as LaTeX with the rules of booktabs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analysis.tables.footnotes import Note
from analysis.tables.formats.markdown import one_line
from analysis.tables.sheet import Entry, Head, Section, Sheet

# The natural size, but at most the width of the page, and with the notes at most the height that a caption leaves.
_FIT = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%"
_FIT_HEIGHT = "\\resizebox*{!}{\\ifdim\\totalheight>0.9\\textheight 0.9\\textheight\\else\\totalheight\\fi}{%"


def render(sheet: Sheet, notes: Sequence[Note], caption: str, label: str) -> str:
    """A `table` environment that fits the page: caption, tabular, then the notes in small print."""
    head = ["variant", *map(_head, sheet.heads)]
    lines = [
        "% needs \\usepackage{booktabs,graphicx}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{escape(caption)}}}",
        f"\\label{{{label}}}",
        _FIT_HEIGHT,
        "\\begin{minipage}{\\linewidth}\\centering",
        _FIT,
        f"\\begin{{tabular}}{{l{'r' * len(sheet.heads)}}}",
        "\\toprule",
        " & ".join(head) + " \\\\",
    ]
    for section in sheet.sections:
        lines += ["\\midrule", *_section(section, len(head))]
    lines += ["\\bottomrule", "\\end{tabular}}", "", "\\medskip", "\\raggedright\\footnotesize"]
    lines += [f"{escape(note.text)}\\par" for note in notes]
    lines += ["\\end{minipage}}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def _head(head: Head) -> str:
    """Task, metric and checkpoint in three lines, because they are longer than the numbers."""
    parts = [escape(part) for part in (head.name, head.metric, head.reading) if part]
    if len(parts) == 1:
        return parts[0]
    return "\\shortstack[r]{" + " \\\\ ".join(parts) + "}"


def _section(section: Section, width: int) -> Iterator[str]:
    if section.title is not None:
        yield f"\\multicolumn{{{width}}}{{l}}{{\\emph{{{escape(section.title)}}}}} \\\\"
    for line in section.lines:
        # After \\\\ of the line before, a bracket or a star would be its argument.
        label = ("{}" if line.label.startswith(("[", "*")) else "") + escape(line.label)
        if section.published:
            entries = [f"\\textit{{{_number(entry.text)}}}" if entry.text else "" for entry in line.entries]
            label = f"\\textit{{{label}}}"
        else:
            entries = list(map(_entry, line.entries))
        yield " & ".join([label, *entries]) + " \\\\"


_MARKS = {"best": "\\textbf{{{}}}", "second": "\\underline{{{}}}", "": "{}"}


def _entry(entry: Entry) -> str:
    text = _MARKS[entry.mark].format(_number(entry.text))
    spread = f" $\\pm$ {_number(entry.sd)}" if entry.sd else ""
    return f"{text}{spread} ({entry.n})" if entry.n else f"{text}{spread}"


def _number(text: str) -> str:
    """A number with a minus sign; in text, - is a hyphen."""
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
        "≥": r"$\geq$",
        "≤": r"$\leq$",
    }
)


def escape(text: str) -> str:
    """`text` escaped for LaTeX, on one line."""
    # {} between two hyphens prevents a dash.
    return one_line(text).translate(_SPECIAL).replace("--", "-{}-").replace("--", "-{}-")
