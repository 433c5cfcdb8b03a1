"""Rewards of the reference policy's responses, prompt by prompt: from files, or from rows of a dataset."""

import json

import numpy as np

from infalign_jax.data import files


def key(prompt):
    """What a prompt is looked up by: a text itself; a list of messages, a number or an identifier as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def row_of(rewards, where):
    """Reference rewards of one prompt, ascending.

    Args:
      rewards: one or more numbers.
      where: words for the error.

    Returns:
      float32 `[K]`.

    Raises:
      ValueError: none, or one that is not finite in float32.
    """
    try:
        with np.errstate(over="ignore"):
            row_K = np.sort(np.asarray(rewards, np.float64).ravel().astype(np.float32))
    except (TypeError, ValueError):
        raise ValueError(f"{where}: the reference rewards are {_short(rewards)}; they must be numbers") from None
    if not row_K.size:
        raise ValueError(f"{where}: the prompt has no reference reward; at least one is needed")
    if not np.isfinite(row_K).all():
        raise ValueError(f"{where}: a reference reward is not finite in float32: {_short(rewards)}")
    return row_K


def from_mapping(mapping):
    """{key: ascending float32 [K]} of a mapping from prompts to reference rewards, in any order and of any number.

    Examples:
      >>> {name: row.tolist() for name, row in from_mapping({"a": [2, 1], "b": [3]}).items()}
      {'a': [1.0, 2.0], 'b': [3.0]}
    """
    return {key(prompt): row_of(rewards, f"prompt {_short(prompt)}") for prompt, rewards in mapping.items()}


def read(path, *, prompt="prompt", reward="reward"):
    """The same from a JSONL, CSV or Parquet file.

    A row has a prompt and a number (one row a response; the rows of a prompt are pooled), or a prompt and a list of numbers,
    in CSV written as JSON. Memory: the rewards and the prompts, not the rest of the file.

    Args:
      path: the file.
      prompt, reward: its columns.

    Raises:
      ValueError: one sentence with the file and the line.
    """
    found = {}
    for where, row in files.read(path):
        name = key(cell(row, prompt, where))
        values = numbers(cell(row, reward, where), reward, where)
        found.setdefault(name, []).extend(row_of(values, where).tolist())
    return {name: np.sort(np.asarray(values, np.float32)) for name, values in found.items()}


def typical_count(table):
    """K of a table whose prompts have different numbers of reference rewards, as theory takes one: their median."""
    return int(np.median([len(row) for row in table.values()]))


def cell(row, column, where):
    """`row[column]`; ValueError naming the columns there are where it is missing or null."""
    if row.get(column) is None:
        raise ValueError(f"{where}: the row has no {column!r}; it has {', '.join(map(repr, row)) or 'nothing'}")
    return row[column]


def numbers(value, column, where):
    """The value of a column as a float64 array, of no axes for one number and of one for a list; CSV text is read as JSON.

    `where` is what the error begins with.

    Raises:
      ValueError: anything else, and numbers that are not finite.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{where}: {column!r} is {_short(value)}; it must be a number or a list of them") from None
    parts = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    if not all(isinstance(part, (int, float, np.number)) and not isinstance(part, bool) for part in parts):
        raise ValueError(f"{where}: {column!r} is {_short(value)}; it must be a number or a list of them")
    array = np.asarray(value, np.float64)
    if not (np.abs(array) <= np.finfo(np.float32).max).all():
        raise ValueError(f"{where}: {column!r} is {_short(value)}; every reward must be finite in float32")
    return array


def _short(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
