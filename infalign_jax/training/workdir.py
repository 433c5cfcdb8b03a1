"""The working directory of a run: one folder a stage, a record of the config it was made by, and what is done."""

import hashlib
import json
import time

from etils import epath

# Sections that change only how a run is watched, stored or measured; a workdir may be taken up again with other values.
_FREE = ("log", "evaluate", "mesh", "judge")


def write_json(path, value):
    """Writes JSON so that a reader sees the old file or the new one, never half of it (rename is atomic)."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / (path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, default=float, allow_nan=False) + "\n")
    temporary.replace(path)


def read_json(path):
    """The JSON value in `path`."""
    return json.loads(epath.Path(path).read_text())


def fingerprint(value):
    """Twelve hex digits that change when the JSON value does."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def differences(old, new, prefix=""):
    """Dotted keys at which two nested dicts differ, each as 'key: old -> new'."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def claim(config):
    """Makes the workdir, or takes it up again, and records the config in it.

    Args:
      config: nested dict of JSON values with the key `workdir`.

    Raises:
      ValueError: the workdir was made by a config that differs in a key its results depend on; names those keys.
    """
    workdir = epath.Path(config["workdir"])
    config = json.loads(json.dumps({key: value for key, value in config.items() if key != "workdir"}))
    path = workdir / "config.json"
    if path.exists():
        old = {key: value for key, value in read_json(path).items() if key not in _FREE}
        changed = differences(old, {key: value for key, value in config.items() if key not in _FREE})
        # A method added to or dropped from the list leaves the others' runs valid.
        changed = [line for line in changed if not line.startswith("align.methods:")]
        if changed:
            raise ValueError(f"workdir {workdir} was made by another config ({'; '.join(changed)}); choose another --workdir")
    try:
        write_json(path, config)
    except OSError as error:
        raise ValueError(f"workdir {workdir} cannot be written: {error.strerror or error}") from error


def done(folder):
    """The result of a finished stage (the content of its `done.json`), or None."""
    path = epath.Path(folder) / "done.json"
    return read_json(path) if path.exists() else None


def finish(folder, result, started):
    """Marks a stage as finished, with the numbers it reports and the seconds since `started` (`time.monotonic()`)."""
    result = {**result, "stage_seconds": time.monotonic() - started}
    write_json(epath.Path(folder) / "done.json", result)
    return result
