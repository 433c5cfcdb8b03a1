"""Optima over finitely many reward levels against enumeration, scans, pass@N and the continuous limit."""

import itertools

import numpy as np
import pytest
from scipy import optimize

from infalign_jax.core import levels, optimal, procedures


def by_enumeration(procedure, q, p):
    """Win rate by running the selection on every pair of draws, each side's ties broken by whatever index comes first."""

    def outcome(masses):
        result = np.zeros(len(masses))
        for draw in itertools.product(range(len(masses)), repeat=procedure.draws):
            picked = draw[procedure.select(np.array([draw], float), None)[0]]
            result[picked] += np.prod(np.asarray(masses)[list(draw)])
        return result

    a, b = outcome(q), outcome(p)
    return sum(a[i] * b[j] * (1.0 if i > j else 0.5 if i == j else 0.0) for i in range(len(a)) for j in range(len(b)))


@pytest.mark.parametrize("name", ["standard", "best_of(3)", "worst_of(2)", "order_statistic(2,3)"])
def test_win_rate_with_ties_by_enumeration(name):
    procedure, q, p = procedures.from_name(name), [0.1, 0.25, 0.25, 0.4], [0.4, 0.1, 0.2, 0.3]
    assert levels.win_rate(procedure, q, p) == pytest.approx(by_enumeration(procedure, q, p), abs=1e-12)


@pytest.mark.parametrize("name", ["best_of(4)", "worst_of(3)", "order_statistic(2,3)"])
def test_optimum_against_a_general_optimiser(name):
    procedure, p, beta = procedures.from_name(name), np.array([0.3, 0.3, 0.25, 0.15]), 0.15
    found = levels.optimal_on_levels(procedure, p, beta=beta)

    def loss(logits):
        q = np.exp(logits - logits.max())
        q /= q.sum()
        return -(levels.win_rate(procedure, q, p) - beta * np.sum(q * np.log(q / p)))

    starts = np.random.default_rng(0).normal(size=(4, 4))
    best = min((optimize.minimize(loss, s, tol=1e-12) for s in starts), key=lambda r: r.fun)
    assert found.win_rate - beta * found.kl == pytest.approx(-best.fun, abs=1e-9)


def test_target_kl_and_beta_agree():
    p = [0.5, 0.2, 0.2, 0.1]
    by_kl = levels.optimal_on_levels("best_of(8)", p, kl=0.4)
    by_beta = levels.optimal_on_levels("best_of(8)", p, beta=by_kl.beta)
    assert by_kl.kl == pytest.approx(0.4, rel=1e-10) and by_kl.kind == "certified" and by_kl.gap < 1e-12
    np.testing.assert_allclose(by_beta.probabilities, by_kl.probabilities, atol=1e-9)


def test_many_levels_approach_continuous_rewards():
    exact = optimal.optimal_transform("best_of(4)", kl=0.5)
    found = levels.optimal_on_levels("best_of(4)", np.full(2000, 1 / 2000), kl=0.5)
    assert found.win_rate == pytest.approx(exact.win_rate, abs=1e-5)
    np.testing.assert_allclose(found.scores[::100], (exact.phi(found.u) - exact.phi(found.u[0]))[::100], atol=1e-3)


@pytest.mark.parametrize("n", [1, 4, 16])
def test_verifiable_rewards_are_the_pass_at_n_objective(n):
    """W = 1/2 + (pass@N of the policy - pass@N of the reference)/2; so the optimum solves pass@N - 2 beta KL."""
    p, beta = np.array([0.7, 0.3]), 0.2
    found = levels.optimal_on_levels(procedures.best_of(n), p, beta=beta)

    def value(s):
        kl = s * np.log(s / 0.3) + (1 - s) * np.log((1 - s) / 0.7)
        return 1 - (1 - s) ** n - 2 * beta * kl

    best = optimize.minimize_scalar(
        lambda s: -value(s), bounds=(0.01, 0.999), method="bounded", options={"xatol": 1e-10}
    ).x
    assert found.probabilities[1] == pytest.approx(best, abs=1e-6)
    s = found.probabilities[1]
    assert found.win_rate == pytest.approx(0.5 + 0.5 * (0.7**n - (1 - s) ** n), abs=1e-12)
    assert found.u.tolist() == pytest.approx([0.35, 0.85])
    assert found.scores[1] == pytest.approx(0.5 * n * (1 - s) ** (n - 1), abs=1e-8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: levels.optimal_on_levels("best_of(2)", [0.5, 0.5]), "exactly one"),
        (lambda: levels.optimal_on_levels("best_of(2)", [0.5, 0.6], kl=0.1), "sum to 1"),
        (lambda: levels.optimal_on_levels("best_of(2)", [1.0], kl=0.1), "two levels"),
        (lambda: levels.optimal_on_levels("best_of(2)", [0.5, 0.5], kl=0.7), "best level alone has KL 0.6931"),
        (lambda: levels.optimal_on_levels("soft_best_of(2,1)", [0.5, 0.5], kl=0.1), "no distortion"),
        (lambda: levels.win_rate(procedures.standard(), [1.0], [0.5, 0.5]), "same length"),
        (lambda: levels.win_rate(procedures.soft_best_of(2, 1), [0.5, 0.5], [0.5, 0.5]), "has no distortion"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)
