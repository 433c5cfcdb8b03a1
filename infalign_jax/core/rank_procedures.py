"""Procedures that look only at ranks: order statistics, random numbers of draws, mixtures, laws fitted to samples."""

import dataclasses
import math

import numpy as np

from infalign_jax.core.checks import check_whole
from infalign_jax.core.procedure import Procedure, rows
from infalign_jax.core.transforms import namespace


def standard():
    """Sampling once: ``g(x) = x``."""
    return dataclasses.replace(order_statistic(1, 1), name="standard")


def best_of(n):
    """Draw n, keep the highest: ``g(x) = x**n``, convex; ``W = 1 - n int F^n v^(n-1) dv``.

    Examples:
      >>> best_of(2).distortion(0.5)
      0.25
    """
    n = check_whole("n of best_of", n)
    return dataclasses.replace(order_statistic(n, n), name=f"best_of({n})")


def worst_of(n):
    """Draw n, keep the lowest: ``g(x) = 1 - (1-x)**n``, concave: what an adversary with n tries (or an audit) sees.

    Examples:
      >>> float(worst_of(2).distortion(0.5))
      0.75
    """
    n = check_whole("n of worst_of", n)
    return dataclasses.replace(order_statistic(1, n), name=f"worst_of({n})")


def order_statistic(k, n):
    """The k-th *smallest* of n draws: ``g(x) = P(Bin(n, x) >= k)``, the regularised incomplete beta function.

    ``order_statistic(n, n)`` is best-of-n and ``order_statistic(1, n)`` worst-of-n.

    Raises:
      ValueError: unless ``1 <= k <= n`` are whole numbers.
    """
    n = check_whole("n of order_statistic", n)
    k = check_whole("k of order_statistic", k)
    if k > n:
        raise ValueError(f"order_statistic(k, n) needs k <= n, got k = {k}, n = {n}")
    scale = k * math.comb(n, k)  # density of the k-th of n: scale * x^(k-1) (1-x)^(n-k)

    def product(x, i, j):  # x^i (1-x)^j; powers are slow, so those of exponent 0 are left out
        if j == 0:
            return x**i
        return (1 - x) ** j if i == 0 else x**i * (1 - x) ** j

    def curvature(x):
        up = (k - 1) * product(x, k - 2, n - k) if k > 1 else 0.0
        down = (n - k) * product(x, k - 1, n - k - 1) if n > k else 0.0
        return scale * (up - down) + 0.0 * x

    def select(u_PM, rng):
        u_PM = rows(u_PM, n, f"order_statistic({k},{n})")
        return np.argsort(u_PM[:, :n], axis=1, kind="stable")[:, k - 1]

    def weights(m):
        total = math.comb(m, n)
        return np.array([math.comb(j - 1, k - 1) * math.comb(m - j, n - k) / total for j in range(1, m + 1)])

    shape = "linear" if n == 1 else "convex" if k == n else "concave" if k == 1 else None
    return Procedure(
        name=f"order_statistic({k},{n})",
        distortion=_order_distortion(k, n),
        slope=lambda x: scale * product(x, k - 1, n - k),
        curvature=curvature,
        draws=n,
        select=select,
        weights=weights,
        shape=shape,
    )


def _order_distortion(k, n):
    if k == n:
        return lambda x: x**n
    if k == 1:
        return lambda x: -namespace(x).expm1(n * namespace(x).log1p(-x)) if namespace(x) is not np else _worst(x, n)

    def distortion(x):
        if namespace(x) is np:
            from scipy import special
        else:
            from jax.scipy import special
        return special.betainc(float(k), float(n - k + 1), x)

    return distortion


def _worst(x, n):
    with np.errstate(divide="ignore"):  # x = 1 is legal: log1p(-1) = -inf and the value is 1
        return -np.expm1(n * np.log1p(-np.asarray(x, np.float64)))


