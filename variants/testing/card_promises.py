"""Promises about a method's description: its card, its fields, its hooks, the layers that it refuses."""

from __future__ import annotations

import inspect
import re

from variants.core.variant import AdapterVariant, Variant, field_names
from variants.testing.case import Case
from variants.testing.promise import promise
from variants.testing.toys import prepared

HOOKS = ("before_training", "hold_passes", "on_step_begin", "penalty", "on_gradients", "on_update", "on_train_end")


@promise
def says_what_it_is(case: Case) -> None:
    """The file has a method card with cost and source; the class has its own docstring and test_params."""
    card, cls = _card(case.cls), case.cls
    assert len(card.splitlines()) >= 4, "the module's docstring is no method card"
    assert re.search(r"^(Cost|Library)\b", card, re.MULTILINE), "the card names no cost"
    source = re.search(r"arXiv:? ?\d{4}\.\d{4,5}|\bdoi\b|^Library\b|\breference\b", card, re.MULTILINE)
    assert source, "the card names no source: an arXiv number, a doi, a Library, or that it is a reference"
    # Without a docstring, @dataclass writes one that looks like a call.
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), "the class has no docstring"
    own = sorted(set(inspect.get_annotations(cls)) & set(field_names(cls)) - {"name"})
    assert not own or "test_params" in vars(cls), f"test_params() is not its own, and says nothing of {', '.join(own)}"
    assert cls.test_params(), "test_params() is empty"


@promise
def is_set_by_its_fields(case: Case) -> None:
    """Settings are dataclass fields that keep their values; a misspelt field is a TypeError."""
    cls, variant = case.cls, case.cls(**case.params)
    own = [name for name, kind in inspect.get_annotations(cls).items() if "ClassVar" not in str(kind)]
    decorated = "__dataclass_params__" in vars(cls)
    assert decorated or not own, f"{', '.join(own)}: no field, for the class lacks @dataclass(kw_only=True)"
    for name, value in case.params.items():
        assert getattr(variant, name) == value, f"{name} was set to {value!r} and is {getattr(variant, name)!r}"
    for name in field_names(cls):
        try:
            cls(**case.params, **{f"{name}_": getattr(variant, name)})
        except TypeError:
            continue
        raise AssertionError(f"{name}_, which is no field, is accepted")


@promise
def acts_in_its_hooks_alone(case: Case) -> None:
    """The card lists exactly the overridden hooks; forward and backward passes change no parameter."""
    listed = re.search(r"^Hooks\b.*(?:\n[ \t]+\S.*)*", _card(case.cls), re.MULTILINE)
    assert listed, "the card has no Hooks"
    named = {hook for hook in HOOKS if re.search(rf"\b{hook}\b", listed[0])}
    missing = _overridden(case.cls) - named
    assert not missing, f"the card's Hooks leave out {', '.join(sorted(missing))}"
    module = inspect.getmodule(case.cls)
    in_file = [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, Variant)]
    extra = named - _overridden(case.cls).union(*(_overridden(c) for c in in_file if inspect.getmodule(c) is module))
    assert not extra, f"the card's Hooks name {', '.join(sorted(extra))}, which does nothing"
    for number, moment in enumerate(case.moments, 1):
        assert moment.changed is None, f"the passes of step {number} changed {moment.changed}, outside of every hook"


@promise
def refuses_in_one_line(case: Case) -> None:
    """A kind of layer that a method does not support is refused before weights are loaded, in one line that names it.

    The card names it, too, unless only dropout is refused or a library decides.
    """
    text, card = case.refusal, _card(case.cls)
    assert text is not None, f"{case.kind} is not refused"
    kind = case.kind.removesuffix(" in groups")  # the class is named
    assert "\n" not in text and kind in text, f"the refusal is not one line that names {kind}: {text}"
    known = text.startswith("dropout: ") or kind in card or re.search(r"^Library\b", card, re.MULTILINE)
    assert known, f"the card does not say that {case.kind} is refused: {text}"
    try:
        prepared(case.cls, case.params, case.kind)
    except ValueError:
        return
    assert not issubclass(case.cls, AdapterVariant), (
        "it is refused by attach() and not by check(), before weights are there"
    )


def _card(cls: type[Variant]) -> str:
    return inspect.getdoc(inspect.getmodule(cls)) or ""


def _overridden(cls: type[Variant]) -> set[str]:
    return {hook for hook in HOOKS if getattr(cls, hook) is not getattr(Variant, hook)}
