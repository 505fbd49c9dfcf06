"""The decorator of the contract's promises."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from variants.core.variant import Variant
from variants.testing.case import Case


def promise(check: Callable[[Case], str | None]) -> Callable[..., str | None]:
    """Let a check of a `Case` also accept a class, its settings and a kind of layer."""

    @functools.wraps(check)
    def of(case: Case | type[Variant], params: Mapping[str, Any] | None = None, kind: str = "Linear") -> str | None:
        return check(case if isinstance(case, Case) else Case(case, params or {}, kind))

    return of
