"""The contract holds above layers of 4 bits, for every variant that adapts layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.variants.found import all_variants
from variants.core.quantized import Quantized
from variants.core.variant import AdapterVariant
from variants.testing import contract, toys
from variants.testing.case import Case

pytest.importorskip("bitsandbytes")
ADAPTING = [cls for cls in all_variants() if issubclass(cls, AdapterVariant)]


@pytest.mark.slow
@pytest.mark.parametrize("cls", ADAPTING)
def test_the_contract_holds_above_nf4(cls, monkeypatch):
    sizes = (8, 12), (12, 8)
    monkeypatch.setitem(toys.KINDS, "nf4", lambda: tuple(Quantized(nn.Linear(*s), "nf4", torch.float32) for s in sizes))
    case = Case(cls, cls.test_params()[0], "nf4")
    for check in (*contract.ON_EVERY_KIND, contract.resumes_bit_for_bit):
        check(case)
