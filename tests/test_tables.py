"""Ragged and merged tables: the same numbers as without them."""

import numpy as np
import pytest

from infalign_jax.core.calibration import calibrate
from infalign_jax.core.tables import make_table, merge_tables

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("tails", ["flat", "exponential"])
def test_ragged_rows_calibrate_like_each_row_alone(tails):
    rows = [RNG.normal(size=n) for n in (3, 8, 1)]
    table = make_table(rows)
    rewards = RNG.normal(size=(3, 5))
    u = calibrate(rewards, table.rewards_PK, reference_mask=table.mask_PK, is_sorted=True, tails=tails)
    np.testing.assert_array_equal(table.counts_P, [3, 8, 1])
    for p, row in enumerate(rows):
        np.testing.assert_allclose(u[p], calibrate(rewards[p], row, tails=tails), rtol=1e-6)


def test_failed_rollouts_are_left_out():
    table = make_table([[3.0, np.nan, 1.0], [2.0, 5.0, 4.0]], mask_PK=[[1, 0, 1], [1, 1, 1]])
    np.testing.assert_array_equal(table.rewards_PK, [[1, 3, np.inf], [2, 4, 5]])


def test_merging_is_pooling():
    first, second = [[1.0, 5.0], [0.0]], [[3.0], [2.0, -1.0]]
    merged = merge_tables([make_table(first), make_table(second)])
    for got, expected in zip(merged, make_table([[1.0, 5.0, 3.0], [0.0, 2.0, -1.0]]), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: make_table([[1.0], []]), "prompt 1 has none"),
        (lambda: make_table([]), "there is no prompt"),
        (lambda: make_table([[1.0], [2.0, np.inf]]), "prompt 1 is inf"),
        (lambda: make_table([[1.0, 2.0]], mask_PK=[[1, 1, 1]]), r"mask_PK has shape \(1, 3\)"),
        (lambda: merge_tables([make_table([[1.0]]), make_table([[1.0], [2.0]])]), r"same prompts.*\[1, 2\]"),
    ],
)
def test_bad_tables_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
