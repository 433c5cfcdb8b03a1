"""The documentation: pages that are in the site, links that lead somewhere, commands, keys and files that exist."""

import ast
import json
import pathlib
import re
import shlex

import pytest
from ml_collections import ConfigDict

from configs import base
from infalign_jax import aot, flags, frontier_table, generate, main, pages, recipe, score, study

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS += sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [str(path.relative_to(ROOT)) for path in TEXTS]
TABLES = {"score": score._FLAGS, "frontier": frontier_table._FLAGS, "generate": generate._FLAGS, "aot": aot._TABLE}


def text_of(name):
    """A page, or the cells of a notebook, as one text."""
    path = ROOT / name
    if path.suffix == ".md":
        return path.read_text()
    return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])


def commands(text):
    """The words after `infalign` of every command that a page shows, in a block or in a line of text."""
    blocks = [block.replace("\\\n", " ") for block in re.findall(r"```(?:bash|console)\n(.*?)```", text, re.DOTALL)]
    blocks += re.findall(r"^(?: {4}.*\n?)+", text, re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [code for code in re.findall(r"`([^`\n]+)`", text) if code.startswith("infalign ")]
    for line in lines:
        match = re.search(r"(?:^|\$ |&& |\| |-- )\s*infalign (.*)", line)
        if match and "…" not in match[1]:
            words = shlex.split(match[1], comments=True)
            yield [
                word for before, word in zip(["", *words], words, strict=False) if word != "..." or before[:2] == "--"
            ]


def read(words):
    """Reads the words of a command as the command itself does; raises ValueError where it would."""
    command, *rest = words
    if {"--help", "-h"} & set(words) or words == ["--version"]:
        return main.main(words)
    if command not in main.COMMANDS:
        raise ValueError(f"there is no command {command!r}")
    if command in ("score", "frontier", "generate"):
        return flags.parse(
            f"infalign {command}", [*rest, "--rewards=x"] if command == "score" and not rest else rest, TABLES[command]
        )
    if command == "aot":
        own, rest = aot._split(rest)
        flags.parse(f"infalign {command}", own, TABLES[command])
    rest = [word for word in rest if not word.startswith(("--shard", "--retry"))]
    return recipe.parse(rest)


@pytest.mark.parametrize("name", NAMES)
def test_commands_that_a_page_shows_are_read(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for words in commands(text_of(name)):
        try:
            read(words)
        except ValueError as error:
            missing = re.search("is missing; see infalign|changes a recipe, and none is named", str(error))
            assert missing, (
                f"{name}: infalign {shlex.join(words)}: {error}"
            )  # a command named in passing, without its flags


def test_enough_commands_are_found():
    found = [words for name in NAMES for words in commands(text_of(name))]
    assert len(found) > 40 and {words[0] for words in found} >= {"run", "sft", "align", *main.TOOLS}


@pytest.mark.parametrize("name", NAMES)
def test_keys_that_a_page_names_are_keys(name):
    known = {f"config.{key}" for key in pages.defaults()} | {f"config.{key.split('.')[0]}" for key in pages.defaults()}
    wrong = {"config.align.stepz"}  # of an error message that is explained
    for key in set(re.findall(r"\bconfig\.[a-z_]+(?:\.[a-z_]+)?\b(?!\()", text_of(name))) - wrong:
        of_study = key.split(".")[1] in study.KEYS
        assert key in known or of_study or key in ("config.json", "config.py"), f"{name} names {key}"


@pytest.mark.parametrize("name", NAMES)
def test_files_that_a_page_names_exist(name):
    for path in re.findall(r"(?<![\w/])(?:configs|notebooks|tests|launch|benchmarks|docs)/[\w/]+\.\w+", text_of(name)):
        assert (ROOT / path).exists(), f"{name} names {path}"


@pytest.mark.parametrize("page", sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")))
def test_a_page_is_in_the_site_and_its_links_lead_somewhere(page):
    text = (ROOT / "docs" / page).read_text()
    assert f": {page}\n" in (ROOT / "mkdocs.yml").read_text(), "add the page to nav"
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)):
        assert "://" in target or ((ROOT / "docs" / page).parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("command", pages.PAGES)
def test_help_pages_fit_a_terminal_and_say_where_results_go(command, capsys):
    main.main([command, "--help"])
    page = capsys.readouterr().out
    assert page.startswith(f"infalign {command} --config RECIPE --workdir DIR")
    assert max(map(len, page.splitlines())) <= 120 and (command == "run" or "Leaves DIR/" in page)


def dotted(config, above=""):
    """Every key of a config, its sections before it."""
    for name, value in config.items():
        yield from dotted(value, f"{above}{name}.") if isinstance(value, ConfigDict) else [above + name]


def test_help_pages_list_every_key_with_its_default_once():
    shown = "".join(pages.page(command) for command in pages.PAGES)
    listed = re.findall(r"^  --config\.([\w.]+)=(.*?)(?:   .*)?$", shown, re.MULTILINE)
    config = base.get_config()
    assert sorted(key for key, _ in listed) == sorted(dotted(config))
    for key, value in listed:
        changed = recipe.parse(["--config=base", f"--config.{key}={value.strip(chr(34))}"]).config
        assert changed.to_json() == config.to_json(), f"--config.{key}={value} is not the default"


def test_every_stage_has_a_page():
    assert list(pages.PAGES) == ["run", *main.STAGES]


def test_every_method_has_a_page_with_its_equation_and_source():
    from infalign_jax.stages import methods

    overview = (ROOT / "docs" / "methods.md").read_text()
    told = {
        name: (ROOT / "docs" / page).read_text()
        for name, page in re.findall(r"\[(.*?)\]\((methods/\w+\.md)\)", overview)
    }
    listed = "".join(line for page in told.values() for line in page.splitlines() if line.startswith("| name"))
    for name in ["identity", "log", "exponential(t)", "optimal(PROCEDURE)", *methods.FAMILIES]:
        assert re.search(rf"`{re.escape(name)}[`(]", listed), f"{name} has no page"
    assert all("## Objective" in page and "| source |" in page for page in told.values())
    assert len(told) == len(list((ROOT / "docs" / "methods").glob("*.md")))


def test_messages_that_are_explained_are_messages_of_the_code():
    files = [*(ROOT / "infalign_jax").rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    parts = {
        " ".join(node.value.split()) for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    parts = [part for part in parts if len(part) >= 10]
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = [
        text for line in page.splitlines() if line.startswith("**`") for text in re.findall(r"\*\*`(.*?)`\*\*", line)
    ]
    assert len(messages) > 20
    for message in messages:
        assert any(part in message for part in parts), f"nothing in the code says {message!r}"
