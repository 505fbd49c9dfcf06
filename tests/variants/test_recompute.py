"""`recompute` keeps less for the backward pass wherever an adapter says that it does, and nowhere else."""

from __future__ import annotations

import pytest

from tests.variants.found import adapting, cases
from trainer.loop.cost import SavedActivations
from variants.core.adapters.adapter import use_kernel
from variants.core.kernels.low_rank import Kernel
from variants.core.variant import field_names
from variants.testing.case import Case
from variants.testing.toys import KINDS, Trained, data


def saved(run: Trained, recompute: bool) -> int:
    """Bytes that a training step's forward pass keeps."""
    use_kernel(run.model, Kernel(recompute=recompute))
    run.model.train()
    activations = SavedActivations(run.model)
    with activations.counting():
        output = run.model(data(run.dtype, run.kind)[0])
    assert output.requires_grad
    return activations.bytes


def given() -> list[Case]:
    """Every setting on Linear; on the other kinds each class of adapters, without dropout and with it."""
    found = [case for case in cases() if case.kind == "Linear"]
    for cls, params in adapting():
        entries = [params, {**params, "dropout": 0.1}] if "dropout" in field_names(cls) else [params]
        found += [Case(cls, entry, kind) for entry in entries for kind in KINDS if kind != "Linear"]
    return found


@pytest.mark.parametrize("case", given(), ids=str)
def test_an_adapter_says_whether_anything_can_be_computed_again(case: Case) -> None:
    try:
        run = case.attached()
    except ValueError:
        return  # the method takes no layers of this kind
    says = any(adapter.recomputes for adapter in run.variant.adapters.values())
    assert (saved(run, True) < saved(run, False)) == says
