"""The notebooks run from their first cell to their last, in an empty folder."""

from __future__ import annotations

import os

import pytest

from tests.conftest import ROOT

nbformat = pytest.importorskip("nbformat", reason="extra dev")
nbclient = pytest.importorskip("nbclient", reason="extra dev")


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_the_same_kinds_of_outputs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(path, as_version=4)
    saved = [kinds(cell) for cell in notebook.cells]
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [kinds(cell) for cell in notebook.cells] == saved


def kinds(cell) -> list[str]:
    """What a cell puts out, without warnings: a stream, a value, a picture."""
    return [
        output.output_type if output.output_type == "stream" else max(output.data)
        for output in cell.get("outputs", [])
        if output.get("name") != "stderr"
    ]
