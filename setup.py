"""Builds a wheel whose only name at the top is `loratory`: the suite's packages go into `loratory/_suite`.

A checkout, and an editable installation of it, keep them at the top, where their users work.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOMS = ("variants", "trainer", "analysis", "weights", "hydra_plugins", "conf")  # conf: without it nothing trains


class BuildSuite(build_py):
    """`build_py`, but for the suite's folders, which are copied whole, with templates, tables and configs."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        built = Path(self.build_lib)
        suite = built / "loratory" / "_suite"
        shutil.rmtree(suite, ignore_errors=True)  # of an earlier build
        for name in ROOMS:
            shutil.rmtree(built / name, ignore_errors=True)
            shutil.copytree(name, suite / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.move(built / "train.py", suite / "train.py")


setup(cmdclass={"build_py": BuildSuite})
