"""Recipes: Python files with `get_config()`, and the command line's changes to single keys of them."""

import ast
import importlib.util
import os
import pathlib
import sys
import textwrap
import traceback
import types
from typing import Any, NamedTuple

from ml_collections import ConfigDict

_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Request(NamedTuple):
    """What a command line asks for: a config (None if no recipe was named), a workdir ('' if none), other words."""

    config: Any
    workdir: str
    words: list


def parse(arguments):
    """Reads `--config RECIPE --workdir DIR --config.section.key=value ...`, in any order, and loads the recipe.

    `--profile FIRST:LAST` is short for `--config.log.profile_steps=(FIRST,LAST)`.

    Args:
      arguments: the words of a command line; a value follows its flag after `=` or as the next word.

    Returns:
      A `Request`. Its config is locked.

    Raises:
      ValueError: an unknown flag, one without a value or given twice, a recipe that cannot be loaded, a key that it does
        not have, or a value of another type than the key's.
    """
    given, words, rest = {}, [], list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.lstrip("-")
        if name not in ("config", "workdir", "profile") and not name.startswith("config."):
            legal = "--config, --workdir, --profile and --config.section.key=value"
            raise ValueError(f"there is no flag {word!r}; legal are {legal}")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"--{name} has no value; write --{name}=VALUE")
            value = rest.pop(0)
        if name == "profile":
            name, value = "config.log.profile_steps", value.replace(":", ",")
        if name in given:
            raise ValueError(f"--{name} is given twice ({given[name]!r} and {value!r}); give it once")
        given[name] = value
    path, workdir = given.pop("config", None), given.pop("workdir", "")
    if path is None and given:
        raise ValueError(f"--{next(iter(given))} changes a recipe, and none is named; give --config FILE too")
    if path is None:
        return Request(None, os.path.expanduser(workdir), words)
    config = load(path)
    with config.unlocked():
        for name, value in given.items():
            _change(config, name, value)
    return Request(config.lock(), os.path.expanduser(workdir), words)


def shipped():
    """The folder of the recipes that come with the package: `configs/` of a clone, and its copy in an installed wheel."""
    inside = pathlib.Path(__file__).parent / "configs"
    return inside if inside.is_dir() else pathlib.Path(__file__).parents[1] / "configs"


def names():
    """The recipes that `--config` knows without a path."""
    return sorted(file.stem for file in shipped().glob("*.py") if file.stem != "__init__")


def find(path):
    """The file of a recipe: the path itself, or the recipe of that name that comes with the package.

    Raises:
      ValueError: neither; names the recipes that there are.
    """
    file = pathlib.Path(path)
    if file.is_file():
        return file
    if path in names():
        return shipped() / f"{path}.py"
    raise ValueError(
        f"--config is {path!r}, and there is no such file; recipes that need no path are {', '.join(names())}"
    )


def load(path):
    """The ConfigDict of a recipe, a file or a name (`find`). It is Python and is executed: its neighbours and the recipes
    that come with the package import as `configs.name`.

    Raises:
      ValueError: no such file, it raises (names the line), it has no `get_config()`, or that returns something else.
    """
    file = find(path)
    package = sys.modules.setdefault("configs", types.ModuleType("configs"))
    package.__path__ = list(dict.fromkeys([str(file.resolve().parent), str(shipped())]))
    # A reward 'module:function' may lie in the current folder, or beside the folder of the recipe.
    for folder in (pathlib.Path.cwd(), *([] if file.parent == shipped() else [file.resolve().parents[1]])):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("recipe", file, loader=_loader(file))
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise ValueError("it has no function get_config()")
        config = module.get_config()
    except (Exception, SystemExit) as error:
        raise ValueError(f"config file {path} cannot be used: {_describe(error, file)}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"config file {path}: get_config() returned {type(config).__name__}; it must return a ConfigDict"
        )
    return config


def _loader(file):
    """Any suffix is Python here, as it is for the interpreter."""
    return importlib.machinery.SourceFileLoader("recipe", str(file))


def _describe(error, file):
    """An error in a recipe in one line, with the recipe's own line number where it has one."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    text = textwrap.shorten(str(error), 300, placeholder=" ...")  # a ConfigDict prints all of itself
    kind = "" if isinstance(error, ValueError) and not lines else f"{type(error).__name__}: "
    return (f"line {lines[-1]}: " if lines else "") + kind + text


def _change(config, name, text):
    """Sets the key `config.a.b` to a text, read as the type that the key has."""
    *sections, key = name.split(".")[1:]
    for depth, section in enumerate(sections):
        config = _enter(config, section, ".".join(["config", *sections[:depth]]))
        if not isinstance(config, ConfigDict):
            raise ValueError(f"--{name} goes below config.{'.'.join(sections[: depth + 1])}, which is no section")
    old = _enter(config, key, ".".join(["config", *sections]))
    if isinstance(old, ConfigDict):
        raise ValueError(f"{name} is a section; set one of its keys: {', '.join(sorted(old))}")
    kind, read = next((words, read) for types, words, read in _READERS if isinstance(old, types))
    try:
        config[key] = read(text)
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        raise ValueError(f"{name} is {text[:80]!r}; it must be {kind}") from None


def _enter(config, key, where):
    if key not in config:
        raise ValueError(f"{where}.{key} is not a key of the recipe; {where} has {', '.join(sorted(config))}")
    return config[key]


def _read_tuple(text):
    """A Python tuple or list, or words between commas: `(2, 4)`, `2,4`, `raw,exponential(10)`."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        value = _split(text)
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _split(text):
    """The parts between the commas that are in no bracket; quotes around a part are dropped."""
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1]
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return tuple(part.strip().strip("'\"") for part in parts if part.strip())


# The type of the recipe's value, in words, and how a text of the command line is read as that. bool before int: it is one.
_READERS = (
    (bool, "True or False", lambda text: _BOOLS[text.strip().lower()]),
    (int, "an integer", int),
    (float, "a number", float),
    ((tuple, list), "a tuple such as (2,4)", _read_tuple),
    (str, "a string", str),
    (object, "a Python literal", ast.literal_eval),
)
