"""Diagnostics: no false alarms under dependence and ties, alarms for every fault they name, errors against truth."""

import math

import numpy as np
import pytest
from scipy import stats

from infalign_jax.core.calibration import calibrate
from infalign_jax.core.diagnostics import calibration_error, reliability_curve, rollouts_needed, uniformity_test

P, R, K = 60, 8, 16


def rewards(rng, count, levels=None):
    """Reference rewards of P prompts of very different scale; `levels` makes them discrete."""
    values = rng.normal(size=(P, count))
    values = values if levels is None else np.floor(levels * stats.norm.cdf(values))
    return values * np.linspace(0.1, 5, P)[:, None]


@pytest.mark.parametrize("levels", [None, 4, 2])
def test_correct_tables_pass_although_their_rewards_share_a_table_and_tie(levels):
    rng = np.random.default_rng(0)
    trials = 80
    p = np.array(
        [
            uniformity_test(rewards(rng, R, levels), rewards(rng, K, levels), permutations=100).p_value
            for _ in range(trials)
        ]
    )
    for level in (0.05, 0.2):
        assert np.mean(p < level) < level + 4 * math.sqrt(level * (1 - level) / trials)
    naive = [
        stats.kstest(np.ravel(calibrate(rewards(rng, R), rewards(rng, K))), "uniform").pvalue < 0.05 for _ in range(20)
    ]
    assert np.mean(naive) > 0.3  # what the shared table does to a test that ignores it


@pytest.mark.parametrize(
    "fault",
    [
        lambda held: held + 0.5 * np.linspace(0.1, 5, P)[:, None],
        lambda held: held * 1.6,
        lambda held: held[::-1],
        lambda held: held + np.where(np.arange(P) % 2, 1, -1)[:, None] * np.linspace(0.1, 5, P)[:, None],
    ],
    ids=["better policy", "other spread", "other prompts' tables", "shifts that cancel"],
)
def test_wrong_tables_fail(fault):
    rng = np.random.default_rng(1)
    assert uniformity_test(fault(rewards(rng, R)), rewards(rng, K)).p_value < 1e-3


def test_a_wrong_group_is_named_and_the_same_seed_repeats():
    rng = np.random.default_rng(2)
    held, table = rewards(rng, R), rewards(rng, K)
    groups = np.where(np.arange(P) < 20, "calm", "angry")
    held[:20] += 2 * np.linspace(0.1, 5, P)[:20, None]
    result = uniformity_test(held, table, groups=groups)
    assert result.p_by_group["calm"] < 1e-6 < 0.01 < result.p_by_group["angry"]
    assert result.mean_u_by_group["calm"] > 0.8 and abs(result.mean_u_by_group["angry"] - 0.5) < 0.1
    assert result == uniformity_test(held, table, groups=groups)


def test_equal_rewards_everywhere_prove_nothing():
    assert uniformity_test(np.ones((3, 4)), np.ones((3, 5))).p_value == 1.0


def test_ragged_rows():
    rng = np.random.default_rng(3)
    table = [rng.normal(size=n) for n in rng.integers(2, 20, P)]
    held = [rng.normal(size=n) for n in rng.integers(1, 9, P)]
    assert uniformity_test(held, table).p_value > 0.01
    assert np.all(abs(reliability_curve(held, table).observed - np.linspace(0.05, 0.95, 19)) < 0.15)


@pytest.mark.parametrize("levels", [None, 3])
def test_reliability_is_the_diagonal_for_correct_tables_of_any_size(levels):
    rng = np.random.default_rng(4)
    inside, observed = 0, 0
    for _ in range(100):
        curve = reliability_curve(rewards(rng, R, levels), rewards(rng, 3, levels))
        inside += np.mean((curve.low <= curve.levels) & (curve.levels <= curve.high)) / 100
        observed = observed + curve.observed / 100
    np.testing.assert_allclose(observed, curve.levels, atol=0.015)
    assert 0.9 < inside < 0.99


def test_reliability_sees_a_better_policy():
    rng = np.random.default_rng(5)
    curve = reliability_curve(rewards(rng, R) + np.linspace(0.1, 5, P)[:, None], rewards(rng, K))
    assert np.all(curve.high < curve.levels)


@pytest.mark.parametrize("tails", ["flat", "exponential"])
def test_calibration_error_is_that_of_the_truth(tails):
    rng = np.random.default_rng(6)
    held, table = rng.normal(size=(1500, 12)), rng.normal(size=(1500, 10))
    u = np.asarray(calibrate(held, table, tails=tails))
    truth = u - stats.norm.cdf(held)
    estimate = calibration_error(u, held)
    np.testing.assert_allclose(estimate.root_mean_square, np.sqrt(np.mean(truth**2)), rtol=0.05)
    np.testing.assert_allclose(estimate.absolute, np.mean(abs(truth)), rtol=0.06)
    assert estimate.low < estimate.absolute < estimate.high


def test_calibration_error_counts_ties_as_half_and_is_zero_for_the_truth():
    rng = np.random.default_rng(7)
    held = rng.integers(0, 3, (2000, 6))
    exact = (held + 0.5) / 3
    assert calibration_error(exact, held).low == 0.0
    biased = calibration_error(exact + 0.1, held)
    np.testing.assert_allclose(biased.root_mean_square, 0.1, rtol=0.1)


@pytest.mark.parametrize(("k", "error"), [(10, 0.0998), (30, 0.0574), (100, 0.0314), (300, 0.0181)])
def test_rollouts_needed_for_a_mean_error(k, error):
    assert abs(rollouts_needed(error) / k - 1) < 0.04


def test_rollouts_needed_with_confidence_delivers_it():
    rng = np.random.default_rng(8)
    k = rollouts_needed(0.05, confidence=0.9)
    c = rng.random(400_000)
    hit = np.mean(abs(rng.binomial(k, c) / k - c) <= 0.05)
    assert abs(hit - 0.9) < 0.01
    assert rollouts_needed(0.05, confidence=0.99) > k > rollouts_needed(0.1, confidence=0.9)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: uniformity_test([[1.0]], [[1.0], [2.0]]), "same prompts, got 1 and 2"),
        (lambda: uniformity_test([[1.0]], [[np.nan]]), "reference_rewards of prompt 0 has nan"),
        (lambda: uniformity_test([[1.0]], [[1.0]], groups=["a", "b"]), "groups has 2 entries for 1"),
        (lambda: reliability_curve([[1.0]], [[1.0]]), "at least two prompts"),
        (lambda: calibration_error([[0.5, 0.5]], [[1.0, 2.0]]), "three at least"),
        (lambda: rollouts_needed(0.0), "between 0 and 0.5"),
        (lambda: rollouts_needed(0.1, confidence=1.0), "strictly between 0 and 1"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
