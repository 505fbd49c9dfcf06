"""`python -m loratory` is the command `loratory`."""

from loratory.command import main

if __name__ == "__main__":
    main()
