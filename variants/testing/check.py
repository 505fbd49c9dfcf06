"""Checks the promises of `variants.testing.contract` for a variant and reports the result of each.

    from variants.testing import check_variant
    check_variant(MyVariant)                            # raises BrokenPromises, which lists all broken promises
    check_variant(MyVariant, raise_exceptions=False)    # {"merges": "passed", "accumulates": "skipped: …", …}
    check_variant(MyVariant, ["merges", "saves_and_loads"])

Every setting of `MyVariant.test_params()` is checked on every kind of layer. If a method refuses a kind, in one line
and before any weight is loaded, the other promises are skipped there.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from variants.core import training_state
from variants.core.state_files import CorruptState
from variants.core.variant import Variant
from variants.testing.case import Case, adapters, same
from variants.testing.contract import CHECKS, ON_EVERY_KIND, refuses_in_one_line
from variants.testing.toys import KINDS

PROMISES: dict[str, Callable[..., str | None]] = {check.__name__: check for check in (*CHECKS, refuses_in_one_line)}
PASSED = "passed"
TAKES_UP = ("saves_and_loads", "resumes_bit_for_bit")  # the promises about saved state


class BrokenPromise(AssertionError):
    """A broken promise. case: the first one that breaks it. how: the failure in words, with a hint if there is one.

    `__cause__` is the original error.
    """

    def __init__(self, case: Case, promise: str, how: str) -> None:
        self.case, self.promise, self.how = case, promise, how
        super().__init__(f"{case} {promise}: {how}")


class BrokenPromises(AssertionError):
    """Several broken promises; those with the same failure share a line. broken: by name."""

    def __init__(self, broken: Mapping[str, BrokenPromise]) -> None:
        self.broken = dict(broken)
        faults: dict[tuple[str, str], list[str]] = {}
        for name, one in broken.items():
            faults.setdefault((str(one.case), one.how), []).append(name)
        lines = [f"{case} {', '.join(names)}: {how}" for (case, how), names in faults.items()]
        super().__init__("\n".join([f"{len(broken)} promises are broken", *lines]))


Result = str | BrokenPromise


def check_variant(
    cls: type[Variant], promises: Sequence[str] | None = None, *, raise_exceptions: bool = True
) -> dict[str, Result]:
    """Return the result of each promise over all settings and kinds: "passed", "skipped: why", or a `BrokenPromise`.

    promises: names from `PROMISES`; all of them by default. After all checks it raises `BrokenPromise`, or
    `BrokenPromises` for several; with raise_exceptions=False it only returns them. Raises `ValueError` for an unknown
    name.
    """
    asked = _names(promises)
    # If there is no setting, an empty one is used, so that a promise can report that.
    cases = [Case(cls, params, kind) for params in cls.test_params() or [{}] for kind in KINDS]
    of_cases = [check_case(case, asked, raise_exceptions=False) for case in cases]
    results = {name: _combined([results[name] for results in of_cases]) for name in asked}
    return _raised(results) if raise_exceptions else results


def check_case(
    case: Case, promises: Sequence[str] | None = None, *, raise_exceptions: bool = True
) -> dict[str, Result]:
    """`check_variant` for one setting on one kind of layer."""
    results: dict[str, Result] = {}
    for name in _names(promises):
        results[name] = _result(case, name)
        if isinstance(results[name], BrokenPromise):
            case = dataclasses.replace(case)  # with new runs, because a failed check may have left them changed
    return _raised(results) if raise_exceptions else results


def _names(promises: Sequence[str] | None) -> list[str]:
    for name in promises or ():
        if name not in PROMISES:
            raise ValueError(f"promises: {name!r}, allowed: {', '.join(PROMISES)}")
    return list(PROMISES if promises is None else promises)


def _result(case: Case, name: str) -> Result:
    """Return the result of a promise in one case."""
    check = PROMISES[name]
    if case.kind != "Linear" and check not in (*ON_EVERY_KIND, refuses_in_one_line):
        return "skipped: it is asked for on Linear alone"
    try:
        refusal = case.refusal
        if check is refuses_in_one_line and refusal is None:
            return f"skipped: {case.kind} is taken"
        skipped = check(case) if check is refuses_in_one_line or refusal is None else refusal
    except Exception as error:
        said = " ".join(str(error).split())
        what = said if isinstance(error, AssertionError) else f"{type(error).__name__}: {said}"
        hint = _hint(case, name, error)
        broken = BrokenPromise(case, name, f"{what}; {hint}" if hint else what)
        broken.__cause__ = error
        return broken
    return PASSED if skipped is None else f"skipped: {skipped}"


def _combined(results: Sequence[Result]) -> Result:
    """Combine the results of all cases: broken if one is broken, else passed if one has passed."""
    broken = [result for result in results if isinstance(result, BrokenPromise)]
    if not broken:
        return PASSED if PASSED in results else results[0]
    if len(broken) == 1:
        return broken[0]
    first, asked = broken[0], len(broken) + results.count(PASSED)
    more = BrokenPromise(first.case, first.promise, f"{first.how} (and in {len(broken) - 1} more of {asked} cases)")
    more.__cause__ = first.__cause__
    return more


def _raised(results: dict[str, Result]) -> dict[str, Result]:
    """Return the results, or raise the broken promises among them."""
    broken = {name: result for name, result in results.items() if isinstance(result, BrokenPromise)}
    if len(broken) == 1:
        raise next(iter(broken.values()))
    if broken:
        raise BrokenPromises(broken)
    return results


# -- hints ----------------------------------------------------------------------------------


def _hint(case: Case, name: str, error: Exception) -> str | None:
    """Return a hint how to mend the error, if its cause is known."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, CorruptState):
        return "parameters are loaded after load_state_dict(), which gives them the saved shapes: adapter.reshape()"
    if isinstance(error, KeyError) and any(frame.name == "load_state_dict" for frame in frames):
        return f"load_state_dict() reads {error}, which state_dict() does not give"
    if isinstance(error, RuntimeError) and "view size is not compatible" in str(error):
        return "what is cut out of a weight need not be contiguous: reshape() in place of view()"
    if isinstance(error, RuntimeError) and "is invalid for input of size" in str(error):
        return "a weight that was cut or has grown has another size: view() and reshape() by its present shape"
    if isinstance(error, RuntimeError) and ("/torch/optim/" in frames[-1].filename or "invalid gradient" in str(error)):
        return "a parameter's size changes with its moments: adapter.keep(), append(), or variants.core.adapters.resize"
    if name in TAKES_UP and isinstance(error, AssertionError) and (lost := _lost(case)):
        return f"not in state_dict(), or not taken up by load_state_dict(): {', '.join(lost)}"
    return None


def _lost(case: Case) -> list[str]:
    """Return the names of values that a trained variant and its adapters have and a restored one has not."""
    run, again = case.straight, case.attached(seed=1, resumed=True)
    training_state.restore_weights(
        again.model, again.variant, training_state.weights(run.model, run.variant, run.optimizer)
    )
    loaded = dict(adapters(again))
    held: list[tuple[str, Any, Any]] = [("", run.variant, again.variant)]
    held += [(f"{name}.", adapter, loaded[name]) for name, adapter in adapters(run)]
    return [
        prefix + name
        for prefix, trained, took_up in held
        for name, value in _values(trained).items()
        if not same(value, _values(took_up).get(name))
    ]


def _values(owner: Any) -> dict[str, Any]:
    """Return the tensors and plain values of a variant or a module, by name."""
    held = {name: v for name, v in vars(owner).items() if isinstance(v, torch.Tensor | bool | int | float | str)}
    if isinstance(owner, torch.nn.Module):
        del held["training"]
        held |= dict(owner.named_parameters()) | dict(owner.named_buffers())
    return held
