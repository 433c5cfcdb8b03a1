"""Integration on [0,1] in float64: Gauss-Legendre panels, uniform inside and halving towards both ends.

Optimal policies for best-of-N have a boundary layer at 1 that narrows with N and KL, those for worst-of-N a layer in
the interior, and log u is singular at 0; one grid with 64 uniform panels and halving end panels resolves all three.
Distances to the right end are kept as an array of their own, since 1 - u loses them.
"""

import functools
from typing import NamedTuple

import numpy as np

POINTS = 8  # Gauss points of a panel: exact for polynomials of degree 15


class Grid(NamedTuple):
    """Nodes on [0,1]; ``M = panels * POINTS``.

    Attributes:
      u_M: nodes, increasing.
      w_M: ``1 - u_M`` to full relative accuracy.
      weight_M: quadrature weights, ``sum(weight_M * f(u_M)) ~ integral of f``.
      width_P: widths of the panels.
    """

    u_M: np.ndarray
    w_M: np.ndarray
    weight_M: np.ndarray
    width_P: np.ndarray

    def integral(self, values_M):
        """Integral over [0,1] of the function with these values at the nodes."""
        return self.weight_M @ values_M

    def from_left(self, values_M):
        """Integrals from 0 to each node."""
        inside_PM, total_P = self._panels(values_M)
        before_P = np.concatenate([[0.0], np.cumsum(total_P)[:-1]])
        return (before_P[:, None] + inside_PM).ravel()

    def to_right(self, values_M):
        """Integrals from each node to 1, accumulated from the right so that small ones keep their digits."""
        inside_PM, total_P = self._panels(values_M[::-1], reverse=True)
        after_P = np.concatenate([[0.0], np.cumsum(total_P)[:-1]])
        return (after_P[:, None] + inside_PM).ravel()[::-1]

    def _panels(self, values_M, reverse=False):
        width_P = self.width_P[::-1] if reverse else self.width_P
        values_PM = values_M.reshape(-1, POINTS) * width_P[:, None]
        _, weights, inside = rule()
        return values_PM @ inside.T, values_PM @ weights


@functools.cache
def rule(points=POINTS):
    """Nodes and weights of the Gauss-Legendre rule on [0,1], and the matrix of integrals from 0 to each node."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    nodes, weights = (nodes + 1) / 2, weights / 2
    legendre = np.polynomial.legendre.Legendre
    inside = np.empty((points, points))
    for j in range(points):
        unit = legendre.fit(nodes, np.eye(points)[j], points - 1, domain=[0, 1])
        inside[:, j] = unit.integ(lbnd=0)(nodes)
    return nodes, weights, inside


@functools.lru_cache(maxsize=64)
def grid(breaks=(), uniform=64, depth=72):
    """A grid with ``uniform`` equal panels, end panels halved ``depth`` times, and panel edges at ``breaks``.

    Args:
      breaks: points in (0,1) where the integrand has a kink or a jump; a tuple of floats.
      uniform: number of equal panels, even.
      depth: the end panels are as narrow as ``2**-depth``.

    Examples:
      >>> round(float(grid().integral(grid().u_M ** 2)), 12)  # 1/3
      0.333333333333
    """
    half = np.union1d(np.arange(uniform // 2 + 1) / uniform, 0.5 ** np.arange(1, depth + 1))
    left = np.union1d(half, [b for b in breaks if 0 < b < 0.5])
    right = np.union1d(half, [1 - b for b in breaks if 0.5 < b < 1])  # distances to 1
    nodes, weights, _ = rule()
    low_u = (left[:-1, None] + np.diff(left)[:, None] * nodes).ravel()
    high_w = (right[:-1, None] + np.diff(right)[:, None] * nodes).ravel()[::-1]
    width = np.concatenate([np.diff(left), np.diff(right)[::-1]])
    weight = (width[:, None] * weights).ravel()
    return Grid(np.concatenate([low_u, 1 - high_w]), np.concatenate([1 - low_u, high_w]), weight, width)
