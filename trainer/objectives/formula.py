"""A metric written as a formula of sums over examples: `correct / examples`, `exp(nll / tokens)`.

A formula is text and is stored with its predictions, so that a later reader, such as a bootstrap, can compute the
metric from other sums without the code of the kind of task. It consists of names, numbers, + − * / **, and the
functions of `FUNCTIONS`. A quotient with divisor 0 is 0, like the F1 of a class that is neither predicted nor present.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def _quotient(a: Any, b: Any) -> Any:
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    return np.divide(a, b, out=np.zeros(b.shape), where=b != 0)


def _bleu(*sums: Any) -> Any:
    """Returns sacreBLEU's corpus score, 0 to 100.

    sums: its statistics: lengths of system and reference, then the correct and the total n-grams by n.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    columns = np.broadcast_arrays(*(np.asarray(column, np.float64) for column in sums))
    found = np.empty(columns[0].shape)
    for place in np.ndindex(found.shape):
        found[place] = metric._compute_score_from_stats([int(column[place]) for column in columns]).score
    return found


def _chrf(*sums: Any) -> Any:
    """Returns sacreBLEU's chrF2, 0 to 100.

    sums: its statistics: for each order the n-grams of system and reference, and the matching ones.
    """
    from sacrebleu.metrics.chrf import CHRF

    columns = np.broadcast_arrays(*(np.asarray(column, np.float64) for column in sums))
    metric, found = CHRF(), np.empty(columns[0].shape)
    for place in np.ndindex(found.shape):
        found[place] = metric._compute_f_score([int(column[place]) for column in columns])
    return found


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "min": np.minimum,
    "max": np.maximum,
    "bleu": _bleu,
    "chrf": _chrf,
}
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: _quotient,
    ast.Pow: np.power,
}


@functools.cache
def names(formula: str) -> tuple[str, ...]:
    """Returns the names of a formula's sums, each once. Raises `ValueError` for an invalid formula."""
    try:
        tree = ast.parse(formula, mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        raise ValueError(f"{formula!r} is no formula") from None
    found: dict[str, None] = {}
    _collect(tree, found, formula)
    return tuple(found)


def value(formula: str, sums: Mapping[str, Any]) -> np.ndarray:
    """Evaluates a formula. sums: numbers or arrays of one shape, by name. Raises `ValueError` for a missing sum."""
    lacking = [name for name in names(formula) if name not in sums]
    if lacking:
        raise ValueError(f"{formula!r} needs a sum of {', '.join(lacking)}")
    with np.errstate(all="ignore"):
        return np.asarray(_value(ast.parse(formula, mode="eval").body, sums), np.float64)


def _collect(node: ast.expr, found: dict[str, None], formula: str) -> None:
    if isinstance(node, ast.Name):
        found[node.id] = None
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        _collect(node.left, found, formula)
        _collect(node.right, found, formula)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        _collect(node.operand, found, formula)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
        if node.keywords:
            raise ValueError(f"{formula!r} is no formula")
        for argument in node.args:
            _collect(argument, found, formula)
    elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
        raise ValueError(f"{formula!r} is no formula: {ast.unparse(node)}")


def _value(node: ast.expr, sums: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return np.asarray(sums[node.id], np.float64)
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, sums), _value(node.right, sums))
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand, sums)
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        return FUNCTIONS[node.func.id](*(_value(argument, sums) for argument in node.args))
    assert isinstance(node, ast.Constant)
    return node.value
