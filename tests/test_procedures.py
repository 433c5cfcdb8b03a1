"""Procedures: laws against scipy, selections against laws by Monte Carlo, rank weights against brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from infalign_jax.core import procedures, quadrature, theory, transforms

RANKED = ["standard", "best_of(4)", "worst_of(4)", "order_statistic(2,3)", "order_statistic(3,5)"]


@pytest.mark.parametrize("name", RANKED)
def test_distortion_is_a_distribution_function_with_this_slope_and_curvature(name):
    procedure = procedures.from_name(name)
    assert procedure.name == name
    assert procedure.distortion(np.array([0.0, 1.0])) == pytest.approx([0, 1], abs=1e-15)
    for x in (0.1, 0.5, 0.93):
        assert integrate.quad(procedure.slope, 0, x)[0] == pytest.approx(float(procedure.distortion(x)), abs=1e-10)
        bent = integrate.quad(procedure.curvature, 0, x)[0] + float(procedure.slope(np.float64(0.0)))
        assert bent == pytest.approx(float(procedure.slope(x)), abs=1e-10)


@pytest.mark.parametrize("name", RANKED)
def test_laws_work_on_jax_arrays(name):
    procedure = procedures.from_name(name)
    x = np.linspace(0, 1, 11)
    np.testing.assert_allclose(
        jax.jit(procedure.distortion)(jnp.asarray(x, jnp.float32)), procedure.distortion(x), atol=1e-6
    )
    np.testing.assert_allclose(jax.jit(procedure.slope)(jnp.asarray(x, jnp.float32)), procedure.slope(x), atol=1e-5)


def test_order_statistic_is_a_binomial_tail():
    x = np.linspace(0, 1, 7)
    np.testing.assert_allclose(procedures.order_statistic(3, 5).distortion(x), stats.binom.sf(2, 5, x), atol=1e-14)


@pytest.mark.parametrize("name", RANKED)
@pytest.mark.parametrize("m", [5, 7])
def test_rank_weights_equal_the_average_over_all_subsets(name, m):
    procedure = procedures.from_name(name)
    counts = np.zeros(m)
    for subset in itertools.combinations(range(m), procedure.draws):
        row = np.array([subset], float)
        counts[subset[procedure.select(row, np.random.default_rng(0))[0]]] += 1
    np.testing.assert_allclose(procedure.rank_weights(m), counts / counts.sum(), atol=1e-14)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: procedures.from_name("best_of(0)"), "n of best_of"),
        (lambda: procedures.from_name("best_of(2.5)"), "2.5"),
        (lambda: procedures.from_name("median"), "order_statistic(k, n)"),
        (lambda: procedures.order_statistic(4, 3), "k <= n"),
        (lambda: procedures.best_of(8).rank_weights(4), "n = 8"),
        (lambda: procedures.best_of(8).select(np.zeros((2, 4)), None), "n = 8"),
        (lambda: procedures.best_of(2).select(np.full((2, 2), np.nan), None), "not finite"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)


# ---- every procedure: the selection follows the law, the derivative is the derivative ----

EVERY = [
    *RANKED,
    "best_of_poisson(2.5)",
    "randomized(0.3*best_of(6),0.7*worst_of(3))",
    "rewind_and_repeat(0.6,4)",
    "rewind_and_repeat(0.3,1)",
    "soft_best_of(5,0.2)",
    "soft_best_of(1,1)",
]


@pytest.mark.parametrize("name", EVERY)
def test_selection_follows_the_law_by_simulation(name):
    """Draws from F(u) = u^1.7 are selected from; their distribution function must be the law's, within 4.5 errors."""
    procedure, rng, prompts = procedures.from_name(name), np.random.default_rng(11), 60_000
    assert procedure.name == name
    u_PM = rng.random((prompts, 24)) ** (1 / 1.7)
    picked = u_PM[np.arange(prompts), procedure.select(u_PM, rng)]
    nodes = quadrature.grid(procedure.breaks)
    after_M, density_M = procedure.law(1.7 * nodes.u_M**0.7, nodes.u_M**1.7, nodes)
    assert nodes.integral(density_M) == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(nodes.from_left(density_M), after_M, atol=1e-9)
    for level in (0.2, 0.5, 0.65, 0.9):
        expected = np.interp(level, nodes.u_M, after_M)
        error = np.sqrt(max(expected * (1 - expected), 1e-4) / prompts)
        assert np.mean(picked <= level) == pytest.approx(expected, abs=4.5 * error)


@pytest.mark.parametrize("name", [*EVERY, "average_of(0.4*best_of(3),0.6*worst_of(2))"])
def test_derivative_is_that_of_the_win_rate(name):
    objective = procedures.from_name(name)
    nodes = quadrature.grid(tuple(b for _, p in objective.parts for b in p.breaks))
    density_M = 1 + 0.6 * np.sin(5 * nodes.u_M)
    density_M /= nodes.integral(density_M)
    direction_M = np.cos(7 * nodes.u_M) - nodes.u_M**2
    direction_M -= nodes.integral(direction_M)

    def win_rate(step):
        moved_M = density_M + step * direction_M
        return theory.win_rate_of_density(objective, moved_M, nodes.from_left(moved_M), nodes)

    slope_M = sum(w * p.derivative(density_M, nodes.from_left(density_M), nodes) for w, p in objective.parts)
    expected = nodes.integral(slope_M * direction_M)
    assert (win_rate(1e-4) - win_rate(-1e-4)) / 2e-4 == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("name", ["best_of_poisson(2.5)", "randomized(0.3*best_of(6),0.7*worst_of(3))"])
