"""What is shipped: a wheel that works in a clean environment without the repository; one version everywhere."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv

import pytest

from infalign_jax import __version__

ROOT = pathlib.Path(__file__).parents[1]
MINE = (ROOT / "tests" / "tiny.py").read_text()  # a recipe of a user, on `from configs import base`


def test_version_changelog_and_citation_agree():
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == __version__
    assert re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == __version__


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_works_without_the_repository(tmp_path):
    """Built from a copy, installed without dependencies beside those of this environment, used from elsewhere."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__"))
    builders = (["pip", "wheel", "--no-deps", "-w", str(tmp_path), "."], ["build", "--wheel", "-o", str(tmp_path)])
    commands = [[sys.executable, "-m", *words] for words in builders] + [
        ["uv", "build", "--wheel", "-o", str(tmp_path)]
    ]
    for command in commands:  # whichever builder this environment has
        if shutil.which(command[0]) and not subprocess.run(command, cwd=copy, capture_output=True).returncode:
            break
    else:
        pytest.skip("neither pip, build nor uv can build here")
    (wheel,) = tmp_path.glob("infalign_jax-*.whl")
    assert __version__ in wheel.name
    shutil.rmtree(copy)
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    place = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    shutil.unpack_archive(wheel, place, "zip")
    here = pathlib.Path(pytest.__file__).parents[1]  # the dependencies; this checkout is a finder of its own
    (place / "dependencies.pth").write_text(f"{here}\n")
    work = tmp_path / "elsewhere"
    work.mkdir()
    (work / "a.jsonl").write_text('{"prompt": "p", "reward": [0.0, 1.0, 2.0]}\n')

    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which may name this checkout

    def run(*words):
        return subprocess.run([str(python), *words], cwd=work, capture_output=True, text=True, env=alone)

    where = run("-c", "import infalign_jax; print(infalign_jax.__file__, infalign_jax.__version__)").stdout
    assert str(place) in where and __version__ in where
    done = run("-m", "infalign_jax", "score", "--rewards=a.jsonl", "--reference=a.jsonl")
    assert '"calibrated": [0.16' in done.stdout, done.stderr
    assert "certified" in run("-m", "infalign_jax", "frontier", "--kls=0.5").stdout
    refused = run("-m", "infalign_jax", "run", "--config=configs/quickstart.py", "--workdir=w")
    assert refused.returncode == 2 and "there is no such file" in refused.stderr and "Traceback" not in refused.stderr
    recipes = ", ".join(sorted(file.stem for file in (ROOT / "configs").glob("[a-z]*.py")))
    assert recipes in refused.stderr, "the recipes that it has are named"
    planned = run("-m", "infalign_jax", "doctor", "--config=ledger", "--config.align.steps=7")
    assert "synthetic_ledger" in planned.stdout and " 7 steps of " in planned.stdout, planned.stderr
    (work / "mine.py").write_text(MINE)
    small = ["--config=mine.py", "--workdir=w", "--config.align.methods=identity"]
    done = run("-m", "infalign_jax", "run", *small)
    assert (work / "w" / "evaluate" / "report.html").is_file(), done.stderr
    assert "--config.align.show_every=50" in run("-m", "infalign_jax", "align", "--help").stdout
