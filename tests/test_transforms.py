"""Transforms against scipy quadrature, closed forms and high-precision arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from infalign_jax.core import transforms

NAMES = ["identity", "log", "exponential(10)", "exponential(-5)", "exponential(0.3)", "exponential(60)"]


@pytest.mark.parametrize("name", NAMES)
def test_standardized_has_zero_mean_and_unit_variance_by_scipy(name):
    phi = transforms.standardize(transforms.from_name(name))
    mean, _ = integrate.quad(lambda u: float(phi(u)), 0, 1, points=[0.9, 0.99], limit=200)
    square, _ = integrate.quad(lambda u: float(phi(u)) ** 2, 0, 1, points=[0.9, 0.99], limit=200)
    assert abs(mean) < 1e-8 and abs(square - 1) < 1e-7


@pytest.mark.parametrize("name", NAMES)
def test_closed_form_is_the_affine_map_that_quadrature_finds(name):
    phi = transforms.from_name(name)
    by_quadrature = transforms.standardize(lambda u: phi(u))
    u = np.linspace(0.01, 1, 57)
    np.testing.assert_allclose(transforms.standardize(phi)(u), by_quadrature(u), rtol=1e-9, atol=1e-9)


def test_tiny_and_huge_exponents_stay_exact():
    tiny = transforms.standardize(transforms.exponential(1e-9))(np.array([0.0, 1.0]))
    np.testing.assert_allclose(tiny, [-np.sqrt(3), np.sqrt(3)], rtol=1e-8)
    huge = transforms.tabulate(transforms.standardize(transforms.exponential(500)), 8)
    assert np.all(np.isfinite(huge)) and huge[-1] == pytest.approx(np.sqrt(1000), rel=0.01)


def test_standardizing_twice_changes_nothing_and_keeps_the_name():
    once = transforms.standardize(transforms.from_name("exponential(10)"))
    twice = transforms.standardize(once)
    assert once.name == twice.name == "exponential(10)"
    np.testing.assert_array_equal(once(np.linspace(0, 1, 9)), twice(np.linspace(0, 1, 9)))


@pytest.mark.parametrize("name", NAMES)
def test_numpy_and_jitted_jax_agree(name):
    phi = transforms.standardize(transforms.from_name(name))
    u = np.linspace(0.05, 1, 12).reshape(3, 4)
    on_jax = jax.jit(jax.vmap(phi))(jnp.asarray(u, jnp.float32))
    assert on_jax.dtype == jnp.float32 and phi(u).dtype == np.float64 and phi(u.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(on_jax, phi(u), rtol=2e-5, atol=2e-6)


def test_gradient_of_the_exponential():
    slope = jax.grad(transforms.exponential(-3))(jnp.float32(0.4))
    assert float(slope) == pytest.approx(3 * np.exp(-1.2), rel=1e-5)


def test_tabulate_is_phi_on_the_half_ranks_with_a_floor_for_the_logarithm():
    table = transforms.tabulate(transforms.log(), 4)
    assert table.dtype == np.float32 and table.shape == (9,)
    np.testing.assert_allclose(table, np.log(np.array([0.5, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]) / 4), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: transforms.from_name("exp(10)"), "exponential(t)"),
        (lambda: transforms.from_name("exponential"), "takes 1 number"),
        (lambda: transforms.from_name("exponential('1')"), "not of the form"),
        (lambda: transforms.from_name("__import__('os').system('true')"), "not of the form"),
        (lambda: transforms.from_name("optimal(best_of(8))"), "optimal.resolve"),
        (lambda: transforms.exponential(0), "other than 0"),
        (lambda: transforms.exponential(float("nan")), "finite"),
        (lambda: transforms.standardize(lambda u: 0 * u + 3), "constant"),
        (lambda: transforms.standardize(lambda u: np.where(u < 0.5, np.inf, u)), "finite"),
        (lambda: transforms.tabulate(transforms.identity(), 0), "calibration_samples"),
        (lambda: transforms.tabulate(transforms.identity(), 2.5), "2.5"),
        (lambda: transforms.tabulate(transforms.exponential(200), 8), "float32"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)
