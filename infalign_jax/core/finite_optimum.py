"""The optimal transform for a fixed calibration table of K rollouts: one value per rank cell.

The law of such a table is in ``finite_table``. Tabulating the optimum for exact calibration is not optimal here: the
ranks of K rollouts blur the top. Maximised is the mean over tables of ``W - beta KL``, directly over the K+1 values. The
mean win rate is an average over simulated tables, the KL constraint is exact.
"""

from typing import NamedTuple

import numpy as np

from infalign_jax.core import finite_table, transforms
from infalign_jax.core.quadrature import rule

_CELLS = 150_000  # simulated cells to optimise on; the loss from their finite number is below 1e-5 in win rate
_TOLERANCE = 1e-12
_DEEPEST = 200.0  # nats: cells below e^-200 have no influence, and squares of their mass must not underflow


class TableOptimum(NamedTuple):
    """Scores ``beta * log w_j`` of the K+1 cells, their beta, exact mean KL, mean win rate, gap and residual."""

    scores: np.ndarray
    beta: float
    kl: float
    win_rate: float
    gap: float
    residual: float


def solve(objective, calibration_samples, *, kl=None, beta=None, iterations=60):
    """Maximises mean win rate minus ``beta`` times mean KL over the values of the rank cells.

    Newton steps with the curvature of the average table. With ``w_j`` the cell weights, ``p`` the cell probabilities of
    a table and ``Phi_j`` the derivative of its win rate averaged over cell j, the condition of optimality is
    ``E[p_j (Phi_j - sum_i p_i Phi_i)] = beta E[p_j (log(w_j/Z) - KL)]`` for every cell.

    Raises:
      ValueError: a KL that a table of K cannot reach, or a procedure without a distortion.
    """
    size = calibration_samples
    if kl is not None and kl >= 0.98 * finite_table.largest_kl(size):
        limit = finite_table.largest_kl(size)
        raise ValueError(
            f"kl = {kl:g} is out of reach of a table of {size} rollouts: even its top cell alone has {limit:.4g}"
        )
    parts = [(w, finite_table.ranked(part)) for w, part in objective.parts]
    middle = (np.arange(size + 1) + 0.5) / (size + 1)
    own = sum(w * part.slope(middle) ** 2 for w, part in parts)
    start = 0.5 * own - np.cumsum(own[::-1])[::-1]  # the derivative at the reference, in the middle of each cell
    start = _with_kl(start, kl or min(0.3, 0.3 * finite_table.largest_kl(size)))
    residual, log_w, multiplier, mass, force = _ascend(parts, start, kl, beta, iterations)
    if beta is not None and residual > 1e-8:  # from so far away Newton's method failed: find the KL that has this beta
        residual, log_w, multiplier, mass, force = _ascend_by_kl(parts, start, beta, iterations)
    if not residual < 1e-4:
        target = f"kl = {kl:g}" if beta is None else f"beta = {beta:g}"
        raise ValueError(
            f"{target} was not solved for {objective.name} on a table of {size} rollouts (residual {residual:.1g})"
        )
    gap = float(np.sum(force**2 / mass) / (2 * multiplier))
    win_rate, _ = finite_table.mean_win_rate(objective, log_w)
    scores = multiplier * (log_w - log_w.max())
    return TableOptimum(scores, multiplier, finite_table.mean_kl(log_w), win_rate, gap, residual)


def _ascend_by_kl(parts, start, beta, iterations):
    """The optimum at the KL whose multiplier is beta; beta falls as the KL grows."""
    from scipy import optimize

    limit = 0.98 * finite_table.largest_kl(len(start) - 1)
    found = {}

    def excess(log_kl):
        found[log_kl] = _ascend(parts, _with_kl(start, np.exp(log_kl)), np.exp(log_kl), None, iterations)
        return np.log(found[log_kl][2] / beta)

    low, high = np.log(1e-3), np.log(limit)
    if excess(low) < 0 or excess(high) > 0:
        raise ValueError(
            f"beta = {beta:g} belongs to no KL between 0.001 and {limit:.4g}, the most a table this small reaches"
        )
    log_kl = optimize.brentq(excess, low, high, xtol=1e-9)
    return found[log_kl]


def _ascend(parts, log_w, kl, beta, iterations):
    """``(residual, log w, beta, mean mass, force)`` of the best point that Newton's method reaches from ``log_w``."""
    widths = finite_table.simulated_tables(len(log_w) - 1, _CELLS, seed=1)
    history, best, settled = [], None, False
    for step in range(iterations):
        mass, win, divergence, curvature = _gradients(parts, log_w, widths, with_curvature=not settled)
        multiplier = beta or abs(float(np.sum(win * divergence / mass) / np.sum(divergence**2 / mass)))
        force = win - multiplier * divergence
        residual = float(np.sum(np.abs(force))) / multiplier
        if best is None or residual < best[0]:
            best = (residual, log_w, multiplier, mass, force)
        if residual < _TOLERANCE:
            break
        if residual > 10 * best[0]:  # extrapolated too far: go back and continue with plain steps
            history, log_w, settled = [], best[1], False
            continue
        if not settled:  # with convex distortions the curvature settles long before the scores do
            inverse = _curvature_inverse(mass, multiplier, curvature)
        history.append((log_w, np.clip(inverse @ force, -40.0, 20.0)))
        log_w = _mixed(history[-6:], mass) if settled else log_w + history[-1][1]
        settled = settled or (step >= 3 and residual < 0.05 and np.min(curvature) >= 0)
        if kl is not None:
            log_w = _with_kl(log_w, kl)
    return best


