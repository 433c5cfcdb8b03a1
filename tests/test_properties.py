"""Properties that hold for all inputs, not for chosen ones: calibration, transforms, win rates, advantages."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infalign_jax.core import advantages, procedures, transforms, winrate
from infalign_jax.core.calibration import calibrate


def holds_for(*strategies, examples=25):
    """A test for all values of the strategies: the same examples each time, few enough for every run of the suite."""
    return lambda test: settings(max_examples=examples, deadline=None, derandomize=True)(given(*strategies)(test))


# Rewards on a grid: ties happen, and every map below is exact, so that "equal" may mean equal.
REWARD = st.integers(-40, 40).map(lambda k: k / 8)
R, K = 5, 7  # one shape: one compilation


def rewards(*shape):
    return hnp.arrays(np.float32, shape, elements=REWARD.map(np.float32))


TAILS = st.sampled_from(["flat", "exponential"])


@holds_for(rewards(3, R), rewards(3, K), TAILS)
def test_calibrated_rewards_are_quantiles_in_the_order_of_the_rewards(new, table, tails):
    u = np.asarray(calibrate(new, table, tails=tails))
    assert ((u >= 0) & (u <= 1)).all()
    for row, u_row in zip(new, u, strict=True):
        order = np.argsort(row, kind="stable")
        assert (np.diff(u_row[order]) >= -1e-6).all()
        assert (np.diff(u_row[order])[np.diff(row[order]) == 0] == 0).all()  # equal rewards, equal u


@holds_for(
    rewards(3, R), rewards(3, K), TAILS, st.permutations(range(R)), st.permutations(range(K)), st.permutations(range(3))
)
def test_order_of_responses_table_and_prompts_does_not_matter(new, table, tails, responses, entries, prompts):
    u = np.asarray(calibrate(new, table, tails=tails))
    shuffled = calibrate(new[prompts][:, responses], table[prompts][:, entries], tails=tails)
    np.testing.assert_array_equal(shuffled, u[prompts][:, responses])


@holds_for(rewards(3, R), rewards(3, K), st.integers(-9, 9), st.integers(-3, 3))
def test_calibration_sees_ranks_only(new, table, shift, power):
    u = calibrate(new, table)
    scale = np.float32(2.0**power)
    np.testing.assert_array_equal(calibrate(new * scale + shift, table * scale + shift), u)
    np.testing.assert_array_equal(calibrate(new**3 + new, table**3 + table), u)  # increasing, not affine
    np.testing.assert_allclose(calibrate(-new, -table), 1 - np.asarray(u), atol=1e-6)


@holds_for(rewards(3, R), rewards(3, K), st.integers(-9, 9), st.integers(-3, 3))
def test_exponential_tails_follow_shift_and_scale(new, table, shift, power):
    scale = np.float32(2.0**power)
    u = calibrate(new, table, tails="exponential")
    np.testing.assert_allclose(calibrate(new * scale + shift, table * scale + shift, tails="exponential"), u, atol=1e-5)


@holds_for(rewards(3, R), rewards(3, K), TAILS)
def test_calibration_under_jit_and_vmap_is_the_same(new, table, tails):
    eager = calibrate(new, table, tails=tails)
    for compiled in (_JITTED[tails], _MAPPED[tails]):
        np.testing.assert_allclose(compiled(new, table), eager, rtol=0, atol=0 if tails == "flat" else 1e-6)


_JITTED = {tails: jax.jit(lambda r, t, tails=tails: calibrate(r, t, tails=tails)) for tails in ("flat", "exponential")}
_MAPPED = {tails: jax.jit(jax.vmap(function)) for tails, function in _JITTED.items()}

NAMES = ["identity", "log", "exponential(10)", "exponential(-10)", "exponential(0.01)", "exponential(3.5)"]
U = hnp.arrays(np.float64, 6, elements=st.floats(1 / 128, 1))


@pytest.mark.parametrize("name", NAMES)
@holds_for(U, examples=15)
def test_transforms_increase_and_standardising_is_affine(name, u):
    phi = transforms.from_name(name)
    standard, order = transforms.standardize(phi), np.argsort(u)
    for function in (phi, standard):
        assert (np.diff(function(u)[order]) >= 0).all()
        np.testing.assert_array_equal(function(u[order]), function(u)[order])  # elementwise
    mean, std = transforms.moments(phi)
    np.testing.assert_allclose(standard(u), (phi(u) - mean) / std, rtol=1e-6, atol=1e-6 * max(1, abs(mean / std)))
    np.testing.assert_allclose(_compiled(name)(jnp.asarray(u, jnp.float32)), standard(u), rtol=2e-4, atol=2e-4)


_COMPILED = {}


def _compiled(name):
    if name not in _COMPILED:
        _COMPILED[name] = jax.jit(transforms.standardize(transforms.from_name(name)))
    return _COMPILED[name]


PROCEDURE = st.sampled_from(["standard", "best_of(3)", "worst_of(2)", "order_statistic(2,3)", "best_of(7)"])
PROCEDURE = PROCEDURE.map(procedures.from_name)


@holds_for(PROCEDURE, rewards(2, R + 2), rewards(2, K), st.permutations(range(R + 2)))
def test_win_rates_are_rates_and_see_ranks_only(procedure, policy, reference, order):
    rate = winrate.win_rate_per_prompt(procedure, policy, reference)
    assert ((rate >= -1e-12) & (rate <= 1 + 1e-12)).all()
    np.testing.assert_allclose(rate + winrate.win_rate_per_prompt(procedure, reference, policy), 1, atol=1e-12)
    np.testing.assert_allclose(winrate.win_rate_per_prompt(procedure, policy[:, order], reference), rate, atol=1e-12)
    mapped = winrate.win_rate_per_prompt(procedure, policy**3 + 2 * policy, reference**3 + 2 * reference)
    np.testing.assert_allclose(mapped, rate, atol=1e-12)
    assert (winrate.win_rate_per_prompt(procedure, policy + 1, reference) >= rate - 1e-12).all()  # better is not worse
    np.testing.assert_allclose(winrate.win_rate_per_prompt(procedure, policy, policy), 0.5, atol=1e-12)


@holds_for(rewards(3, R), st.integers(-9, 9), st.integers(-3, 3), st.permutations(range(R)))
def test_advantages_sum_to_zero_shift_away_and_follow_the_order(returns, shift, power, order):
    scale = np.float32(2.0**power)
    for function, scales in ((advantages.leave_one_out, scale), (advantages.group_standardize, 1)):
        plain = np.asarray(function(jnp.asarray(returns)))
        np.testing.assert_allclose(plain.sum(-1), 0, atol=1e-3)
        np.testing.assert_allclose(function(jnp.asarray(returns + shift)), plain, atol=1e-3)
        np.testing.assert_allclose(function(jnp.asarray(returns[:, order])), plain[:, order], atol=1e-4)
        if scales != 1:
            np.testing.assert_allclose(function(jnp.asarray(returns * scale)), plain * scales, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(jax.jit(function)(jnp.asarray(returns)), plain, rtol=1e-5, atol=1e-5)
        assert (np.diff(np.take_along_axis(plain, np.argsort(returns), -1)) >= -1e-5).all()
