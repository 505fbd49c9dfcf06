"""`recompute` keeps less for the backward pass wherever an adapter says that it does, and nowhere else."""

from __future__ import annotations

import pytest

from tests.variants.found import cases
from trainer.loop.cost import SavedActivations
from variants.core.adapters.adapter import use_kernel
from variants.core.kernels.low_rank import Kernel
from variants.testing.case import Case
from variants.testing.toys import data


def saved(case: Case, recompute: bool) -> int:
    """Bytes that a training step's forward pass keeps."""
    run = case.attached()
    use_kernel(run.model, Kernel(recompute=recompute))
    run.model.train()
    activations = SavedActivations(run.model)
    with activations.counting():
        output = run.model(data(run.dtype, run.kind)[0])
    assert output.requires_grad
    return activations.bytes


@pytest.mark.parametrize("case", cases(), ids=str)
def test_an_adapter_says_whether_anything_can_be_computed_again(case: Case) -> None:
    if case.refusal:
        return
    adapters = case.attached().variant.adapters.values()
    assert (saved(case, True) < saved(case, False)) == any(adapter.recomputes for adapter in adapters)
