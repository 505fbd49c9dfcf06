"""The contract of variants and its check: `check_variant(MyVariant)`.

`contract.py` lists the promises, `*_promises.py` define them, `check.py` runs and reports them, `case.py` is one
setting on one kind of layer, `toys.py` has the models that are trained.
"""

from variants.testing.check import check_case, check_variant

__all__ = ["check_case", "check_variant"]
