"""Which source, scope and schedule of a mask have a meaning together.

| source | not with schedule |
|---|---|
| magnitude | rigl: the order of entries that are not trained never changes |
| true_fisher, activation | rigl, refresh, localise: they are measured before training alone |
| change | rigl, refresh, localise: an entry that is not trained has not changed |

| scope | not with schedule |
|---|---|
| subnet | rigl: a part of rows × columns can't be exchanged |
| global, block | localise: layers choose one at a time |
"""

from __future__ import annotations

from collections.abc import Mapping

from variants.core.masks.schedules import Localise, Refresh, RigL, Schedule
from variants.core.masks.scopes import SCOPES, Scope
from variants.core.masks.sources import Source


def refuse_triple(names: Mapping[str, str], source: type[Source], scope: type[Scope], schedule: type[Schedule]) -> None:
    """Raise `ValueError` for a triple without a meaning. names: of source, scope and schedule in the config."""
    why = ""
    if issubclass(schedule, RigL | Refresh) and source.known == "passes":
        why = "it is measured before training alone"
    elif issubclass(schedule, RigL | Refresh) and source.known == "change":
        why = "an entry that is not trained has not changed, so none would come"
    elif schedule is RigL and not source.outside:
        why = "the order of entries that are not trained never changes"
    where = f"with schedule: {names['schedule']}, where"
    if why:
        allowed = "fixed, gradual" if source.known != "weight" else "fixed, gradual, refresh, localise"
        raise ValueError(f"source: {names['source']} {where} {why}; allowed: {allowed}")
    good: list[str] = []
    if schedule is RigL and not scope.in_part:
        why = "a part of rows × columns can't be exchanged"
        good = [name for name, other in SCOPES.items() if other.in_part]
    elif schedule is Localise and scope.pooled:
        why = "it compares entries of all layers, and these choose one at a time"
        good = [name for name, other in SCOPES.items() if not other.pooled]
    if why:
        raise ValueError(f"scope: {names['scope']} {where} {why}; allowed: {', '.join(good)}")


__all__ = ["refuse_triple"]
