"""Inference-time procedures: what is done with a policy's samples before the user sees one.

A procedure that looks only at ranks of i.i.d. samples acts on the cumulative distribution F of the calibrated reward
by a *distortion* g: the result has distribution g(F). For samples it is a *selection*, an index into a row of draws.
Source: InfAlign (arXiv 2412.19792), calibrated procedures; the distortions are order-statistic distributions.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from infalign_jax.core import naming
from infalign_jax.core.transforms import check_whole, namespace


@dataclasses.dataclass(frozen=True)
class Procedure:
    """A procedure as a law (for theory) and as a selection (for samples).

    Attributes:
      name: e.g. ``best_of(4)``; ``from_name`` reads it back.
      distortion: g, elementwise on [0,1], numpy (float64) or jax arrays; None where the law is no function of F alone.
      slope: g', likewise.
      curvature: g'', likewise.
      draws: samples one selection needs; None where the number is random.
      select: ``select(u_PM, rng) -> index [P]``: the sample each row of i.i.d. draws returns; ``rng`` is a numpy
        Generator.
      weights: ``weights(m) -> [m]``, behind :meth:`rank_weights`; None where ranks do not decide.
      shape: ``convex``, ``concave``, ``linear`` or None, the proved shape of g.
      general_law: ``(density_M, cdf_M, grid) -> (cdf after, density after, derivative)``, only where there is no
        distortion.
      breaks: points of (0,1) where the law has a jump or kink.
    """

    name: str
    distortion: Callable | None
    slope: Callable | None
    curvature: Callable | None
    draws: int | None
    select: Callable
    weights: Callable | None
    shape: str | None = None
    general_law: Callable | None = None
    breaks: tuple = ()

    @property
    def parts(self):
        """``((1.0, self),)``: a procedure is the objective made of itself alone."""
        return ((1.0, self),)

    def law(self, density_M, cdf_M, grid):
        """Distribution function and density, at the nodes of ``grid``, of what the procedure returns."""
        if self.general_law is not None:
            return self.general_law(density_M, cdf_M, grid)[:2]
        return self.distortion(cdf_M), self.slope(cdf_M) * density_M

    def rank_weights(self, m):
        """Probability that the j-th smallest of m i.i.d. samples is returned from a uniformly random subset of the m.

        ``sum_j weights[j] * value of the j-th smallest`` is the unbiased estimate over all subsets, without
        replacement.

        Args:
          m: number of samples at hand.

        Returns:
          float64 numpy ``[m]`` summing to 1.

        Raises:
          ValueError: m is smaller than the draws the procedure needs, or ranks alone do not decide.
        """
        m = check_whole("number of samples m", m)
        if self.weights is None:
            raise ValueError(f"{self.name} does not decide by ranks alone, so it has no rank weights; use its select()")
        if self.draws is not None and m < self.draws:
            raise ValueError(f"{self.name} needs n = {self.draws} samples per prompt, but only m = {m} are there")
        return self.weights(m)

    def __repr__(self):
        return f"<procedure {self.name}>"


def standard():
    """Sampling once: ``g(x) = x``."""
    return dataclasses.replace(order_statistic(1, 1), name="standard")


def best_of(n):
    """Draw n, keep the highest: ``g(x) = x**n``, convex; ``W = 1 - n int F^n v^(n-1) dv``."""
    n = check_whole("n of best_of", n)
    return dataclasses.replace(order_statistic(n, n), name=f"best_of({n})")


def worst_of(n):
    """Draw n, keep the lowest: ``g(x) = 1 - (1-x)**n``, concave: what an adversary with n tries (or an audit) sees."""
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

    def curvature(x):
        up = (k - 1) * x ** max(k - 2, 0) * (1 - x) ** (n - k)
        down = (n - k) * x ** (k - 1) * (1 - x) ** max(n - k - 1, 0)
        return scale * (up - down)

    def select(u_PM, rng):
        u_PM = _rows(u_PM, n, f"order_statistic({k},{n})")
        return np.argsort(u_PM[:, :n], axis=1, kind="stable")[:, k - 1]

    def weights(m):
        total = math.comb(m, n)
        return np.array([math.comb(j - 1, k - 1) * math.comb(m - j, n - k) / total for j in range(1, m + 1)])

    shape = "linear" if n == 1 else "convex" if k == n else "concave" if k == 1 else None
    return Procedure(
        name=f"order_statistic({k},{n})",
        distortion=_order_distortion(k, n),
        slope=lambda x: scale * x ** (k - 1) * (1 - x) ** (n - k),
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


def _rows(u_PM, needed, name):
    """``u_PM`` as a numpy matrix with at least ``needed`` finite columns."""
    u_PM = np.asarray(u_PM)
    if u_PM.ndim != 2 or u_PM.shape[1] < needed:
        raise ValueError(f"{name} needs n = {needed} samples per prompt, but got an array of shape {u_PM.shape}")
    if not np.all(np.isfinite(u_PM)):
        raise ValueError(f"{name} was given rewards that are not finite")
    return u_PM


CHOICES = {"standard": standard, "best_of": best_of, "worst_of": worst_of, "order_statistic": order_statistic}


def from_name(name):
    """The procedure with this name, e.g. ``standard``, ``best_of(4)``; a Procedure is returned as it is.

    Raises:
      ValueError: anything else; the message lists what is legal.
    """
    if hasattr(name, "parts"):
        return name
    return naming.build(CHOICES, name, "procedure")
