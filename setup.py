"""Builds a wheel whose only name at the top is `loratory`: the suite's packages go into `loratory/_suite`.

A checkout, and an editable installation of it, keep them at the top, where their users work.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOMS = ("variants", "trainer", "analysis", "weights", "hydra_plugins", "train.py")


class BuildSuite(build_py):
    """`build_py`, then the move. `conf/` goes along, without which nothing trains."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        built = Path(self.build_lib)
        suite = built / "loratory" / "_suite"
        shutil.rmtree(suite, ignore_errors=True)  # of an earlier build
        suite.mkdir(parents=True)
        for name in ROOMS:
            shutil.move(built / name, suite / name)
        shutil.copytree("conf", suite / "conf", ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildSuite})
