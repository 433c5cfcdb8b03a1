"""`infalign score`: calibrated and transformed rewards, from files alone."""

import itertools
import sys

import numpy as np

from infalign_jax import flags, references, shaping
from infalign_jax.data import files

PAGE = """infalign score --rewards FILE [--reference FILE] [flags]

  Turns rewards into calibrated rewards u, their quantile among the rewards of the reference policy's responses to the
  same prompt, and into scores phi(u), on which any trainer can train. Files are .jsonl, .csv or .parquet.

  --rewards FILE      rows with a prompt and a reward, a number or a list of them (one a response; in CSV as JSON,
                      [0.5, 2]); other columns are kept
  --reference FILE    rows with a prompt and a reward of a reference response, or a list of them; rows of one prompt are
                      pooled. Without it every row of --rewards must have a list 'reference_rewards'
  --transform NAME    identity (the default), log, "exponential(10)", or with --kl "optimal(best_of(8))"
  --kl NATS           the KL you aim for; the KL coefficient that theory asks for is then told on standard error
  --tails KIND        flat (the default), or exponential: tells responses apart that beat all reference responses
  --prompt COLUMN     the column that says which rows belong together (prompt)
  --reward COLUMN     the column of the rewards, in both files (reward)
  --out FILE          where to write; - (the default) is standard output, as JSON lines

  Written are the rows of --rewards in their order, with two more columns, 'calibrated' and 'score'. Scores have mean 0 and
  variance 1 for the reference policy. Memory grows with the reference rewards only.

  infalign score --rewards rewards.jsonl --reference reference.jsonl --transform "exponential(10)" --out scores.jsonl
"""
_FLAGS = {  # name -> (default, how its text is read)
    "rewards": (None, str), "reference": ("", str), "transform": ("identity", str), "kl": (0.0, float),
    "tails": ("flat", str), "prompt": ("prompt", str), "reward": ("reward", str), "out": ("-", str),
}  # fmt: skip
_CHUNK = 2048  # rewards calibrated at once
_ADDED = ("calibrated", "score")


def main(words):
    """The command: reads the flags and writes the rows."""
    if {"--help", "-h"} & set(words):
        return print(PAGE, end="")
    options = flags.parse("infalign score", words, _FLAGS)
    kl = _kl(options["kl"], words)
    # A bad name is told before files are read.
    shaping.make_shaping(options["transform"], kl=kl, tails=options["tails"])
    columns = {"prompt": options["prompt"], "reward": options["reward"]}
    table = references.read(options["reference"], **columns) if options["reference"] else None
    rollouts = references.typical_count(table) if table else None
    how = shaping.make_shaping(options["transform"], kl=kl, rollouts=rollouts, tails=options["tails"])
    rows = scored(files.read(options["rewards"]), table, how, **columns)
    rows = itertools.chain([next(rows)], rows)  # a file without a usable first row leaves nothing behind
    if options["out"] == "-":
        for row in rows:
            print(files.to_json(row))
    else:
        with files.writer(options["out"]) as write:
            for row in rows:
                write(row)
    if kl is not None:
        print(f"at KL {kl:g} nats per sequence theory asks for a KL coefficient of {how.beta:.4g}", file=sys.stderr)


def _kl(value, words):
    given = any(word.split("=")[0] == "--kl" for word in words)
    if given and not 0 < value < np.inf:
        raise ValueError(f"--kl is {value:g}; it must be a positive number of nats per sequence")
    return value if given else None


def scored(rows, table, how, *, prompt="prompt", reward="reward"):
    """Rows with `calibrated` and `score` beside their rewards, in order, a chunk at a time.

    Args:
      rows: (where, row) pairs, as `files.read` yields them.
      table: {key: reference rewards} of `references`, or None: each row's own 'reference_rewards'.
      how: `shaping.Shaping`.
      prompt, reward: columns.

    Raises:
      ValueError: with file and line: a missing column, a prompt without reference rewards, a reward that is no finite number, a
        row that has a column 'calibrated' or 'score' already.
    """
    chunk, size = [], 0
    for where, row in rows:
        values = references.numbers(references.cell(row, reward, where), reward, where)
        if taken := [name for name in _ADDED if name in row]:
            raise ValueError(f"{where}: the row has a column {taken[0]!r} already; rename it")
        chunk.append((row, values, _reference(row, table, prompt, where)))
        size += values.size
        if size >= _CHUNK:
            yield from _shaped(chunk, how)
            chunk, size = [], 0
    yield from _shaped(chunk, how)


def _reference(row, table, prompt, where):
    if table is None:
        name = "reference_rewards"
        if row.get(name) is None:
            raise ValueError(f"{where}: the row has no list {name!r}; add it or give --reference FILE")
        return references.row_of(references.numbers(row[name], name, where), where)
    name = references.key(references.cell(row, prompt, where))
    if name not in table:
        raise ValueError(f"{where}: the prompt {name[:80]!r} has no reference reward in the reference file")
    return table[name]


def _shaped(chunk, how):
    flat = np.array([reward for _, values, _ in chunk for reward in values.ravel()])
    rows = [reference for _, values, reference in chunk for _ in range(values.size)]
    columns = [column.tolist() for column in shaping.shape(how, flat, rows)]
    first = 0
    for row, values, _ in chunk:
        last = first + values.size
        added = {
            name: column[first:last] if values.ndim else column[first]
            for name, column in zip(_ADDED, columns, strict=True)
        }
        yield row | added
        first = last
