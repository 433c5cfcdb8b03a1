"""The code itself: which way imports go, that what is public says what it does, and that the examples are true."""

import ast
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import infalign_jax

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "infalign_jax").rglob("*.py"))
TREES = {file: ast.parse(file.read_text()) for file in FILES}
MAY_IMPORT = {  # package: the packages of ours that it may know
    "core": set(),
    "data": {"core", "json_object"},
    "reporting": {"core"},
    "models": {"core", "json_object"},
    "sampling": {"core", "models"},
    "training": {"core", "data", "models", "reporting", "errors"},
    "stages": {"core", "data", "models", "reporting", "sampling", "training"},
    "integrations": {"core", "references", "shaping"},
}
ONLY_IN = {  # library: where it may be imported
    "flax": {"models"},
    "orbax": {"training", "stages"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "matplotlib": {"reporting", "core", "scale"},
    "ml_collections": {"recipe", "stages", "study", "scale", "aot"},
}
CORE_KNOWS = {"jax", "numpy", "scipy", "chex", "matplotlib"}  # matplotlib for `frontier.figure` alone


def place(file):
    """The package of ours that a file is in, or its own name at the top."""
    return file.relative_to(ROOT / "infalign_jax").parts[0].removesuffix(".py")


def imports(tree):
    """Every module that a file imports, at its top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    for file, tree in TREES.items():
        if place(file) == package:
            ours = {name.split(".")[1] for name in imports(tree) if name.startswith("infalign_jax.")}
            assert ours <= MAY_IMPORT[package] | {package}, f"{file} imports {ours - MAY_IMPORT[package] - {package}}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_are_known_where_they_belong(library):
    found = {place(file) for file, tree in TREES.items() for name in imports(tree) if name.split(".")[0] == library}
    assert found and found <= ONLY_IN[library]


def test_the_core_is_mathematics():
    for file, tree in TREES.items():
        if place(file) == "core":
            known = CORE_KNOWS | {"infalign_jax"} | set(sys.stdlib_module_names)
            assert {name.split(".")[0] for name in imports(tree)} <= known, file


def test_the_package_imports_light():
    program = "import sys, infalign_jax, infalign_jax.main; print([m for m in ('flax', 'orbax', 'grain', 'matplotlib') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert told.stdout == "[]\n", told


def public(body, above=""):
    """(name, node) of the functions, classes and methods without an underscore."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield above + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{above}{node.name}.")


def test_what_is_public_has_a_docstring():
    """A method that is documented where its protocol is defined need not say it again."""
    nodes = [(file, name, node) for file, tree in TREES.items() for name, node in public(tree.body)]
    methods = {name.split(".")[-1] for _, name, node in nodes if "." in name and ast.get_docstring(node)}
    for file, tree in TREES.items():
        assert ast.get_docstring(tree) or not tree.body, f"{file} does not say what it is about"
    for file, name, node in nodes:
        inherited = "." in name and name.split(".")[-1] in methods
        assert ast.get_docstring(node) or inherited, f"{file}: {name} has no docstring"


def test_docstrings_of_the_core_name_errors():
    for file, tree in TREES.items():
        for name, node in public(tree.body) if place(file) == "core" else ():
            if isinstance(node, ast.FunctionDef) and any(isinstance(part, ast.Raise) for part in ast.walk(node)):
                told = ast.get_docstring(node)
                assert re.search("[Rr]aise|ValueError|[Rr]efuse|errors as in", told), (
                    f"{file}: {name} does not say what it refuses"
                )


def reference():
    """The modules and functions of the site's reference page."""
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    for name in names:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, name = name.rpartition(".")
            yield getattr(importlib.import_module(module), name)
        else:
            members = vars(module).values()
            yield from (x for x in members if inspect.isfunction(x) and x.__module__ == name and x.__name__[0] != "_")


def test_the_reference_tells_every_argument():
    functions = [x for x in reference() if inspect.isfunction(x)]
    functions += [getattr(infalign_jax, name) for name in infalign_jax._FUNCTIONS]
    assert len(functions) > 40
    for function in functions:
        told = f"{inspect.getdoc(function)} {sys.modules[function.__module__].__doc__}"
        for name in inspect.signature(function).parameters:
            bare = re.sub(r"_[A-Z]+$", "", name)
            assert re.search(rf"\b{bare}(_[A-Z]+)?\b", told), f"{function.__module__}.{function.__name__}: {name}"


MODULES = [f"infalign_jax.core.{module.name}" for module in pkgutil.iter_modules([str(ROOT / "infalign_jax" / "core")])]
MODULES += [f"infalign_jax.{name}" for name in ("shaping", "references", "frontier_table", "reporting.visible")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert not doctest.testmod(importlib.import_module(name)).failed


def test_what_people_import_has_an_example():
    finder = doctest.DocTestFinder(recurse=False)
    for name in infalign_jax._FUNCTIONS:
        if name != "load_policy":  # needs a trained one
            (example,) = finder.find(getattr(infalign_jax, name), name)
            assert example.examples, f"infalign_jax.{name} has no example"


def test_the_example_of_the_readme_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert said.startswith("certified 0.9") and "Estimate(value=0." in said
