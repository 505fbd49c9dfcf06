"""What every variant promises, and the check of it: `check_variant(MyVariant)`.

`contract.py` lists the promises, `check.py` asks for them and reports, `case.py` is one setting on one kind of layer,
`toys.py` has the models that it trains.
"""

from variants.testing.check import check_case, check_variant

__all__ = ["check_case", "check_variant"]
