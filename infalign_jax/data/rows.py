"""JSON lines, plain or gzipped, read with errors that name the file and the line."""

import gzip
import json
import pathlib
import zlib


def read_rows(path):
    """Yields `(where, row)` for each line of a JSON-lines file: `where` is 'path:line' for messages, `row` a dict.

    Gzip is told by the file's first bytes, not its name. Blank lines are skipped.

    Raises:
      ValueError: the file is missing, not UTF-8, a damaged gzip, holds a line that is not a JSON object, or holds no
        row.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"data file {str(path)!r} does not exist")
    with open(path, "rb") as file:
        opener = gzip.open if file.read(2) == b"\x1f\x8b" else open
    number = rows = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows += 1
                    yield f"{path}:{number}", _parse(line, f"{path}:{number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}:{number + 1}: the gzip file is damaged or cut short") from error
    if not rows:
        raise ValueError(f"data file {str(path)!r} is empty; at least one JSON line is needed")


def _parse(line, where):
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: the line is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: the line is not valid JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise ValueError(f"{where}: the line is not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: the line holds a JSON {type(row).__name__}; a row must be a JSON object")
    return row


def read_text(row, key, where):
    """The string under `key`; ValueError naming the line where it is missing or of another type."""
    if key not in row:
        raise ValueError(f"{where}: the row has no key {key!r}; its keys are {', '.join(map(repr, row)) or 'none'}")
    if not isinstance(row[key], str):
        raise ValueError(f"{where}: {key!r} has type {type(row[key]).__name__}; it must be a string")
    return row[key]
