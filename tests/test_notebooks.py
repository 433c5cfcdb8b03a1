"""Every notebook runs from top to bottom on a CPU and comes to the result it tells of."""

import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"


def execute(name, timeout=180, **variables):
    """The executed notebook and what it printed; `variables` replace assignments of its cells that name them."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("pandas")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "store the notebook without outputs"
    assert "%pip install" in notebook.cells[0].source, "the first cell installs the package"
    for variable, value in variables.items():
        (cell,) = [cell for cell in notebook.cells if cell.source.startswith(f"{variable} = ")]
        cell.source = "\n".join([f"{variable} = {value!r}", *cell.source.split("\n")[1:]])
    resources = {"metadata": {"path": FOLDER}}
    nbclient.NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") + "\n" for o in outputs)
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    return printed, pictures


def numbers_after(printed, word):
    """The numbers in the line that begins with a word."""
    (line,) = [line for line in printed.splitlines() if line.strip().startswith(word)]
    return [float(part) for part in line.strip().removeprefix(word).split()]


@pytest.mark.timeout(240)
def test_quickstart():
    printed, pictures = execute("quickstart")
    assert pictures == 2 and "certified: win rate 0.9299 at KL 0.5" in printed
    assert numbers_after(printed, "exponential(10)")[2] == pytest.approx(0.9037, abs=2e-4)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_bring_your_own_trainer():
    printed, pictures = execute("bring_your_own_trainer")
    assert pictures == 1 and "scale_rewards is 'group'" in printed
    rows = {name: numbers_after(printed, name) for name in ("identity ", "exponential(10) ")}
    for kl, win_rate, theory in rows.values():
        assert kl == pytest.approx(0.5, abs=0.05) and win_rate == pytest.approx(theory, abs=0.02)
    assert rows["exponential(10) "][1] > rows["identity "][1] + 0.05


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("run"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_align_end_to_end(workdir):
    printed, pictures = execute("align_end_to_end", timeout=800, WORKDIR=workdir)
    assert pictures >= 3 and "everything is done" in printed
    rates = {name: numbers_after(printed, name)[:2] for name in ("exponential(10)  ", "identity  ")}
    assert all(kl == pytest.approx(0.3, rel=0.05) for kl, _ in rates.values())
    assert rates["exponential(10)  "][1] > rates["identity  "][1] > 0.6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_inspect_run(workdir):
    if not (pathlib.Path(workdir) / "evaluate" / "report.html").exists():
        from infalign_jax import main
        from tests import tiny

        workdir += "_tiny"
        main.run("run", tiny.get_config(), workdir)
    printed, pictures = execute("inspect_run", WORKDIR=workdir)
    assert pictures == 3 and "everything is done" in printed and "p-value of uniformity" in printed
