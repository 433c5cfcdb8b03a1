"""The theory notebook runs from top to bottom, and says what the theory says."""

import pathlib
import re

import pytest

NOTEBOOK = pathlib.Path(__file__).parents[1] / "notebooks" / "theory.ipynb"


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_theory_notebook_runs_and_its_tournament_agrees_with_the_formula():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "store the notebook without outputs"
    nbclient.NotebookClient(
        notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    played, error, formula = (
        float(x) for x in re.search(r"tournament (\S+) \+- (\S+)\s+formula\s+(\S+)", printed).groups()
    )
    assert abs(played - formula) < 4.5 * error + 1e-4
    assert "certified" in printed and "unique" in printed
