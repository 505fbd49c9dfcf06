"""`python -m variants export …` runs `python -m weights export …`; the library does not depend on that command."""

import runpy

if __name__ == "__main__":
    runpy.run_module("weights", run_name="__main__", alter_sys=True)
