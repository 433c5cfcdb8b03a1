"""Theory on [0,1] against published figures, scipy quadrature, closed forms and simulation."""

import jax
import numpy as np
import pytest
from scipy import integrate

from infalign_jax.core import finite_table, procedures, theory, transforms

# procedure, KL, then W for identity, log, exponential(+-10), exponential(+-20): five digits, so half a unit is 5e-6
FIVE_DIGITS = [
    ("best_of(4)", 0.5, 1, (0.79983, 0.76822, 0.87151, 0.86797)),
    ("best_of(4)", 1.0, 1, (0.87700, 0.86311, 0.93510, 0.93954)),
    ("best_of(8)", 1.0, 1, (0.87869, 0.86311, 0.94823, 0.96458)),
    ("worst_of(4)", 0.5, -1, (0.88599, 0.92705, 0.94762, 0.94496)),
    ("worst_of(4)", 1.0, -1, (0.97446, 0.98588, 0.99267, 0.99287)),
]


@pytest.mark.parametrize(("name", "kl", "sign", "expected"), FIVE_DIGITS)
def test_win_rates_of_the_fixed_transforms(name, kl, sign, expected):
    phis = [transforms.identity(), transforms.log()] + [transforms.exponential(sign * t) for t in (10, 20)]
    got = [theory.win_rate(procedures.from_name(name), phi, theory.beta_for_kl(phi, kl)) for phi in phis]
    np.testing.assert_allclose(got, expected, atol=6e-6)


@pytest.mark.parametrize("name", ["best_of(4)", "worst_of(3)", "order_statistic(2,3)"])
@pytest.mark.parametrize(("transform", "beta"), [("exponential(10)", 9e3), ("exponential(-5)", 0.2), ("identity", 0.1)])
def test_win_rate_and_kl_match_scipy_quadrature(name, transform, beta):
    procedure, phi = procedures.from_name(name), transforms.from_name(transform)

    def weight(u):
        return np.exp((phi(u) - phi(1.0)) / beta)

    total = integrate.quad(weight, 0, 1, limit=200)[0]

    def lost(v):
        return procedure.distortion(integrate.quad(weight, 0, v)[0] / total) * procedure.slope(v)

    w = 1 - integrate.quad(lost, 0, 1, limit=200)[0]
    kl = integrate.quad(lambda u: weight(u) / total * np.log(weight(u) / total), 0, 1, limit=200)[0]
    assert theory.win_rate(procedure, phi, beta) == pytest.approx(w, abs=1e-9)
    assert theory.kl(phi, beta) == pytest.approx(kl, abs=1e-9)


@pytest.mark.parametrize("n", [2, 4, 8, 32])
def test_log_with_beta_one_over_n_minus_one_is_best_of_n(n):
    beta = 1 / (n - 1)
    assert theory.kl(transforms.log(), beta) == pytest.approx(np.log(n) - (n - 1) / n, abs=1e-12)
    for other in (1, 2, 4, 16):
        assert theory.win_rate(procedures.best_of(other), transforms.log(), beta) == pytest.approx(
            n / (n + 1), abs=1e-12
        )


def test_beta_of_the_standardized_transforms_at_half_a_nat():
    names = ["identity", "log", "exponential(10)", "exponential(-5)"]
    betas = [theory.beta_for_kl(transforms.standardize(transforms.from_name(n)), 0.5) for n in names]
    np.testing.assert_allclose(betas, [0.841, 0.432, 1.592, 0.286], atol=6e-4)


def test_affine_maps_of_phi_change_nothing_but_beta():
    phi, k = transforms.exponential(10), 0.7
    plain, scaled = theory.beta_for_kl(phi, k), theory.beta_for_kl(transforms.standardize(phi), k)
    for size in (None, 20):
        first = theory.win_rate(procedures.best_of(4), phi, plain, size)
        second = theory.win_rate(procedures.best_of(4), transforms.standardize(phi), scaled, size)
        assert first == pytest.approx(second, abs=1e-11)


def test_host_arithmetic_is_float64_and_leaves_jax_alone():
    before = jax.config.jax_enable_x64
    theory.beta_for_kl(transforms.identity(), 0.5)
    assert jax.config.jax_enable_x64 == before


# ---- a fixed table of K rollouts ----


