"""The notebooks run from their first cell to their last, in an empty folder, on fewer and shorter texts."""

from __future__ import annotations

import os
import re

import pytest

from tests.conftest import ROOT

nbformat = pytest.importorskip("nbformat", reason="extra dev")
nbclient = pytest.importorskip("nbclient", reason="extra dev")

# Put after a notebook's own settings. AdaLoRA's schedule ends at step 42 of 60 as saved, at step 18 of 36 here.
FEWER = {
    "adalora_ranks": "train.max_steps=36 train.eval_every=36 train.batch_size=1",
    "own_method": "train.batch_size=1",
}
SHORTER = "data.limit=40 data.eval_limit=8 data.max_length=8"


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_the_same_kinds_of_outputs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(path, as_version=4)
    saved = [kinds(cell) for cell in notebook.cells]
    fewer = [
        re.subn(r'^(setting = ".*)"$', rf'\1 {FEWER[path.stem]} {SHORTER}"', cell.source, flags=re.M)
        for cell in notebook.cells
    ]
    for cell, (source, _) in zip(notebook.cells, fewer, strict=True):
        cell.source = source
    assert sum(found for _, found in fewer) == 1
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [kinds(cell) for cell in notebook.cells] == saved


def kinds(cell) -> list[str]:
    """What a cell puts out, without warnings: a stream (in how many pieces, time decides), a value, a picture."""
    outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    found = [output.output_type if output.output_type == "stream" else max(output.data) for output in outputs]
    return [kind for kind, before in zip(found, [None, *found], strict=False) if not kind == before == "stream"]
