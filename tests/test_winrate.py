"""Win rates against brute-force subsets, tournaments, exact finite outcomes, and the coverage of their intervals."""

import itertools
import math
import types

import numpy as np
import pytest

from infalign_jax.core import bootstrap, procedures, theory, transforms
from infalign_jax.core.winrate import estimate_win_rate, exact_win_rate, paired_difference, win_rate_per_prompt

PICK = {"best_of(3)": max, "worst_of(3)": min, "best_of(1)": max, "worst_of(2)": min}
DRAWS = {"best_of(3)": 3, "worst_of(3)": 3, "best_of(1)": 1, "worst_of(2)": 2}


def brute_force(pick, n, policy, reference):
    """The average win over every pair of subsets of size n."""
    winners, losers = ([pick(s) for s in itertools.combinations(side, n)] for side in (policy, reference))
    return np.mean([(a > b) + 0.5 * (a == b) for a in winners for b in losers])


@pytest.mark.parametrize("name", PICK)
def test_estimator_is_the_average_over_all_subsets(name):
    rng = np.random.default_rng(0)
    policy, reference = rng.integers(0, 5, (3, 7)), rng.integers(0, 4, (3, 5))
    expected = [brute_force(PICK[name], DRAWS[name], p, r) for p, r in zip(policy, reference, strict=True)]
    np.testing.assert_allclose(win_rate_per_prompt(procedures.from_name(name), policy, reference), expected, rtol=1e-12)


def test_rewinding_is_the_average_over_all_orders_of_draws():
    rng = np.random.default_rng(3)
    policy, reference = rng.integers(0, 6, (2, 6)), rng.integers(0, 6, (2, 5))
    threshold, tries = 0.55, 3

    def results(samples, among):
        u = {x: np.mean((among < x) + 0.5 * (among == x)) for x in samples}
        orders = itertools.permutations(samples, tries)
        return [next((x for x in order if u[x] > threshold), order[-1]) for order in orders]

    expected = [
        np.mean([(a > b) + 0.5 * (a == b) for a in results(p, r) for b in results(r, r)])
        for p, r in zip(policy, reference, strict=True)
    ]
    found = win_rate_per_prompt(procedures.rewind_and_repeat(threshold, tries), policy, reference)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="only m = 2"):
        win_rate_per_prompt(procedures.rewind_and_repeat(threshold, tries), policy[:, :2], reference)


def test_rewinding_tends_to_its_law():
    """Many samples of u with density 2u against Uniform, and what theory says of that density."""
    procedure, m = procedures.rewind_and_repeat(0.7, 4), 20_001
    levels = (np.arange(m) + 0.5) / m
    expected = theory.win_rate(procedure, transforms.log(), 1.0)  # its optimum at beta 1 has the density 2u
    np.testing.assert_allclose(win_rate_per_prompt(procedure, np.sqrt(levels), levels), expected, atol=2e-4)


def finite_problem(rng, prompts=1, outcomes=6):
    policy, reference = rng.dirichlet(np.ones(outcomes), (2, prompts))
    return policy, reference, rng.integers(0, 4, (prompts, outcomes)).astype(float)


@pytest.mark.parametrize("name", PICK)
def test_exact_value_is_the_sum_over_all_draws(name):
    policy, reference, rewards = (x[0] for x in finite_problem(np.random.default_rng(1), outcomes=4))
    draws = list(itertools.product(range(4), repeat=DRAWS[name]))
    pick = PICK[name]

    def law(probs):
        return [(math.prod(probs[list(d)]), pick(rewards[list(d)])) for d in draws]

    expected = sum(p * q * ((a > b) + 0.5 * (a == b)) for p, a in law(policy) for q, b in law(reference))
    np.testing.assert_allclose(
        exact_win_rate(procedures.from_name(name), policy, reference, rewards), expected, rtol=1e-12
    )


def test_exact_value_known_by_hand():
    """Binary reward, success 0.6 against 0.4: best-of-2 fails with 0.16 and 0.36."""
    win = exact_win_rate(procedures.best_of(2), [0.4, 0.6], [0.6, 0.4], [0.0, 1.0])
    np.testing.assert_allclose(win, 0.84 * 0.36 + 0.5 * (0.84 * 0.64 + 0.16 * 0.36), rtol=1e-14)


def test_exact_value_agrees_with_tournaments():
    rng = np.random.default_rng(2)
    policy, reference, rewards = (x[0] for x in finite_problem(rng))
    games = 200_000
    a, b = (rewards[rng.choice(6, (games, 4), p=p)].max(1) for p in (policy, reference))
    wins = (a > b) + 0.5 * (a == b)
    exact = exact_win_rate(procedures.best_of(4), policy, reference, rewards)
    assert abs(wins.mean() - exact) < 4 * wins.std() / math.sqrt(games)


def test_exact_value_batches_and_ignores_the_order_and_scale_of_rewards():
    rng = np.random.default_rng(3)
    policy, reference, rewards = finite_problem(rng, prompts=5)
    best = procedures.best_of(8)
    batch = exact_win_rate(best, policy, reference, rewards)
    assert batch.shape == (5,)
    for i in range(5):
        shuffle = rng.permutation(6)
        one = exact_win_rate(best, policy[i, shuffle], reference[i, shuffle], np.exp(rewards[i, shuffle]))
        np.testing.assert_allclose(batch[i], one, rtol=1e-12)
    np.testing.assert_allclose(exact_win_rate(best, policy, policy, rewards), 0.5, rtol=1e-12)


