"""Optimal transforms against published values, an independent differential equation, brute force and identities."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize

from infalign_jax.core import finite_optimum, finite_table, optimal, procedures, quadrature, theory, transforms

TABLE = [  # procedure, KL, beta to 9 digits, W to 13
    ("best_of(4)", 0.5, 0.216612968, 0.8732504841509),
    ("best_of(4)", 1.0, 0.083049666, 0.9411229598602),
    ("best_of(8)", 1.0, 0.046571689, 0.9759700117658),
    ("worst_of(4)", 0.5, 0.208423994, 0.9478940025530),
    ("worst_of(4)", 1.0, 0.028207120, 0.9929482200845),
]


@pytest.mark.parametrize(("name", "kl", "beta", "win_rate"), TABLE)
def test_published_optima(name, kl, beta, win_rate):
    found = optimal.optimal_transform(name, kl=kl)
    assert found.win_rate == pytest.approx(win_rate, abs=1e-12)
    assert found.beta == pytest.approx(beta, abs=6e-10)
    assert found.kl == pytest.approx(kl, rel=1e-12)
    assert found.residual <= 1e-12 and 0 <= found.gap <= 1e-12
    assert found.kind == ("certified" if name.startswith("best") else "unique")


def best_of_by_ode(n, kl):
    """beta and 1 - W at this KL from the initial value problem h'' = h' (h y)^(n-1), h(0) = 0, h'(0) = 1.

    Rescalings of its one solution are the optima of every KL. State: y, h, l = log h', M = int l dh. The independent
    variable is y at first and l where h blows up.
    """

    def by_y(y, state):
        h, l, _ = state
        return [np.exp(l), (h * y) ** (n - 1), l * np.exp(l)]

    def by_l(l, state):
        y, h, _ = state
        s = (h * y) ** (n - 1)
        return [1 / s, np.exp(l) / s, l * np.exp(l) / s]

    options = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-30}
    first = integrate.solve_ivp(by_y, (0, 1), [0.0, 0.0, 0.0], dense_output=True, **options)
    h, end, m = first.y[:, -1]
    second = integrate.solve_ivp(by_l, (end, 60), [1.0, h, m], dense_output=True, **options)

    def divergence(point):
        y, h, _, m = point
        return np.log(y / h) + m / h

    def at(x):  # x in [0,1] is y, above it 1 + (l - l(1))
        if x <= 1:
            h, logarithm, m = first.sol(x)
            return x, h, logarithm, m
        y, h, m = second.sol(end + x - 1)
        return y, h, end + x - 1, m

    x = optimize.brentq(lambda x: divergence(at(x)) - kl, 0.05, 55, xtol=1e-14, rtol=1e-14)
    y, h, logarithm, m = at(x)
    beta = n**2 / (h ** (n - 1) * y**n)
    return beta, beta / n * (np.log(y / h) + logarithm - kl)


@pytest.mark.parametrize(
    ("n", "kl"), [(2, 0.1), (2, 5.0), (8, 1.0), (32, 0.1), (32, 2.0), (32, 5.0), (128, 1.0), (128, 5.0)]
)
def test_best_of_n_matches_the_initial_value_problem(n, kl):
    beta, lost = best_of_by_ode(n, kl)
    found = optimal.optimal_transform(procedures.best_of(n), kl=kl)
    assert found.beta == pytest.approx(beta, rel=1e-8)
    assert 1 - found.win_rate == pytest.approx(lost, abs=1e-11)
    assert found.gap <= 1e-12


@pytest.mark.parametrize("name", ["best_of(4)", "best_of(32)", "worst_of(4)", "worst_of(8)"])
@pytest.mark.parametrize("kl", [0.1, 0.7, 1.5])
def test_identities_at_the_optimum(name, kl):
    procedure = procedures.from_name(name)
    found = optimal.optimal_transform(procedure, kl=kl)
    nodes = quadrature.grid()
    log_f_M, _ = theory.density(found.phi, found.beta, nodes)
    n = procedure.draws
    if name.startswith("best"):
        assert 1 - found.win_rate == pytest.approx(found.beta / n * (log_f_M[-1] - kl), abs=1e-9)
    else:
        assert found.win_rate == pytest.approx(found.beta / n * (kl - log_f_M[0]), abs=1e-9)
    step = 1e-4
    up, down = (optimal.optimal_transform(procedure, kl=kl + s).win_rate for s in (step, -step))
    assert (up - down) / (2 * step) == pytest.approx(found.beta, rel=1e-5)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_asymptotics(n):
    kl = 1e-4
    leading = n * np.sqrt(kl / (2 * (4 * n - 1)))
    for make in (procedures.best_of, procedures.worst_of):
        assert optimal.optimal_transform(make(n), kl=kl).win_rate - 0.5 == pytest.approx(leading, rel=0.02)


@pytest.mark.parametrize(("n", "kl", "constant"), [(2, 5.0, 0.3796), (4, 3.0, 0.3850), (8, 1.8, 0.3876)])
def test_worst_of_n_approaches_one_exponentially(n, kl, constant):
    lost = 1 - optimal.optimal_transform(procedures.worst_of(n), kl=kl).win_rate
    assert lost * np.exp(n * kl) == pytest.approx(constant, abs=1.5e-4)


def test_mean_over_n_and_the_price_of_specialising():
    name = "average_of(best_of(1),best_of(2),best_of(4),best_of(8),best_of(16))"
    found = optimal.optimal_transform(name, kl=1.0)
    assert found.kind == "certified" and found.win_rate == pytest.approx(0.915964, abs=1e-6)
    each = [theory.win_rate(procedures.best_of(n), found.phi, found.beta) for n in (1, 2, 4, 8, 16)]
    np.testing.assert_allclose(each, [0.8269, 0.8886, 0.9321, 0.9590, 0.9733], atol=6e-5)
    specialist = optimal.optimal_transform("best_of(16)", kl=1.0)
    assert theory.win_rate(procedures.standard(), specialist.phi, specialist.beta) == pytest.approx(0.6568, abs=6e-5)


def test_standard_sampling_wants_the_identity():
    found = optimal.optimal_transform("standard", kl=0.5)
    u = np.linspace(0, 1, 11)
    np.testing.assert_allclose(found.phi(u) - found.phi(0.0), u, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["best_of(4)", "worst_of(4)", "best_of_poisson(3)", "order_statistic(2,3)", "soft_best_of(4,0.1)"]
)
def test_no_other_policy_at_this_kl_wins_more(name):
    procedure, rng = procedures.from_name(name), np.random.default_rng(0)
    found = optimal.optimal_transform(procedure, kl=0.6)
    for bend in rng.normal(size=(12, 4)):

        def phi(u, bend=bend):
            return found.phi(u) / found.beta + 0.2 * sum(c * np.cos((k + 1) * 3 * u) for k, c in enumerate(bend))

        other = theory.win_rate(procedure, phi, theory.beta_for_kl(phi, 0.6))
        assert other < found.win_rate - 1e-9


def test_certificate_bounds_the_distance_to_the_optimum():
    """For any density f: J* - J(f) <= beta KL(f || Tf), shown on densities that are far from optimal."""
    from infalign_jax.core import stationary

    procedure, nodes = procedures.best_of(6), quadrature.grid()
    found = optimal.optimal_transform(procedure, beta=0.1)
    best = found.win_rate - 0.1 * found.kl
    for phi in (transforms.identity(), transforms.exponential(10), transforms.log(), lambda u: -u):
        log_f_M, cdf_M = theory.density(phi, 0.5, nodes)
        state, _ = stationary.examine(procedure, nodes, log_f_M, beta=0.1)
        value = theory.win_rate_of_density(procedure, np.exp(log_f_M), cdf_M, nodes) - 0.1 * state.kl
        assert 0 < best - value <= state.gap


@pytest.mark.parametrize("name", ["best_of(8)", "worst_of(4)", "randomized(best_of(8),worst_of(8))"])
def test_beta_and_kl_are_two_ways_to_the_same_optimum(name):
    by_kl = optimal.optimal_transform(name, kl=0.4)
    by_beta = optimal.optimal_transform(name, beta=by_kl.beta)
    assert by_beta.kl == pytest.approx(0.4, rel=1e-7) and by_beta.win_rate == pytest.approx(by_kl.win_rate, abs=1e-9)
    assert by_beta.beta == by_kl.beta and by_beta.residual < 1e-12


def test_local_optima_say_so():
    found = optimal.optimal_transform("randomized(best_of(8),worst_of(8))", kl=0.5)
    assert found.kind == "local" and 1 <= found.agreed <= found.starts == 9 and found.residual <= 1e-12


def test_convergence_in_the_grid(monkeypatch):
    for name, kl in [("best_of(32)", 2.0), ("worst_of(4)", 2.0)]:
        coarse = optimal.optimal_transform(name, kl=kl)
        monkeypatch.setattr(optimal, "_nodes", lambda objective, uniform=64: quadrature.grid((), 2 * uniform, 80))
        fine = optimal.optimal_transform(name, kl=kl)
        monkeypatch.undo()
        assert coarse.win_rate == pytest.approx(fine.win_rate, abs=1e-12) and coarse.beta == pytest.approx(
            fine.beta, rel=1e-10
        )


def test_phi_is_a_transform_for_numpy_jax_and_tables():
    before = jax.config.jax_enable_x64
    phi, beta = optimal.resolve("optimal(best_of(8))", kl=0.5)
    assert jax.config.jax_enable_x64 == before
    assert transforms.moments(phi) == pytest.approx((0, 1), abs=1e-9)
    assert theory.kl(phi, beta) == pytest.approx(0.5, abs=1e-9)
    u = np.linspace(0, 1, 101)
    np.testing.assert_allclose(jax.jit(phi)(jnp.asarray(u, jnp.float32)), phi(u), atol=2e-4)
    assert np.all(np.diff(phi(u[20:])) > 0) and np.all(np.isfinite(transforms.tabulate(phi, 50)))


def test_calls_are_fast():
    optimal.optimal_transform("best_of(2)", kl=0.3)  # scipy's imports
    start = time.process_time()
    for kl in np.linspace(0.1, 2, 20):
        optimal.optimal_transform("best_of(8)", kl=kl)
    assert time.process_time() - start < 5


# ---- a fixed table of K rollouts ----


@pytest.mark.parametrize(
    ("name", "size", "kl"), [("best_of(8)", 64, 0.5), ("best_of(4)", 10, 1.0), ("worst_of(4)", 16, 0.5)]
)
def test_with_a_table_no_exponential_and_no_tabulated_optimum_is_better(name, size, kl):
    procedure = procedures.from_name(name)
    found = optimal.optimal_transform(procedure, kl=kl, calibration_samples=size)
    assert found.kl == pytest.approx(kl, abs=1e-9) and found.residual < 1e-9 and found.calibration_samples == size
    assert theory.kl(found.phi, found.beta, size) == pytest.approx(kl, abs=1e-9)
    sign = 1 if name.startswith("best") else -1
    others = [transforms.exponential(sign * t) for t in (2, 5, 8, 12, 15, 20, 30, 50)]
    others.append(optimal.optimal_transform(procedure, kl=kl).phi)
    rates = [theory.win_rate(procedure, phi, theory.beta_for_kl(phi, kl, size), size) for phi in others]
    assert found.win_rate > max(rates)  # on the same tables, which are not those it was optimised on


def test_a_table_of_one_rollout_is_solved_by_brute_force():
    """K = 1 has two cells and so one number to choose; at a given beta it can be scanned with ordinary quadrature."""
    procedure, beta = procedures.best_of(3), 0.5

    def objective(a):
        v, weight = np.polynomial.legendre.leggauss(60)
        v, weight = (v + 1) / 2, weight / 2
        low = v / (v + (1 - v) * np.exp(a))  # mass of the lower cell, whose width is v
        kl = (1 - low) * a - np.log(v + (1 - v) * np.exp(a))
        x, dx = v[:, None], weight[:, None]
        inside = dx * v * 3 * (low * x) ** 3 * (x * v) ** 2
        above = dx * (1 - v) * 3 * (low + (1 - low) * x) ** 3 * (v + (1 - v) * x) ** 2
        return weight @ (1 - inside.sum(0) - above.sum(0) - beta * kl)

    best = optimize.minimize_scalar(lambda a: -objective(a), bounds=(0, 5), method="bounded", options={"xatol": 1e-8}).x
    found = finite_optimum.solve(procedure, 1, beta=beta)
    assert (found.scores[1] - found.scores[0]) / beta == pytest.approx(best, abs=0.02)


def test_many_rollouts_approach_the_exact_optimum():
    exact = optimal.optimal_transform("best_of(4)", kl=0.5).win_rate
    gaps = [
        exact - optimal.optimal_transform("best_of(4)", kl=0.5, calibration_samples=k).win_rate for k in (16, 64, 256)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > 0 and gaps[2] < 0.006


def test_published_optima_for_tables():
    """Between the continuum optimum tabulated at the ranks (0.885, 0.9125) and exact calibration (0.930)."""
    for size, expected in [(64, 0.8970), (256, 0.9172)]:
        found = optimal.optimal_transform("best_of(8)", kl=0.5, calibration_samples=size)
        assert found.win_rate == pytest.approx(expected, abs=3e-4)


def test_beta_and_kl_are_two_ways_to_the_same_table_optimum():
    for name in ("best_of(8)", "worst_of(4)"):
        by_kl = optimal.optimal_transform(name, kl=1.2, calibration_samples=16)
        by_beta = optimal.optimal_transform(name, beta=by_kl.beta, calibration_samples=16)
        assert by_beta.kl == pytest.approx(1.2, abs=1e-6) and by_beta.win_rate == pytest.approx(
            by_kl.win_rate, abs=1e-6
        )


def test_few_cells_and_many_draws_are_solved_too():
    """Four cells for best-of-64: all of the derivative at the reference lies in the top cell."""
    found = optimal.optimal_transform("best_of(64)", kl=0.2, calibration_samples=3)
    assert found.residual < 1e-9 and np.argmax(found.phi(np.arange(4) / 3)) == 3


def test_finite_table_gradients_are_derivatives():
    procedure, widths = procedures.from_name("order_statistic(2,3)"), finite_table.simulated_tables(5, 4000)
    log_w = np.array([0.0, 0.3, 0.1, 0.8, 1.5, 1.4])
    mass, win, divergence, _ = finite_optimum._gradients([(1.0, procedure)], log_w, widths, with_curvature=False)
    assert mass.sum() == pytest.approx(1)
    for j in range(6):
        step = np.eye(6)[j] * 1e-5

        def values(log_w):
            p, log_z = finite_table.policy(log_w, widths)
            return -finite_table.loss_rates(procedure, p, widths).mean(), np.mean(p @ log_w - log_z)

        (w1, k1), (w0, k0) = values(log_w + step), values(log_w - step)
        assert (w1 - w0) / 2e-5 == pytest.approx(win[j], abs=1e-8) and (k1 - k0) / 2e-5 == pytest.approx(
            divergence[j], abs=1e-8
        )


def test_resolve_gives_standardized_transforms_at_the_kl_of_the_table():
    for name in ("exponential(10)", "log", "optimal(best_of(4))", "optimal(average_of(best_of(1),best_of(2)))"):
        phi, beta = optimal.resolve(name, kl=0.5, calibration_samples=20)
        assert phi.name == name and theory.kl(phi, beta, 20) == pytest.approx(0.5, abs=1e-9)
        if name.startswith("optimal"):
            assert transforms.moments(phi) == pytest.approx((0, 1), abs=1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: optimal.optimal_transform("best_of(4)"), "exactly one"),
        (lambda: optimal.optimal_transform("best_of(4)", kl=1.0, beta=1.0), "exactly one"),
        (lambda: optimal.optimal_transform("best_of(4)", kl=-1.0), "kl must be"),
        (lambda: optimal.optimal_transform("best_of(4)", kl=50.0), "float64"),
        (lambda: optimal.optimal_transform("worst_of(32)", kl=5.0), "float64"),
        (lambda: optimal.optimal_transform("best_of(4)", beta=1e-30), "out of reach"),
        (lambda: optimal.optimal_transform("best_of(4)", kl=2.5, calibration_samples=4), "table of 4 rollouts"),
        (lambda: optimal.optimal_transform("soft_best_of(4,1)", kl=0.5, calibration_samples=16), "no distortion"),
        (lambda: optimal.resolve("optimal(best)", kl=0.5), "unknown procedure"),
        (lambda: optimal.resolve("optimal(3)", kl=0.5), "optimal(best_of(8))"),
        (lambda: optimal.resolve("optimum", kl=0.5), "unknown transform"),
    ],
)
def test_infeasible_requests_are_refused_with_the_reason(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)
