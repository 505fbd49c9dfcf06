"""`python -m variants export …` is `python -m weights export …`: the command, which the library knows nothing of."""

import runpy

if __name__ == "__main__":
    runpy.run_module("weights", run_name="__main__", alter_sys=True)
