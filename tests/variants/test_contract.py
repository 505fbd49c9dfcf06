"""The contract, over every variant in the folder."""

from __future__ import annotations

from typing import Any

import pytest

from tests.variants.found import cases
from variants.core import contract
from variants.core.variant import Variant


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("cls", "params"), cases(), ids=str)
def test_variant_keeps_its_promises(check: Any, cls: type[Variant], params: dict[str, Any]) -> None:
    check(cls, params)