def test_rank_weights_estimate_the_law(name):
    """In expectation the j-th of m uniforms is j/(m+1), so the weights must give the law's mean of u."""
    procedure, m = procedures.from_name(name), 40
    weights = procedure.rank_weights(m)
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    mean = 1 - integrate.quad(procedure.distortion, 0, 1)[0]
    assert weights @ (np.arange(1, m + 1) / (m + 1)) == pytest.approx(mean, abs=1e-9)


def test_soft_best_of_goes_from_standard_to_best_of():
    phi = transforms.exponential(4)
    hot, *cold = [theory.win_rate(procedures.soft_best_of(4, t), phi, 9.0) for t in (1e4, 0.04, 0.02, 0.01)]
    standard, best = (theory.win_rate(p, phi, 9.0) for p in (procedures.standard(), procedures.best_of(4)))
    assert hot == pytest.approx(standard, abs=1e-4)
    gaps = best - np.array(cold)
    assert np.all(gaps > 0) and np.all(gaps[1:] < 0.75 * gaps[:-1]) and gaps[-1] < 0.01


def test_rewind_with_one_try_is_standard_and_with_many_is_conditioning():
    phi = transforms.identity()
    standard = theory.win_rate(procedures.standard(), phi, 0.5)
    assert theory.win_rate(procedures.rewind_and_repeat(0.4, 1), phi, 0.5) == pytest.approx(standard, abs=1e-12)
    # with endless tries both sides are conditioned on u > q; u ~ exp(2u) there
    q = 0.4
    total = integrate.quad(lambda u: np.exp(2 * u), q, 1)[0]
    lost = integrate.quad(lambda v: integrate.quad(lambda u: np.exp(2 * u), q, v)[0] / total / (1 - q), q, 1)[0]
    assert theory.win_rate(procedures.rewind_and_repeat(q, 400), phi, 0.5) == pytest.approx(1 - lost, abs=1e-9)


def test_order_statistics_and_mixtures_meet_their_special_cases():
    x = np.linspace(0, 1, 9)
    np.testing.assert_allclose(procedures.from_distortion(lambda v: v**3).slope(x), 3 * x**2, atol=1e-9)
    assert procedures.from_distortion(lambda v: v**3).shape == "convex"
    assert procedures.from_distortion(lambda v: 1 - (1 - v) ** 3).shape == "concave"
    assert procedures.from_distortion(lambda v: 3 * v**2 - 2 * v**3).shape is None
    assert procedures.from_name("randomized(best_of(2),best_of(8))").shape == "convex"
    assert procedures.best_of_poisson(0.0).distortion(x) == pytest.approx(x)


def test_a_procedure_known_by_its_results_alone_is_recovered():
    rng = np.random.default_rng(4)
    results = rng.random((8_000, 3)).max(1)
    fitted = procedures.from_samples(results, degree=12)
    phi = transforms.exponential(10)
    beta = theory.beta_for_kl(phi, 0.5)
    truth = theory.win_rate(procedures.best_of(3), phi, beta)
    assert theory.win_rate(fitted, phi, beta) == pytest.approx(truth, abs=0.006)
    u_PM = rng.random((20_000, 12))
    picked = u_PM[np.arange(20_000), fitted.select(u_PM, rng)]
    assert np.mean(picked <= 0.7) == pytest.approx(0.7**3, abs=0.015)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: procedures.from_name("median(3)"), "average_of(procedure, ...)"),
        (lambda: procedures.from_name("average_of(best_of(2),0.5*best_of(4))"), "or none"),
        (lambda: procedures.from_name("average_of()"), "takes procedures"),
        (lambda: procedures.average_of([(0.5, procedures.standard())]), "sum to 1"),
        (lambda: procedures.average_of([(-1, procedures.standard()), (2, procedures.standard())]), "positive weights"),
        (lambda: procedures.randomized([(1.0, procedures.soft_best_of(4, 1.0))]), "soft_best_of(4,1)"),
        (lambda: procedures.from_distortion(lambda x: np.sin(3 * np.pi * x / 2) * -1), "not monotone"),
        (lambda: procedures.from_distortion(lambda x: x / 2), "g(1) = 1"),
        (lambda: procedures.from_distortion(lambda x: x).select(np.zeros((1, 1)), None), "cannot select"),
        (lambda: procedures.rewind_and_repeat(1.5, 3), "threshold_quantile"),
        (lambda: procedures.soft_best_of(4, 0.0), "temperature"),
        (lambda: procedures.best_of_poisson(-1), "rate"),
        (lambda: procedures.best_of_poisson(8).rank_weights(6), "m = 6"),
        (lambda: procedures.rewind_and_repeat(0.5, 3).rank_weights(6), "ranks alone"),
        (lambda: procedures.from_samples([0.5]), "at least 10"),
        (lambda: theory.win_rate(procedures.soft_best_of(2, 1.0), transforms.identity(), 1.0, 16), "no distortion"),
    ],
)
def test_bad_input_of_the_wider_family_is_refused(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)