@pytest.mark.parametrize("size", [2, 10, 40])
def test_mean_kl_over_tables_is_what_simulated_tables_give(size):
    weights = 3.0 * np.arange(size + 1) / size + np.sin(np.arange(size + 1))
    widths = finite_table.simulated_tables(size, cells=400_000, seed=5)
    probabilities, log_z = finite_table.policy(weights, widths)
    kl = probabilities @ weights - log_z
    assert finite_table.mean_kl(weights) == pytest.approx(kl.mean(), abs=4 * kl.std() / np.sqrt(len(kl)))


def test_mean_kl_closed_forms():
    assert finite_table.mean_kl(np.zeros(9)) == pytest.approx(0, abs=1e-13)
    top_only = np.where(np.arange(9) == 8, 0.0, -500.0)
    assert finite_table.mean_kl(top_only) == pytest.approx(finite_table.largest_kl(8), abs=1e-12)
    # K = 1, weights 1 and w: widths V and 1-V with V uniform, so one ordinary integral
    w = 5.0
    z = lambda v: v + (1 - v) * w  # noqa: E731
    exact = integrate.quad(lambda v: (1 - v) * w * np.log(w) / z(v) - np.log(z(v)), 0, 1)[0]
    assert finite_table.mean_kl(np.array([0.0, np.log(w)])) == pytest.approx(exact, abs=1e-12)


def test_win_rate_with_a_table_is_what_drawing_and_ranking_gives():
    """Draws tables, policies and tournaments, and uses nothing of the module but beta."""
    rng, size, n, prompts = np.random.default_rng(3), 12, 3, 150_000
    phi = transforms.exponential(6)
    beta = theory.beta_for_kl(phi, 0.6, size)
    edges = np.concatenate([np.zeros((prompts, 1)), np.sort(rng.random((prompts, size)), 1), np.ones((prompts, 1))], 1)
    mass = np.diff(edges) * np.exp(phi(np.arange(size + 1) / size) / beta)
    cumulative = np.cumsum(mass, 1) / mass.sum(1, keepdims=True)
    cells = (rng.random((prompts, n))[..., None] > cumulative[:, None]).sum(-1)
    low, high = np.take_along_axis(edges, cells, 1), np.take_along_axis(edges, cells + 1, 1)
    best = (low + (high - low) * rng.random((prompts, n))).max(1)
    wins = best > rng.random((prompts, n)).max(1)
    expected = theory.win_rate(procedures.best_of(n), phi, beta, size)
    assert expected == pytest.approx(wins.mean(), abs=4 * wins.std() / np.sqrt(prompts))


def test_many_rollouts_approach_exact_calibration():
    phi = transforms.exponential(10)
    beta = theory.beta_for_kl(phi, 0.5)
    exact = theory.win_rate(procedures.best_of(4), phi, beta)
    gaps = []
    for size in (16, 64, 256, 1024):
        own = theory.beta_for_kl(phi, 0.5, size)
        assert theory.kl(phi, own, size) == pytest.approx(0.5, abs=1e-10)
        gaps.append(exact - theory.win_rate(procedures.best_of(4), phi, own, size))
    assert all(np.diff(gaps) < 0) and 0 < gaps[-1] < 1.5e-3


def test_published_values_for_fixed_tables():
    phi = transforms.exponential(10)
    for size, w4, w32 in [(100, 0.9283, 0.9473), (300, 0.9326, 0.9512)]:
        beta = theory.beta_for_kl(phi, 1.0, size)
        assert theory.win_rate(procedures.best_of(4), phi, beta, size) == pytest.approx(w4, abs=6e-4)
        assert theory.win_rate(procedures.best_of(32), phi, beta, size) == pytest.approx(w32, abs=6e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: theory.beta_for_kl(transforms.identity(), 0), "kl must be a positive"),
        (lambda: theory.beta_for_kl(transforms.identity(), float("inf")), "kl must be a positive"),
        (lambda: theory.beta_for_kl(transforms.identity(), 3.0, 4), "largest KL is 2.083"),
        (lambda: theory.beta_for_kl(lambda u: 0 * u, 0.5), "constant"),
        (lambda: theory.beta_for_kl(lambda u: np.minimum(u, 0.5), 2.0), "out of reach"),
        (lambda: theory.win_rate(procedures.best_of(2), transforms.identity(), -1.0), "beta must be a positive"),
        (lambda: theory.kl(lambda u: np.where(u > 0.5, np.nan, u), 1.0), "not finite at u"),
        (lambda: theory.kl(transforms.identity(), 1.0, 0), "calibration_samples"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)
