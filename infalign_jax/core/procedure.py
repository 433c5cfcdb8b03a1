"""The record of an inference-time procedure: a law on distribution functions and a selection among samples.

A procedure that looks only at ranks of i.i.d. samples acts on the distribution function F of the calibrated reward by a
*distortion* g: the result has distribution g(F). For samples it is a *selection*, an index into a row of draws.
Source: InfAlign (arXiv 2412.19792), calibrated procedures.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from infalign_jax.core.checks import check_whole


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
      general: for laws that are no distortion, ``general(density_M, cdf_M, nodes) -> (cdf after, density after)``.
      general_derivative: its companion, ``(density_M, cdf_M, nodes) -> dW/df [M]``.
      breaks: points of (0,1) where the law has a jump or kink.
      value_weights: ``value_weights(u_M) -> [M]`` of ascending calibrated rewards, for procedures that look at them:
        what :meth:`rank_weights` is for the others.
    """

    name: str
    distortion: Callable | None
    slope: Callable | None
    curvature: Callable | None
    draws: int | None
    select: Callable
    weights: Callable | None
    shape: str | None = None
    general: Callable | None = None
    general_derivative: Callable | None = None
    breaks: tuple = ()
    value_weights: Callable | None = None

    @property
    def parts(self):
        """``((1.0, self),)``: a procedure is the objective made of itself alone."""
        return ((1.0, self),)

    def law(self, density_M, cdf_M, nodes):
        """Distribution function and density, at the nodes of a grid, of what the procedure returns."""
        if self.general is not None:
            return self.general(density_M, cdf_M, nodes)
        return self.distortion(cdf_M), self.slope(cdf_M) * density_M

    def derivative(self, density_M, cdf_M, nodes):
        """Derivative of the win rate in the density, up to a constant: ``-int_u^1 g'(F(v)) g'(v) dv``; ``[M]``."""
        if self.general_derivative is not None:
            return self.general_derivative(density_M, cdf_M, nodes)
        return -nodes.to_right(self.slope(cdf_M) * self.slope(nodes.u_M))

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


def all_convex(objective):
    """Whether every part is proved to have a convex distortion, so that the win rate is concave in the density."""
    return all(part.shape in ("convex", "linear") for _, part in objective.parts)


def all_distortions(objective):
    """Whether every part's law is a distortion of F alone."""
    return all(part.distortion is not None for _, part in objective.parts)


def rows(u_PM, needed, name):
    """``u_PM`` as a numpy matrix with at least ``needed`` finite columns, or ``ValueError`` naming who asked."""
    u_PM = np.asarray(u_PM)
    if u_PM.ndim != 2 or u_PM.shape[1] < needed:
        raise ValueError(f"{name} needs n = {needed} samples per prompt, but got an array of shape {u_PM.shape}")
    if not np.all(np.isfinite(u_PM)):
        raise ValueError(f"{name} was given rewards that are not finite")
    return u_PM
