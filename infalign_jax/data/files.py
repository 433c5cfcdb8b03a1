"""Rows of JSONL, CSV and Parquet files, read and written one after the other, with errors that name file and line."""

import contextlib
import csv
import json
import os
import pathlib

from infalign_jax.data.rows import read_rows

FORMATS = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_LONGEST = 2**31 - 1  # letters of a cell of a CSV file; the library's own limit is less than a long prompt
_ROWS_PER_GROUP = 4096  # of a Parquet file that is written: what is held in memory


def format_of(path):
    """'jsonl', 'csv' or 'parquet', told by the end of the name (`.jsonl.gz` is JSONL too).

    Raises:
      ValueError: another ending.
    """
    name = pathlib.Path(path).name.removesuffix(".gz")
    kind = FORMATS.get(pathlib.Path(name).suffix)
    if kind is None or (name != pathlib.Path(path).name and kind != "jsonl"):
        raise ValueError(f"the format of {str(path)!r} cannot be told; legal are .jsonl, .jsonl.gz, .csv and .parquet")
    return kind


def read(path):
    """Yields `(where, row)`: `where` is 'path:line' (of Parquet 'path row n') for messages, `row` a dict.

    Values of a CSV file are text, and of an empty cell ''. Nothing but the current row, or Parquet batch, is in memory.

    Raises:
      ValueError: no such file, an unknown format, a broken line, no row at all, or Parquet without pyarrow.
    """
    kind = format_of(path)
    if not pathlib.Path(path).is_file():
        found = pathlib.Path(path).exists()
        raise ValueError(
            f"data file {str(path)!r} {'is a folder or a device, not a file' if found else 'does not exist'}"
        )
    return {"jsonl": read_rows, "csv": _read_csv, "parquet": _read_parquet}[kind](path)


def _read_csv(path):
    rows, where = None, f"{path}:1"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            csv.field_size_limit(_LONGEST)
            rows = csv.DictReader(file, strict=True)
            names = rows.fieldnames or []
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{where}: the column {twice[0]!r} is there twice; rename one")
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if None in row or None in row.values():
                    raise ValueError(
                        f"{where}: the line does not have {len(rows.fieldnames)} cells, as the first line has"
                    )
                yield where, row
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num}: the line is not valid CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} or a line after it is not UTF-8 text") from error
    if where == f"{path}:1":
        raise ValueError(f"data file {str(path)!r} holds no row below its first line, the names of the columns")


def _read_parquet(path):
    parquet, number = _parquet(path), 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=_ROWS_PER_GROUP):
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row
    except (ValueError, OSError) as error:  # ArrowInvalid is a ValueError
        raise ValueError(f"{path}: not a valid Parquet file: {' '.join(str(error).split())}") from error
    if not number:
        raise ValueError(f"data file {str(path)!r} holds no row")


def _parquet(path):
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{str(path)!r} needs pyarrow: pip install 'infalign-jax[parquet]'") from error
    return pyarrow.parquet


@contextlib.contextmanager
def writer(path):
    """A function that writes one row, a dict; the rows have the keys of the first. The format is that of the name.

    The file appears when all is written: an error on the way leaves what was there before.

    Raises:
      ValueError: an unknown format, Parquet without pyarrow, or (CSV) a row with other keys.
    """
    kind, part = format_of(path), f"{path}.part"
    if str(path).endswith(".gz"):
        raise ValueError(f"{str(path)!r} cannot be written; write .jsonl and compress it")
    try:
        with {"jsonl": _jsonl_writer, "csv": _csv_writer, "parquet": _parquet_writer}[kind](part) as write:
            yield write
        os.replace(part, path)
    finally:
        pathlib.Path(part).unlink(missing_ok=True)


@contextlib.contextmanager
def _jsonl_writer(path):
    with open(path, "w", encoding="utf-8") as file:
        yield lambda row: print(to_json(row), file=file)


def to_json(value):
    """One line of JSON, in the letters of its texts."""
    return json.dumps(value, ensure_ascii=False)


@contextlib.contextmanager
def _csv_writer(path):
    table = None
    with open(path, "w", newline="", encoding="utf-8") as file:

        def write(row):
            nonlocal table
            if table is None:
                table = csv.DictWriter(file, row.keys(), lineterminator="\n")
                table.writeheader()
            if row.keys() != set(table.fieldnames):
                names = ", ".join(table.fieldnames)
                raise ValueError(
                    f"CSV needs the same columns in every row: one has {', '.join(row)}, the first {names}"
                )
            table.writerow({key: to_json(x) if isinstance(x, (list, dict)) else x for key, x in row.items()})

        yield write


@contextlib.contextmanager
def _parquet_writer(path):
    parquet = _parquet(path)
    import pyarrow

    rows, file = [], None

    def flush():
        nonlocal file
        table = pyarrow.Table.from_pylist(rows, schema=file and file.schema)
        file = file or parquet.ParquetWriter(path, table.schema)
        file.write_table(table)
        rows.clear()

    def write(row):
        rows.append(row)
        if len(rows) == _ROWS_PER_GROUP:
            flush()

    try:
        yield write
        if rows:
            flush()
    finally:
        if file is not None:
            file.close()
