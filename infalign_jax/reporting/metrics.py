"""Metrics of a loop on disk: one JSON object a line, each step once however often resumed; TensorBoard if asked."""

import json
import math
import os
import pathlib
import tempfile

from etils import epath

FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends {"step": ..., name: number, ...} to `folder`/metrics.jsonl, flushed line by line.

    A run that resumes at step `start` first drops the rows with step >= start (they will be written again) and a last
    line that a killed process left half written. With `tensorboard=True` scalars also go to `folder`/tensorboard,
    purged likewise.

    Raises ValueError when tensorboard is asked for without tensorboardX, or when a line before the last is broken.
    """

    def __init__(self, folder, start=0, *, tensorboard=False):
        self.folder = epath.Path(folder)
        self.board = _open_board(self.folder / "tensorboard", start) if tensorboard else None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path, self.local = self.folder / FILE, self.folder / FILE
        _keep_before(self.path, start)
        if "://" in os.fspath(self.path):  # nothing can be appended to an object in a bucket
            self.local = epath.Path(tempfile.mkdtemp(prefix="infalign-metrics-")) / FILE
            self.local.write_bytes(self.path.read_bytes() if self.path.exists() else b"")
        self.file = pathlib.Path(self.local).open("a", encoding="utf-8")  # noqa: SIM115 (`close` does)

    def write(self, step, numbers):
        """One row of Python, numpy or jax scalars; non-finite ones are kept, as the text 'nan', 'inf' or '-inf'."""
        row = {"step": int(step), **{name: _plain(value) for name, value in numbers.items()}}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, float(value), int(step))

    def sync(self):
        """Makes sure that the rows so far are in the folder: a bucket sees them only now."""
        if self.local != self.path:
            self.path.write_bytes(self.local.read_bytes())

    def close(self):
        """Closes the files; writing afterwards is an error."""
        self.file.close()
        self.sync()
        if self.board is not None:
            self.board.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()


def read(folder):
    """The rows of `folder`/metrics.jsonl as dicts, without a half-written last line; [] when there is no file.

    'nan', 'inf' and '-inf' come back as floats. ValueError with the line number when another line is broken.
    """
    path = epath.Path(folder) / FILE
    return [
        {name: float(value) if isinstance(value, str) else value for name, value in row.items()} for row in _rows(path)
    ]


def _rows(path):
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for index, line in enumerate(lines):
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, KeyError, TypeError):
            if index == len(lines) - 1:  # empty, or what a killed process left unfinished
                break
            raise ValueError(f"{path} line {index + 1} is not a row of metrics (a JSON object with a step)") from None
    return rows


def _keep_before(path, start):
    if not path.exists():
        return
    text = "".join(json.dumps(row) + "\n" for row in _rows(path) if row["step"] < start)
    spare = path.parent / f"{path.name}.new"
    spare.write_text(text)
    spare.replace(path)


def _plain(value):
    if isinstance(value, bool | int):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _open_board(folder, start):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError(
            "TensorBoard metrics are asked for, but tensorboardX is not installed: pip install "
            "'infalign-jax[tensorboard]', or turn them off"
        ) from None
    return SummaryWriter(str(folder), purge_step=start)