def best_of_poisson(rate):
    """Best of 1 + Poisson(rate) draws: ``g(x) = x * exp(rate * (x-1))``, convex.

    ``rank_weights(m)`` averages over the number of draws and refuses an m that is exceeded with probability above 1e-9.

    Raises:
      ValueError: rate is negative or not finite.
    """
    rate = _real("rate of best_of_poisson", rate, 0.0, math.inf)
    name = f"best_of_poisson({rate:.15g})"

    def select(u_PM, rng):
        counts = 1 + rng.poisson(rate, len(u_PM))
        u_PM = rows(u_PM, int(counts.max()), name)
        return np.argmax(np.where(np.arange(u_PM.shape[1]) < counts[:, None], u_PM, -np.inf), axis=1)

    def weights(m):
        from scipy import stats

        if stats.poisson.sf(m - 1, rate) > 1e-9:
            raise ValueError(f"{name} needs more than m = {m} samples per prompt too often to be estimated from them")
        chances = stats.poisson.pmf(np.arange(m), rate)
        return sum(p * best_of(n + 1).weights(m) for n, p in enumerate(chances / chances.sum()))

    def exp(x):
        return namespace(x).exp(rate * (x - 1))

    return Procedure(
        name=name,
        distortion=lambda x: x * exp(x),
        slope=lambda x: (1 + rate * x) * exp(x),
        curvature=lambda x: rate * (2 + rate * x) * exp(x),
        draws=None,
        select=select,
        weights=weights,
        shape="convex",
    )


def randomized(parts):
    """Each side draws its own procedure, the i-th with probability w_i: ``g = sum_i w_i g_i``.

    Args:
      parts: ``[(w, procedure), ...]``, weights positive and summing to 1.

    Raises:
      ValueError: weights that are no probabilities, or a procedure without a distortion.
    """
    chances, procedures = checked_parts("randomized", parts)
    for procedure in procedures:
        if procedure.distortion is None:
            raise ValueError(f"randomized needs procedures with a distortion of F, which {procedure.name} has not")

    def mix(field):
        return lambda x: sum(w * getattr(p, field)(x) for w, p in zip(chances, procedures, strict=True))

    def select(u_PM, rng):
        which = rng.choice(len(chances), size=len(u_PM), p=chances)
        return np.choose(which, [procedure.select(u_PM, rng) for procedure in procedures])

    def weights(m):
        return sum(w * p.rank_weights(m) for w, p in zip(chances, procedures, strict=True))

    shapes = {p.shape for p in procedures} - {"linear"}
    return Procedure(
        name=parts_name("randomized", chances, procedures),
        distortion=mix("distortion"),
        slope=mix("slope"),
        curvature=mix("curvature"),
        draws=None if any(p.draws is None for p in procedures) else max(p.draws for p in procedures),
        select=select,
        weights=None if any(p.weights is None for p in procedures) else weights,
        shape="linear" if not shapes else shapes.pop() if len(shapes) == 1 else None,
    )


def from_samples(calibrated_rewards, degree=16, iterations=500):
    """A procedure known only by running it, e.g. blockwise controlled decoding, from its results on the *reference*.

    The calibrated rewards of its results follow the density g'. Fitted by maximum likelihood (expectation maximisation)
    is a mixture of order statistics of ``degree`` draws, which approaches any smooth increasing g as the degree grows,
    and which can select from samples as well: ``randomized([(w_k, order_statistic(k, degree))])``.

    Args:
      calibrated_rewards: u in [0,1] of one result per prompt of the procedure run on the reference policy.
      degree: order of the mixture; the finest detail seen in u is about ``1/sqrt(degree)``.
      iterations: of expectation maximisation, each raising the likelihood.

    Raises:
      ValueError: fewer than 10 values, or values outside [0,1].
    """
    from scipy import stats

    u = np.asarray(calibrated_rewards, np.float64).ravel()
    degree = check_whole("degree of from_samples", degree)
    if len(u) < 10 or not np.all((u >= 0) & (u <= 1)):
        raise ValueError(f"from_samples needs at least 10 calibrated rewards, all in [0, 1]; got {len(u)} values")
    ranks = np.arange(1, degree + 1)
    likelihood = stats.beta.pdf(u[:, None], ranks, degree + 1 - ranks)
    chances = np.full(degree, 1 / degree)
    for _ in range(iterations):
        joint = likelihood * chances
        chances = (joint / joint.sum(1, keepdims=True)).mean(0)
    kept = chances > 1e-12
    chances = chances / chances[kept].sum()
    mixture = randomized([(chances[k - 1], order_statistic(k, degree)) for k in ranks[kept]])
    return dataclasses.replace(mixture, name=f"from_samples({len(u)} values, degree {degree})")