def _gradients(parts, log_w, widths, with_curvature):
    """Mean cell probabilities, gradients of mean W and KL in ``log w``, and ``int g''(F) g'(v)`` over each cell."""
    p, log_z = finite_table.policy(log_w, widths)
    upper_F, upper_v = np.cumsum(p, 1), np.cumsum(widths, 1)
    whole, inner, curvature = np.zeros_like(p), np.zeros_like(p), np.zeros(p.shape[1])
    for chance, part in parts:
        points, weights, _ = rule(finite_table.points_of(part))
        for x, weight in zip(points, weights, strict=True):
            F = np.clip(upper_F - (1 - x) * p, 0.0, 1.0)
            v = np.clip(upper_v - (1 - x) * widths, 0.0, 1.0)
            measure = chance * weight * widths * part.slope(v)
            value = measure * part.slope(F)
            whole += value
            inner += x * value
            if with_curvature:
                curvature += np.mean(measure * part.curvature(F), 0)
    after = np.cumsum(whole[:, ::-1], 1)[:, ::-1] - whole
    slope = -(after + inner)
    slope -= np.sum(p * slope, 1, keepdims=True)
    log_ratio = log_w - log_z[:, None]
    log_ratio -= np.sum(p * log_ratio, 1, keepdims=True)
    return p.mean(0), np.mean(p * slope, 0), np.mean(p * log_ratio, 0), curvature


def _curvature_inverse(mass, multiplier, curvature):
    """Inverse of ``beta diag(p) + p A' diag(c) A p`` on changes that keep the total mass; A sums the mass below a cell.

    Negative curvature c (of concave distortions) is left out where the matrix would not be positive definite.
    """
    cells, root = len(mass), np.sqrt(mass)
    below = (np.tril(np.ones((cells, cells)), -1) + 0.5 * np.eye(cells)) * root
    below -= np.outer(below @ root, root) / (root @ root)
    matrix = below.T @ (curvature[:, None] * below) + multiplier * np.eye(cells)
    try:
        np.linalg.cholesky(matrix - 0.05 * multiplier * np.eye(cells))
    except np.linalg.LinAlgError:
        matrix = below.T @ (np.clip(curvature, 0.0, None)[:, None] * below) + multiplier * np.eye(cells)
    return np.linalg.inv(matrix) / root[:, None] / root


def _mixed(history, mass):
    """Anderson's extrapolation: the mixture of past points whose steps nearly cancel, moved by the mixed step."""
    points, steps = (np.array(rows) for rows in zip(*history, strict=True))
    weight = np.sqrt(mass)
    change = np.diff(steps, axis=0)
    mixture = np.linalg.lstsq((change * weight).T, steps[-1] * weight, rcond=1e-10)[0]
    return points[-1] + steps[-1] - mixture @ (np.diff(points, axis=0) + change)


def _with_kl(log_w, kl):
    """``log_w`` scaled so that the exact mean KL over tables is ``kl``."""
    from scipy import optimize

    log_w = log_w - log_w.max()

    def scaled(log_scale):
        return np.maximum(np.exp(min(log_scale, 100.0)) * log_w, -_DEEPEST)

    def excess(log_scale):
        return np.log(max(finite_table.mean_kl(scaled(log_scale)), 1e-300) / kl)

    first = excess(0.0)
    if abs(first) < 1e-13:
        return scaled(0.0)
    low = high = -0.7 * first  # the KL grows about as the square of the scale
    margin = max(abs(first), 1e-6)
    while excess(low) > 0:
        low -= margin
        margin *= 2
    while excess(high) < 0:
        high += margin
        margin *= 2
        if high > 60:
            raise ValueError(f"kl = {kl:g} is out of reach of these scores on a table of {len(log_w) - 1} rollouts")
    root = low if low == high else optimize.brentq(excess, low, high, xtol=1e-13, rtol=1e-13)
    return scaled(root)


def interpolated(name, scores):
    """The transform through the points ``(j/K, scores[j])``, linear between them (half ranks of ties take the mean)."""
    size = len(scores) - 1
    knots = np.arange(size + 1) / size

    def function(u, xp):
        return xp.interp(u, knots.astype(u.dtype), scores.astype(u.dtype))

    return transforms.Transform(name, function, breaks=tuple(knots[1:-1].tolist()))
