"""The evaluation on disk, read back and checked: the single source of every table, figure and page."""

import json
import math
from typing import NamedTuple

from etils import epath

RESULT_KEYS = ("method", "procedure", "n", "judge", "kl", "kl_se", "win_rate", "low", "high", "theory")
KEYS = {
    "results": RESULT_KEYS,
    "comparisons": ("method", "baseline", "procedure", "n", "judge", "difference", "low", "high"),
    "frontier": (*RESULT_KEYS, "alpha"),
    "theory": ("procedure", "n", "transform", "kl", "win_rate"),
    "kl_by_group": ("method", "group", "kl", "kl_se"),
    "samples": ("method", "prompt", "completion", "reward", "calibrated", "truncated", "judge_reward"),
}
CALIBRATION_KEYS = ("bins", "counts_by_group", "counts", "expected", "note", "K")
SUMMARY_KEYS = ("target_kl", "headline", "stages", "config", "versions", "notes", "truncated_fraction")
NULLABLE = ("theory", "judge_reward")
PROCEDURES = ("standard", "best_of", "worst_of")


class Evaluation(NamedTuple):
    """What the evaluate stage wrote: row dicts and two objects. KL in nats per sequence, win rates in [0, 1]."""

    results: list
    comparisons: list
    frontier: list
    theory: list
    kl_by_group: list
    calibration: dict
    samples: list
    summary: dict


def read(folder):
    """Reads the JSON files of an evaluation folder into an `Evaluation`.

    Raises ValueError, in one sentence that names the file (and the row and key), when a file is missing or is not
    JSON, when a key is missing, when a number is not finite, or when there are no results.
    """
    folder = epath.Path(folder)
    values = {name: _read_json(folder / f"{name}.json") for name in Evaluation._fields}
    for name, keys in KEYS.items():
        _check_rows(folder / f"{name}.json", values[name], keys)
    for name, keys in (("calibration", CALIBRATION_KEYS), ("summary", SUMMARY_KEYS)):
        _check_keys(folder / f"{name}.json", values[name], keys, "the object")
    _check_keys(folder / "summary.json", values["summary"]["headline"], ("procedure", "n", "judge"), "headline")
    if not values["results"]:
        raise ValueError(f"{folder / 'results.json'} holds no rows: evaluate at least one method before reporting")
    return Evaluation(**values)


def _read_json(path):
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: run the evaluate stage first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable as JSON ({error})") from None


def _check_rows(path, rows, keys):
    if not isinstance(rows, list):
        raise ValueError(f"{path} must be a list of rows, not {type(rows).__name__}")
    for index, row in enumerate(rows):
        _check_keys(path, row, keys, f"row {index}")
        for key in keys:
            value = row[key]
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{path}: {key} of row {index} is {value}; it must be finite")
            if value is None and key not in NULLABLE and key != "n":
                raise ValueError(f"{path}: {key} of row {index} is null; only {', '.join(NULLABLE)} may be")
        if row.get("procedure", "standard") not in PROCEDURES:
            raise ValueError(
                f"{path}: procedure of row {index} is {row['procedure']!r}; legal: {', '.join(PROCEDURES)}"
            )


def _check_keys(path, value, keys, where):
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {where} must be an object, not {type(value).__name__}")
    missing = [key for key in keys if key not in value]
    if missing:
        raise ValueError(f"{path}: {where} has no {', '.join(missing)}")


def procedure_key(row):
    """(procedure, n) of a row, with n = 1 for standard sampling whatever was stored."""
    return (row["procedure"], 1 if row["procedure"] == "standard" else int(row["n"]))


def procedure_title(key):
    """'standard', 'best-of-4', 'worst-of-4' for a (procedure, n) key."""
    procedure, n = key
    return procedure if procedure == "standard" else f"{procedure.replace('_', '-')}-{n}"


def procedure_position(key):
    """Sort key from the hardest worst-of-N through standard sampling to the largest best-of-N."""
    procedure, n = key
    return {"worst_of": -n, "standard": 0, "best_of": n}[procedure]


def unique(rows, key):
    """The distinct values of `key` (a column name or a function of the row), in the order of first appearance."""
    get = key if callable(key) else lambda row: row[key]
    return list(dict.fromkeys(get(row) for row in rows))


def select(rows, **wanted):
    """The rows whose columns have the wanted values; `procedure=(name, n)` selects by `procedure_key`."""
    key = wanted.pop("procedure", None)
    return [
        row
        for row in rows
        if (key is None or procedure_key(row) == tuple(key))
        and all(row[name] == value for name, value in wanted.items())
    ]


def headline_key(evaluation):
    """((procedure, n), judge) of the comparison that the run is about."""
    headline = evaluation.summary["headline"]
    return procedure_key(headline), headline["judge"]
