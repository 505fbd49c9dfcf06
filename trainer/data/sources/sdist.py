"""Lets pip download a source distribution without running its code.

`pip download` needs a distribution's metadata. A wheel contains it, but for a source distribution pip asks its build
backend, and setuptools runs `setup.py`: foreign code, run only to unpack a text file.

pip imports the backend. With the flags `--no-build-isolation --use-pep517` it imports it from the current path, which
starts with a stub package `setuptools`. The stub's hook returns the pinned name and version, and `setup.py` is never
opened.

This works for distributions whose backend is setuptools, by their `pyproject.toml` or by default. A pinned hash fixes
the backend.
"""

from __future__ import annotations

from pathlib import Path

_BACKEND = '''\
"""Answers pip in place of setuptools; see trainer/data/sources/sdist.py."""
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
    """Writes the stub of setuptools below `folder` and returns the folder that must be first on PYTHONPATH."""
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
    """Returns pip's additional options for the source distribution `name`."""
    return ["--no-binary", name, "--no-build-isolation", "--use-pep517"]
