"""`python -m variants`."""

import sys

from variants.command.cli import main

if __name__ == "__main__":
    sys.exit(main())
