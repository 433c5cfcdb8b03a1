"""Ragged and merged tables, and transforms as tables: the same numbers as without them."""

import jax
import numpy as np
import pytest

from infalign_jax.core import lookup, transforms
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
        (lambda: lookup.grid(0), "at least 1, got 0"),
        (lambda: lookup.grid(4, "normal"), "flat, exponential, got 'normal'"),
    ],
)
def test_bad_tables_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_lookup_in_a_flat_table_is_the_tabulated_value():
    for k in (1, 7, 64, 1000):
        values = RNG.normal(size=2 * k + 1).astype(np.float32)
        u = calibrate(np.arange(-0.5, k, 0.5), np.arange(float(k)))
        np.testing.assert_allclose(jax.jit(lookup.lookup)(u, lookup.grid(k), values), values, atol=4e-7 * 2 * k + 1e-6)


@pytest.mark.parametrize("name", ["identity", "log", "exponential(10)", "exponential(-10)", "exponential(100)"])
def test_lookup_with_tails_interpolates_any_transform(name):
    phi = transforms.standardize(transforms.from_name(name))
    points = lookup.grid(64, "exponential")
    u = np.concatenate([np.linspace(0.001, 0.999, 3001), 1 - np.geomspace(1e-3, 1e-4, 50)])
    got = lookup.lookup(u.astype(np.float32), points, np.float32(phi(points.astype(np.float64))))
    np.testing.assert_allclose(got, phi(u), atol=2e-3, rtol=1e-3)


def test_lookup_keeps_nan_and_is_finite_at_the_ends():
    points = lookup.grid(64, "exponential")
    values = np.float32(transforms.log()(points))
    got = np.asarray(lookup.lookup(np.float32([np.nan, 0.0, 1.0]), points, values))
    assert np.isnan(got[0]) and np.isfinite(got[1:]).all()
