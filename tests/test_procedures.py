"""Procedures: laws against scipy, selections against laws by Monte Carlo, rank weights against brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from infalign_jax.core import procedures

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
