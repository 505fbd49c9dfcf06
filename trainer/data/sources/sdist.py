"""Lets pip download a source distribution without running a line of it.

`pip download` wants the metadata of what it downloads. A wheel has it written down; for a
source distribution pip asks the distribution's build backend, which for setuptools means
running its `setup.py`: foreign code, only to unpack a text file.

pip finds the backend by importing it. So pip gets the flags `--no-build-isolation
--use-pep517` (import the backend from the path you have, call its hooks) and, first on
PYTHONPATH, a folder with a package `setuptools` of ours. Its hook answers with the name
and version that we have pinned anyway, and `setup.py` is never opened.

This holds for a distribution whose backend is setuptools, named in its `pyproject.toml` or
by default. Which backend a distribution has can't change behind a pinned hash.
"""

from __future__ import annotations

from pathlib import Path

_BACKEND = '''\
"""Answers pip in place of setuptools; see trainer/sources/sdist.py."""
import os


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = {folder!r}
    os.makedirs(os.path.join(metadata_directory, folder))
    with open(os.path.join(metadata_directory, folder, "METADATA"), "w") as file:
        file.write({metadata!r})
    return folder


class _Legacy:
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)


__legacy__ = _Legacy  # the backend of a distribution without a pyproject.toml
'''


def write_stub(folder: Path, name: str, version: str) -> Path:
    """Writes the stand-in for setuptools below `folder`; returns what must be first on PYTHONPATH."""
    package = folder / "setuptools"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    backend = _BACKEND.format(
        folder=f"{name.replace('-', '_')}-{version}.dist-info",
        metadata=f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    )
    (package / "build_meta.py").write_text(backend, encoding="utf-8")
    return folder.absolute()


def pip_flags(name: str) -> list[str]:
    """What pip must be told besides, for the source distribution `name`."""
    return ["--no-binary", name, "--no-build-isolation", "--use-pep517"]
