"""Runs `docs/tour.py` cell by cell and writes the notebook `docs/tour.ipynb` with what the cells print and draw."""

from __future__ import annotations

import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

SOURCE = Path(__file__).parent / "tour.py"

if __name__ == "__main__":
    notebook = jupytext.read(SOURCE)
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for n, cell in enumerate(notebook.cells):
        cell.id = f"cell-{n}"  # jupytext draws one at random
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, resources={"metadata": {"path": folder}}, record_timing=False).execute()
    for cell in notebook.cells:  # what the terminal shows meanwhile: progress
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, SOURCE.with_suffix(".ipynb"))
