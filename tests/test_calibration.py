"""Calibration against direct counting, its invariances, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infalign_jax.core.calibration import calibrate

LEVELS = st.integers(-3, 3).map(lambda i: i * 0.5)


def count(rewards, table):
    rewards, table = np.float32(rewards)[..., :, None], np.float32(table)[..., None, :]
    return ((table < rewards) + 0.5 * (table == rewards)).mean(-1)


@given(st.lists(LEVELS, min_size=1, max_size=9), st.lists(LEVELS, min_size=1, max_size=13))
@settings(max_examples=60, deadline=None)
def test_equals_counting_with_ties(rewards, table):
    # Padded to one shape, so that all examples share one compilation.
    expected = count(np.resize(rewards, 9), table)
    for is_sorted, row in ((False, table), (True, sorted(table))):
        options = {"is_sorted": is_sorted, "reference_mask": np.arange(13) < len(row)}
        np.testing.assert_allclose(calibrate(np.resize(rewards, 9), np.resize(row, 13), **options), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "shapes", [((5,), (7,)), ((3, 5), (3, 7)), ((2, 3, 5), (2, 3, 7)), ((4, 5), (7,)), ((0,), (7,))]
)
def test_leading_axes(shapes):
    rng = np.random.default_rng(0)
    rewards, table = (rng.integers(-4, 5, s).astype(np.float32) for s in shapes)
    u = jax.jit(calibrate)(rewards, table)
    assert u.dtype == jnp.float32 and u.shape == rewards.shape
    np.testing.assert_allclose(u, count(rewards, table), rtol=1e-6)
    if rewards.ndim > 1 and table.ndim > 1:
        np.testing.assert_array_equal(u, jax.vmap(calibrate)(rewards, table))


def test_uniform_under_the_reference_and_invariant_to_monotone_maps():
    rng = np.random.default_rng(1)
    rewards, table = rng.normal(size=(400, 50)), rng.normal(size=(400, 20))
    u = np.asarray(calibrate(rewards, table))
    # The shared table makes the rewards of one prompt dependent: the standard error comes from the prompts' means.
    assert abs(u.mean() - 0.5) < 4 * u.mean(1).std() / np.sqrt(len(u))
    np.testing.assert_array_equal(u, calibrate(np.exp(3 * rewards) - 5, np.exp(3 * table) - 5))


def test_values_are_exact_multiples_of_half_a_rank():
    table = np.arange(1000.0)
    u = calibrate(np.arange(-0.5, 1000, 0.5), table, is_sorted=True)
    np.testing.assert_array_equal(np.rint(2000 * np.asarray(u, np.float64)), np.arange(2001))
    np.testing.assert_allclose(2000 * np.asarray(u, np.float64), np.arange(2001), atol=2e-4)


def test_signed_zero_is_one_value():
    np.testing.assert_array_equal(calibrate([0.0, -0.0], [-0.0, 0.0]), [0.5, 0.5])
    np.testing.assert_array_equal(calibrate([0.0, -0.0], [-0.0, 0.0], is_sorted=True), [0.5, 0.5])


@pytest.mark.parametrize("is_sorted", [False, True])
def test_masked_rollouts_never_count(is_sorted):
    table = np.array([[1.0, 2.0, 3.0, np.nan], [0.0, 5.0, 5.0, 9.0]])
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0]])
    u = calibrate([[2.0, 9.0], [-1.0, 0.0]], table, reference_mask=mask, is_sorted=is_sorted)
    np.testing.assert_allclose(u, [[0.5, 1.0], [0.0, 0.5]], rtol=1e-6)


def test_gradient_is_zero():
    gradient = jax.grad(lambda r, t: calibrate(r, t).sum(), argnums=(0, 1))
    for g in gradient(jnp.array([0.3, 1.0]), jnp.array([0.0, 1.0, 2.0])):
        np.testing.assert_array_equal(g, jnp.zeros_like(g))


@pytest.mark.parametrize(
    ("rewards", "table", "options", "says"),
    [
        ([0.0], [], {}, r"at least one reference rollout"),
        (0.0, [1.0], {}, r"at least one axis"),
        ([0.0, np.nan], [1.0], {}, r"rewards has nan at index \[1\]"),
        ([1e39], [1.0], {}, r"rewards has 1e\+39 at index \[0\]"),
        ([0.0], [[1.0, 2.0], [1.0, -np.inf]], {}, r"reference_rewards has -inf at index \[1, 1\]"),
        ([0.0], [2.0, 1.0], {"is_sorted": True}, r"does not ascend after entry \[0\]"),
        ([[0.0]] * 3, [[1.0]] * 2, {}, r"leading axes .*\(3, 1\).*\(2, 1\)"),
        ([0.0], [1.0, 2.0], {"reference_mask": [0, 0]}, r"no rollout in row \[\]"),
        ([0.0], [1.0, 2.0], {"reference_mask": [1, 1, 1]}, r"reference_mask has shape \(3,\)"),
        ([0.0], [1.0, 2.0, 3.0], {"reference_mask": [1, 0, 1], "is_sorted": True}, r"does not ascend"),
    ],
)
def test_bad_input_is_refused_at_the_host_boundary(rewards, table, options, says):
    with pytest.raises(ValueError, match=says):
        calibrate(rewards, table, **options)


def test_bad_values_inside_jit_become_nan_and_stay_in_their_row():
    step = jax.jit(lambda r, t, m: calibrate(r, t, is_sorted=True, reference_mask=m))
    rewards = jnp.array([[0.5, jnp.nan, jnp.inf], [0.5, 1.5, 2.5], [0.5, 1.5, 2.5], [0.5, 1.5, 2.5], [0.5, 1.5, 2.5]])
    table = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, jnp.inf], [0.0, 1.0], [0.0, 1.0]])
    mask = jnp.array([[1, 1], [1, 1], [1, 1], [0, 0], [1, 1]], bool)
    nan = np.nan
    expected = [[0.5, nan, nan], [nan] * 3, [nan] * 3, [nan] * 3, [0.5, 1.0, 1.0]]
    np.testing.assert_array_equal(step(rewards, table, mask), expected)
    unsorted = jax.jit(calibrate)(jnp.array([0.5]), jnp.array([jnp.nan, 0.0, 1.0]))
    assert np.isnan(unsorted).all()


def test_a_sorted_table_is_not_sorted_again():
    text = jax.jit(lambda r, t: calibrate(r, t, is_sorted=True)).lower(jnp.ones(3), jnp.ones(9)).as_text()
    assert "stablehlo.sort" not in text
    assert "stablehlo.sort" in jax.jit(calibrate).lower(jnp.ones(3), jnp.ones(9)).as_text()
