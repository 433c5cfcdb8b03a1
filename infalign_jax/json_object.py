"""JSON objects in the files of models and tokenisers, which others wrote."""

import json
from pathlib import Path


def parse_object(data, name) -> dict:
    """The JSON object in bytes of a file of this name. Raises ValueError naming the file if they hold none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # no text, not JSON, or nested without end
        raise ValueError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds a JSON {type(value).__name__}; it must be an object")
    return value


def read_object(path) -> dict:
    """The JSON object in a file; errors as in `parse_object`."""
    return parse_object(Path(path).read_bytes(), path)
