"""A trained variant is handed over: as a plain model, as factors, and as a PEFT model that is written and loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from variants.core.handover import CannotHandOver, products
from variants.testing.case import Case
from variants.testing.toys import HEAD, Toy, data

TIGHT = {"rtol": 0, "atol": 1e-12}


def through_peft(wrapped: Any, base: nn.Module, folder: Path) -> nn.Module:
    """`wrapped` written, and loaded onto `base` as anybody would."""
    from peft import PeftModel

    wrapped.create_or_update_model_card = lambda folder: None  # a page of text, made from a template each time
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return PeftModel.from_pretrained(base, folder).eval()


def goes_out_with_equal_outputs(case: Case, folder: Path) -> None:
    """The end of the case's run in float64, which it leaves changed, computes the same in every form."""
    run = case.exact
    x, wanted, ranks = data(torch.float64, case.kind)[0], run.output(), run.variant.ranks()

    merged, plain = copy.deepcopy(run), Toy(torch.float64, case.kind)
    plain.load_state_dict(merged.variant.merged(merged.model).state_dict(), strict=True)
    torch.testing.assert_close(plain(x), wanted, **TIGHT)

    if any(adapter.beside_delta() for adapter in run.variant.adapters.values()):
        with pytest.raises(CannotHandOver, match=r"a trained bias is part of no low-rank product; allowed: merged"):
            run.variant.to_peft(run.model, HEAD)
        return
    for name, adapter in run.variant.adapters.items():
        (update,), delta = products(adapter), adapter.delta().detach()
        torch.testing.assert_close(update.B @ update.A, delta, **TIGHT)
        assert update.rank == update.full_rank == ranks[name] and update.is_exact
        assert update.relative_error < 1e-13
        assert update.parameters == update.rank * sum(delta.shape)
    if not any(ranks.values()):
        with pytest.raises(CannotHandOver, match=r"(wraps no layer|all 4 layers have rank 0, .*); allowed: merged"):
            run.variant.to_peft(run.model, HEAD)
        return
    if case.kind == "Conv2d in groups":
        with pytest.raises(CannotHandOver, match=r"groups=4, PEFT supports zeros, 1 and 1; allowed: merged"):
            run.variant.to_peft(run.model, HEAD)
        return
    wrapped = run.variant.to_peft(run.model, HEAD)
    torch.testing.assert_close(wrapped.eval()(x), wanted, **TIGHT)
    if case.params == case.cls.test_params()[0]:  # what is written does not depend on the method's other settings
        loaded = through_peft(wrapped, Toy(torch.float64, case.kind), folder)
        torch.testing.assert_close(loaded(x), wanted, **TIGHT)
