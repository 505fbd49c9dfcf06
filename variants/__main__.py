"""`python -m variants list`, `show NAME` and `docs`: the catalogue of methods.

Other verbs, as `python -m variants export …`, are those of `python -m weights`; the library does not depend on it.
"""

import runpy
import sys

from variants.catalogue.cli import VERBS, main

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in VERBS:
        sys.exit(main())
    runpy.run_module("weights", run_name="__main__", alter_sys=True)
