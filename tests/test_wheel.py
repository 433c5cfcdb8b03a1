"""What is shipped: a wheel that works in a clean environment without the repository; one version everywhere; docs that exist."""

import doctest
import importlib
import pathlib
import re
import shutil
import subprocess
import sys
import venv

import pytest

from infalign_jax import __version__

ROOT = pathlib.Path(__file__).parents[1]


def test_version_changelog_and_citation_agree():
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == __version__
    assert re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == __version__


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_a_page_is_in_the_site_and_its_links_lead_somewhere(page):
    text = (ROOT / "docs" / page).read_text()
    assert f": {page}\n" in (ROOT / "mkdocs.yml").read_text(), "add the page to nav"
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)):
        assert "://" in target or (ROOT / "docs" / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize(
    "page", ["tutorial.md", "how-to.md", "troubleshooting.md", "../CONTRIBUTING.md", "../README.md"]
)
def test_files_and_commands_that_a_page_names_exist(page):
    from infalign_jax import main

    text = (ROOT / "docs" / page).read_text()
    for path in re.findall(r"(?:configs|notebooks|tests)/[\w/]+\.(?:py|ipynb)", text):
        assert (ROOT / path).exists(), f"{page} names {path}"
    for command in re.findall(r"(?:^|`|\$ |&& )infalign ([a-z-]+)", text, re.MULTILINE):
        assert command in main.COMMANDS, f"{page} says infalign {command}"


@pytest.mark.parametrize(
    "page", ["tutorial.md", "how-to.md", "troubleshooting.md", "calibration.md", "models.md", "data.md"]
)
def test_keys_that_a_page_names_are_keys_of_the_config(page):
    from configs import base

    config = base.get_config()
    for section, key in re.findall(r"config\.([a-z_]+)\.([a-z_]+)", (ROOT / "docs" / page).read_text()):
        assert key in config[section] or key == "stepz", f"{page} names config.{section}.{key}"


@pytest.mark.parametrize("name", ["shaping", "references", "frontier_table"])
def test_examples_in_docstrings(name):
    tried = doctest.testmod(importlib.import_module(f"infalign_jax.{name}"))
    assert tried.attempted and not tried.failed


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
    here = pathlib.Path(pytest.__file__).parents[
        1
    ]  # the dependencies, without this checkout, which is a finder of its own
    (place / "dependencies.pth").write_text(f"{here}\n")
    work = tmp_path / "elsewhere"
    work.mkdir()
    (work / "a.jsonl").write_text('{"prompt": "p", "reward": [0.0, 1.0, 2.0]}\n')

    def run(*words):
        return subprocess.run([str(python), *words], cwd=work, capture_output=True, text=True)

    where = run("-c", "import infalign_jax; print(infalign_jax.__file__, infalign_jax.__version__)").stdout
    assert str(place) in where and __version__ in where
    done = run("-m", "infalign_jax", "score", "--rewards=a.jsonl", "--reference=a.jsonl")
    assert '"calibrated": [0.16' in done.stdout, done.stderr
    assert "certified" in run("-m", "infalign_jax", "frontier", "--kls=0.5").stdout
    refused = run("-m", "infalign_jax", "run", "--config=configs/quickstart.py", "--workdir=w")
    assert refused.returncode == 2 and "there is no such file" in refused.stderr and "Traceback" not in refused.stderr
