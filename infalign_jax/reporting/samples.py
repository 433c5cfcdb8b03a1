"""Responses of a policy while it is trained: kept as JSON lines in its folder, shown as a table."""

import json
import shutil
import sys

from etils import epath
from tqdm import tqdm

from infalign_jax.reporting.visible import visible

FILE = "samples.jsonl"
MOST_ROWS = 4  # of a prompt that are printed
_NUMBERS = ("reward", "calibrated", "advantage")


def add(folder, step, rows):
    """Adds the responses of a step to `folder`/samples.jsonl; those of this step or later ones, of a run that is now
    resumed, are dropped.

    Args:
      folder: the policy's.
      step: number of updates behind it.
      rows: dicts with prompt, response, reward, calibrated and advantage.
    """
    path = epath.Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [row for row in read(folder) if row["step"] < step]
    spare = path.parent / f"{FILE}.new"
    spare.write_text("".join(json.dumps(row) + "\n" for row in [*kept, *({"step": step, **row} for row in rows)]))
    spare.replace(path)


def read(folder):
    """The rows of `folder`/samples.jsonl, oldest first; [] where there is no such file."""
    path = epath.Path(folder) / FILE
    return [json.loads(line) for line in path.read_text().split("\n") if line] if path.exists() else []


def table(rows, width=None):
    """A prompt's responses as text, from the highest reward to the lowest: numbers, then as much of it as fits the line.

    Args:
      rows: as for `add`, of one prompt; of many some are shown, the highest and the lowest among them.
      width: letters of a line; None is the terminal's.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    ranked = sorted(rows, key=lambda row: -row["reward"])
    last = len(ranked) - 1
    shown = [ranked[round(i * last / (MOST_ROWS - 1))] for i in range(MOST_ROWS)] if last >= MOST_ROWS else ranked
    lines = [f"  {'reward':>9}  {'u':>6}  {'advantage':>9}  response to: {visible(rows[0]['prompt'])}"]
    for row in shown:
        reward, u, advantage = (row[name] for name in _NUMBERS)
        lines.append(f"  {reward:9.3f}  {u:6.3f}  {advantage:9.3f}  {visible(row['response'])}")
    return "\n".join(_cut(line, width) for line in lines)


def show(title, rows):
    """Prints the table on standard error, without tearing a progress bar."""
    tqdm.write(f"{title}\n{table(rows)}", file=sys.stderr)


def _cut(line, width):
    return line if len(line) <= width else line[: width - 4] + " ..."
