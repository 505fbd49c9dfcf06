"""The catalogue as a table in a terminal and as `docs/variants.md`."""

from __future__ import annotations

from collections.abc import Sequence

from variants.bridge.methods import METHODS
from variants.catalogue.cards import FAMILIES, ROOT, Method

PAGE = ROOT / "docs" / "variants.md"
COLUMNS = ("name", "family", "paper", "year", "trains", "changes", "extra passes", "trained/lora", "products/lora")
INTRODUCTION = """\
# Methods

`python -m variants docs` writes this page from the cards in `variants/*.py` and the comments in `conf/variant/*.yaml`;
`python -m variants show NAME` prints a whole card, with equations, cost and what is known of the method. The head is
trained by every method. *Changes* says whether ranks, masks or what else a method decides change, and when; *extra
passes* are those beside the steps of the run. The cost beside LoRA is counted, not timed, at rank 8 or the settings of
its file, on one block of MiniLM's size: *trained* is the number of parameters with gradients and *products* the
arithmetic of all matrix products in a training step, both divided by LoRA's, after ranks and masks have been chosen
(`benchmarks/count.py`). Times are in [`benchmarks`](../benchmarks/README.md). — stands for none, or not counted.
"""
LIBRARY = """\
## Methods of PEFT without a file

Any method of PEFT runs by `variant=peft variant.method=…`, except for those below. `trainable_tokens` has no file:
which tokens are trained is the user's choice (`variant.targets=null +variant.options.token_indices=[…]`).
"""
CHECKS = """\
## What each method is checked against

*Released code*: stored runs of the authors' code, reproduced to 1e-9. *PEFT*: the same method of Hugging Face PEFT.
*Written out*: the method once more in the test, in plain dense tensors or as a worked example. A method's name: the
method that it must equal bit for bit where both coincide. A preset with `as …` relies on the tests of its class, which
have other settings. Every method keeps [the contract](../variants/README.md#what-the-contract-checks) as
well. Tests are in `tests/variants/`.
"""


def rows(methods: Sequence[Method]) -> list[tuple[str, ...]]:
    """One row of COLUMNS for each method."""
    return [
        (
            m.name,
            m.family,
            m.paper,
            m.year,
            m.sections["Trains"],
            m.sections["Changes"].removeprefix("nothing"),
            m.passes,
            *m.costs,
        )
        for m in methods
    ]


def text(methods: Sequence[Method]) -> str:
    """The table with aligned columns."""
    table = [COLUMNS, *([cell or "—" for cell in row] for row in rows(methods))]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table)


def page(methods: Sequence[Method]) -> str:
    """The text of `docs/variants.md`."""
    parts = [INTRODUCTION]
    for family in FAMILIES:
        parts.append(f"## {family[0].upper()}{family[1:]}\n")
        mine = [m for m in methods if m.family == family]
        body = [
            (f"[`{m.name}`](../{m.module})", m.title, _link(m), *row[4:])
            for m, row in zip(mine, rows(mine), strict=True)
        ]
        columns = ("variant=", "method", "paper", "trains", "changes", "extra passes", "trained ÷", "products ÷")
        parts.append(_markdown(columns, body))
    parts.append(LIBRARY)
    refused = [(f"`{name}`", kind.refused) for name, kind in METHODS.items() if kind.refused]
    parts.append(_markdown(("method", "why it can't be trained here"), refused))
    parts.append(CHECKS)
    checked = [(f"`{m.name}`", kind, ", ".join(tests)) for m in methods for kind, tests in m.checks.items()]
    parts.append(_markdown(("variant=", "against", "tests"), checked))
    return "\n".join(parts)


def _link(method: Method) -> str:
    year = f", {method.year}" if method.year else ""
    return f"[{method.paper}](https://arxiv.org/abs/{method.paper}){year}" if method.paper else ""


def _markdown(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    table = [columns, ["---"] * len(columns), *([cell or "—" for cell in row] for row in body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in table) + "\n"