def test_estimate_is_unbiased_for_unequal_sample_counts():
    rng = np.random.default_rng(4)
    policy, reference, rewards = (x[0] for x in finite_problem(rng))
    prompts = 4000
    samples = [rewards[rng.choice(6, (prompts, m), p=p)] for m, p in ((5, policy), (9, reference))]
    estimate = estimate_win_rate(procedures.best_of(4), *samples, resamples=200)
    exact = exact_win_rate(procedures.best_of(4), policy, reference, rewards)
    assert abs(estimate.value - exact) < 4 * estimate.per_prompt.std() / math.sqrt(prompts)
    assert estimate.low < estimate.value < estimate.high


def test_an_average_of_procedures_averages_their_win_rates():
    rng = np.random.default_rng(9)
    policy, reference, rewards = finite_problem(rng, prompts=3)
    parts = [(0.25, procedures.standard()), (0.75, procedures.best_of(4))]
    mean = types.SimpleNamespace(parts=tuple(parts))
    exact = sum(w * exact_win_rate(p, policy, reference, rewards) for w, p in parts)
    np.testing.assert_allclose(exact_win_rate(mean, policy, reference, rewards), exact, rtol=1e-12)
    samples = rng.normal(size=(2, 3, 6))
    np.testing.assert_allclose(
        win_rate_per_prompt(mean, *samples), sum(w * win_rate_per_prompt(p, *samples) for w, p in parts), rtol=1e-12
    )


def test_intervals_repeat_and_depend_on_the_seed_only():
    policy, reference = np.random.default_rng(5).normal(size=(2, 20, 8))
    first, again, other = (estimate_win_rate(procedures.best_of(2), policy, reference, seed=s) for s in (0, 0, 1))
    assert first[:3] == again[:3] and first.value == other.value and first.low != other.low


def test_pairing_removes_what_the_policies_share():
    rng = np.random.default_rng(6)
    reference = rng.normal(size=(60, 16))
    hardness = 2 * rng.normal(size=(60, 1))
    baseline = rng.normal(size=(60, 12)) + hardness
    policy = np.concatenate([baseline + 0.3, baseline[:, :3] + 0.3], 1)
    standard = procedures.standard()
    difference = paired_difference(standard, policy, baseline, reference)
    alone = estimate_win_rate(standard, policy, reference)
    assert difference.low > 0
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)
    np.testing.assert_allclose(
        difference.value, alone.value - estimate_win_rate(standard, baseline, reference).value, atol=1e-12
    )
    same = paired_difference(standard, policy, policy, reference)
    assert same[:3] == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("prompts", "seeds", "seed_noise"), [(8, 1, 0.0), (100, 1, 0.0), (60, 3, 0.0), (60, 3, 1.0)])
def test_interval_covers_the_mean_as_often_as_it_says(prompts, seeds, seed_noise):
    """Within 4 standard errors below the nominal 95 %, whether prompts or three training seeds carry the noise."""
    rng = np.random.default_rng(7)
    trials = 300
    covered = 0
    for trial in range(trials):
        values = rng.normal(size=(1, prompts)) + 0.3 * rng.normal(size=(seeds, prompts))
        values += seed_noise * rng.normal(size=(seeds, 1))
        _, low, high = bootstrap.mean_interval(values, seed=trial, resamples=500)
        covered += low < 0 < high
    assert covered / trials > 0.95 - 4 * math.sqrt(0.95 * 0.05 / trials)


def test_seeds_widen_the_interval_when_they_disagree():
    rng = np.random.default_rng(8)
    prompts = rng.normal(size=50)
    agreeing = bootstrap.mean_interval(np.stack([prompts] * 3))
    disagreeing = bootstrap.mean_interval(np.stack([prompts - 1, prompts, prompts + 1]))
    np.testing.assert_allclose(agreeing, bootstrap.mean_interval(prompts), atol=0.05)
    assert disagreeing[2] - disagreeing[1] > 2 * (agreeing[2] - agreeing[1])


@pytest.mark.parametrize(
    ("policy", "reference", "says"),
    [
        (np.zeros((2, 3)), np.zeros((2, 8)), r"4.*3"),
        (np.zeros(8), np.zeros(8), r"must be \[P, M\]"),
        (np.zeros((3, 8)), np.zeros((2, 8)), r"same prompts.*\(3, 8\).*\(2, 8\)"),
        (np.zeros((3, 5, 8)), np.zeros((2, 5, 8)), r"same training seeds"),
        (np.zeros((1, 8)), np.zeros((1, 8)), r"P >= 2"),
        (np.array([[0.0, np.nan, 1, 1]] * 2), np.zeros((2, 8)), r"policy_rewards has nan at index \[0, 1\]"),
    ],
)
def test_estimates_refuse_bad_input(policy, reference, says):
    with pytest.raises(ValueError, match=says):
        estimate_win_rate(procedures.best_of(4), policy, reference)


@pytest.mark.parametrize(
    ("policy", "reference", "rewards", "says"),
    [
        ([0.5, 0.6], [0.5, 0.5], [0, 1], r"policy_probs must sum to 1"),
        ([0.5, 0.5], [1.5, -0.5], [0, 1], r"reference_probs must be probabilities"),
        ([0.5, 0.5], [0.5, 0.5], [0, np.inf], r"rewards has inf"),
    ],
)
def test_exact_value_refuses_bad_input(policy, reference, rewards, says):
    with pytest.raises(ValueError, match=says):
        exact_win_rate(procedures.best_of(2), policy, reference, rewards)
