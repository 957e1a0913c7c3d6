"""Every notebook runs from top to bottom on small phantoms."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """One folder for all notebooks: the later ones use the models that the first one trains."""
    folder = tmp_path_factory.mktemp("notebooks")
    os.environ["SEGSCSE_NOTEBOOK_DIR"] = str(folder)
    os.environ["SEGSCSE_NOTEBOOK_BUDGET"] = "8s"
    yield folder
    del os.environ["SEGSCSE_NOTEBOOK_DIR"], os.environ["SEGSCSE_NOTEBOOK_BUDGET"]


def test_there_are_four_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_without_error_and_keeps_no_output(path, work):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(work)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)
