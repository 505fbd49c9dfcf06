"""`python -m variants list`, `show NAME` and `docs`: the catalogue of methods.

Other verbs, as `python -m variants export …`, are those of `python -m weights`; the library does not depend on it.
"""

import sys

from variants.catalogue import cli

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in cli.VERBS:
        sys.exit(cli.main())
    from weights.cli import main

    sys.exit(main())
