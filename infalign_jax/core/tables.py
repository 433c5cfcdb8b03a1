"""Calibration tables: the reference rewards of each prompt, ascending, masked where prompts have fewer rollouts."""

from typing import NamedTuple

import numpy as np


class Table(NamedTuple):
    """rewards_PK float32, ascending in each row, +inf where mask_PK (bool) is False; the masked entries come last.

    Goes into `calibrate(rewards, table.rewards_PK, reference_mask=table.mask_PK, is_sorted=True)`.
    """

    rewards_PK: np.ndarray
    mask_PK: np.ndarray

    @property
    def counts_P(self):
        """Rollouts of each prompt."""
        return self.mask_PK.sum(1)


def make_table(rewards, mask_PK=None) -> Table:
    """A table from rewards in any order: an array [P, K], or P rows of unequal length.

    mask_PK (with an array only) is 0 where a rollout failed; what stands there is not looked at. K of the result is the
    largest number of rollouts any prompt has. Host code.
    Raises ValueError for a prompt without rollouts or for a reward that is not finite in float32.

    Examples:
      >>> make_table([[2.0, 1.0], [3.0]]).rewards_PK.tolist()
      [[1.0, 2.0], [3.0, inf]]
    """
    rows = list(rewards)
    if mask_PK is not None:
        if np.shape(mask_PK) != np.shape(rewards):
            raise ValueError(f"mask_PK has shape {np.shape(mask_PK)} but the rewards have {np.shape(rewards)}")
        rows = [np.asarray(row)[np.asarray(keep, bool)] for row, keep in zip(rows, mask_PK, strict=True)]
    return _from_rows(rows)


def merge_tables(tables) -> Table:
    """One table from several of the *same prompts in the same order*: rollouts of several hosts, runs or seeds, pooled.

    A prompt's rollouts must come from the same reference policy and be scored by the same reward: that is the caller's
    to know. Raises ValueError for no tables or for different numbers of prompts.
    """
    tables = list(tables)
    sizes = [len(table.rewards_PK) for table in tables]
    if len(set(sizes)) != 1:
        raise ValueError(f"tables to merge must be of the same prompts, got numbers of prompts {sizes}")
    parts = [[row[keep] for row, keep in zip(*table, strict=True)] for table in tables]
    return _from_rows([np.concatenate(rows) for rows in zip(*parts, strict=True)])


def _from_rows(rows):
    counts = [np.size(row) for row in rows]
    if not rows or 0 in counts:
        where = f"prompt {counts.index(0)} has none" if rows else "there is no prompt"
        raise ValueError(f"every prompt needs at least one reference rollout, but {where}")
    table = np.full((len(rows), max(counts)), np.inf, np.float32)
    for p, row in enumerate(rows):
        with np.errstate(over="ignore"):
            single = np.sort(np.asarray(row, np.float32))
        if not np.isfinite(single).all():
            value = np.asarray(row)[~np.isfinite(np.asarray(row, np.float64).astype(np.float32))][0]
            raise ValueError(f"a reference reward of prompt {p} is {value}; every reward must be finite in float32")
        table[p, : len(single)] = single
    return Table(table, np.arange(max(counts)) < np.array(counts)[:, None])
