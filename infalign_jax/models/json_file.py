"""JSON files of model folders, which others wrote."""

import json
from pathlib import Path


def read_object(path) -> dict:
    """The JSON object in a file. Raises ValueError naming the file if it holds none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}; it must be an object")
    return value