def from_distortion(distortion, slope=None, *, name="custom"):
    """A procedure given by its distortion as a plain function (theory only: it has no selection among samples).

    Args:
      distortion: g on [0,1], vectorised on numpy arrays, increasing from 0 to 1.
      slope: g'; by differences of fourth order if not given (then good to about 1e-10 for a smooth g).
      name: of the procedure.

    Raises:
      ValueError: g does not run from 0 to 1, or decreases, or is not finite.
    """
    x = np.linspace(0, 1, 4097)
    values = np.asarray(distortion(x), np.float64)
    if not np.all(np.isfinite(values)) or abs(values[0]) > 1e-12 or abs(values[-1] - 1) > 1e-12:
        raise ValueError(
            f"distortion {name} must be finite with g(0) = 0 and g(1) = 1; got {values[0]:g} and {values[-1]:g}"
        )
    falls = np.flatnonzero(np.diff(values) < -1e-13)
    if len(falls):
        raise ValueError(
            f"distortion {name} is not monotone: it falls after x = {x[falls[0]]:.4g}, so it is no distribution"
        )
    slope = _difference(distortion) if slope is None else slope
    slopes = slope(x)
    tolerance = 1e-9 * max(1.0, np.max(np.abs(slopes)))
    rising, falling = np.all(np.diff(slopes) >= -tolerance), np.all(np.diff(slopes) <= tolerance)

    def select(u_PM, rng):
        raise ValueError(f"{name} is known by its distortion only and cannot select samples")

    return Procedure(
        name=name,
        distortion=distortion,
        slope=slope,
        curvature=_difference(slope),
        draws=None,
        select=select,
        weights=None,
        shape="linear" if rising and falling else "convex" if rising else "concave" if falling else None,
    )


def _difference(function, step=1e-3):
    """Derivative by the five-point formula around a centre moved inside [0,1], exact for polynomials of degree 4."""

    def derivative(x):
        x = np.asarray(x, np.float64)
        centre = np.clip(x, 2 * step, 1 - 2 * step)
        t = (x - centre) / step
        # derivative at t of the quartic through t = -2..2
        points = (-2, -1, 0, 1, 2)
        coefficients = np.linalg.inv(np.vander(points, increasing=True))
        total = np.zeros_like(x)
        for j, point in enumerate(points):
            slope = sum(k * coefficients[k, j] * t ** (k - 1) for k in range(1, 5))
            total = total + slope * function(centre + point * step)
        return total / step

    return derivative


def checked_parts(what, parts):
    """Weights (float array summing to 1) and procedures of ``parts``, ``[(w, procedure), ...]``, that ``what`` takes.

    Raises:
      ValueError: they are something else, or the weights are not positive or do not sum to 1.
    """
    parts = list(parts)
    try:
        weights = np.array([float(w) for w, _ in parts])
    except (TypeError, ValueError):
        raise ValueError(f"{what} takes a list of (weight, procedure) pairs, got {parts!r}") from None
    if not len(weights) or not np.all(weights > 0) or abs(weights.sum() - 1) > 1e-9:
        raise ValueError(f"{what} needs positive weights that sum to 1, got {weights.tolist()}")
    return weights / weights.sum(), [procedure for _, procedure in parts]


def parts_name(head, weights, procedures):
    """``head(w*name,...)`` of weights and procedures, without the weights where they are equal."""
    if np.ptp(weights) < 1e-12:
        return f"{head}({','.join(p.name for p in procedures)})"
    return f"{head}({','.join(f'{w:.15g}*{p.name}' for w, p in zip(weights, procedures, strict=True))})"


def _real(name, value, low, high):
    """``value`` as float in [low, high), or ``ValueError``."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.integer, np.floating))
        or not low <= value < high
    ):
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}), got {value!r}")
    return float(value)
