"""Stationary densities: solutions of ``f ~ exp(Phi[F]/beta)``, the condition every optimal policy satisfies.

``Phi[F] = dW/df`` is the derivative of the win rate (InfAlign, arXiv 2412.19792; ``docs/theory.md``). The plain
iteration ``f <- T f ~ exp(Phi[F]/beta)`` oscillates for best-of-N, so it is damped as much as needed and only brings us
close; Newton's method on log f then squares the error at each step. Since the linearised condition is a two-point
boundary value problem of second order, one Newton step costs a banded solve, linear in the number of nodes.
All of it runs in float64 on the host.
"""

from typing import NamedTuple

import numpy as np

from infalign_jax.core.procedure import all_distortions
from infalign_jax.core.quadrature import POINTS, rule
from infalign_jax.core.theory import kl_of_density, normalized

_TOLERANCE = 1e-13  # of the residual, in nats
_TILT_LIMIT = 200


class Stationary(NamedTuple):
    """A density at the nodes of a grid, with what is known about it.

    Attributes:
      log_f_M: log density.
      cdf_M: its distribution function.
      beta: the coefficient of the KL term for which it is stationary.
      kl: its KL, nats.
      residual: ``int f |log f - log Tf| du``.
      gap: ``beta * KL(f || Tf)``; for convex g this bounds how far the objective is from its maximum.
    """

    log_f_M: np.ndarray
    cdf_M: np.ndarray
    beta: float
    kl: float
    residual: float
    gap: float


def solve(objective, nodes, kl, start_M, iterations=3000):
    """The stationary density with this KL that the damped iteration and Newton's method reach from a start.

    Args:
      objective: procedure or average.
      nodes: quadrature grid with edges at the procedure's breaks.
      kl: target, nats.
      start_M: any scores at the nodes; the start is their exponential tilt with the target KL.
      iterations: limit of the damped iteration.

    Returns:
      ``Stationary``; the caller judges its ``residual``.
    """
    log_f_M = tilt(start_M, kl, nodes)[1]
    # the iteration's steepest mode contracts by about 1 + kl * (largest slope of a distortion)
    steepest = max(np.max(part.slope(nodes.u_M)) if part.distortion else 1.0 for _, part in objective.parts)
    damping, previous_M, threshold = 1 / (1 + steepest * kl), None, 0.3
    newton = all_distortions(objective)
    best = None
    for step in range(iterations):
        state, error_M = examine(objective, nodes, log_f_M, kl=kl)
        if best is None or state.residual < best.residual:
            best = state
        if state.residual < _TOLERANCE * min(1.0, kl**0.5) or (step > 200 and state.residual > 1e3 * best.residual + 1):
            break
        if newton and state.residual < threshold:
            polished = polish(objective, nodes, state, kl=kl)
            if polished.residual < 1e-9:
                return polished
            threshold *= 0.1
        weight_M = nodes.weight_M * np.exp(log_f_M)
        if previous_M is not None:
            turned = weight_M @ (error_M * previous_M) < 0  # overshooting shows as a sign change of the error
            damping = max(damping * 0.6, 1e-3) if turned else min(damping * 1.15, 1.0)
        previous_M = error_M
        log_f_M = tilt(log_f_M - damping * error_M, kl, nodes)[1]
    return best


def examine(objective, nodes, log_f_M, kl=None, beta=None):
    """``Stationary`` for this density, and ``log f - log Tf [M]``; beta is given, or that at which Tf has this KL."""
    f_M = np.exp(log_f_M)
    cdf_M = np.minimum(nodes.from_left(f_M), 1.0)
    slope_M = derivative(objective, nodes, f_M, cdf_M)
    if beta is None:
        scale, log_t_M = tilt(slope_M, kl, nodes)
        beta = 1 / scale
    else:
        log_t_M = normalized(slope_M / beta, nodes)
    error_M = log_f_M - log_t_M
    # KL(f || Tf) as an integral of a nonnegative function, so that it keeps its digits when it is tiny
    divergence = nodes.integral(f_M * (np.expm1(np.clip(-error_M, None, 50.0)) + error_M))
    residual = nodes.integral(f_M * np.abs(error_M))
    own_kl = kl_of_density(log_f_M, nodes)
    return Stationary(log_f_M, cdf_M, float(beta), float(own_kl), float(residual), float(beta * divergence)), error_M


def polish(objective, nodes, state, kl=None, steps=30):
    """Newton's method from a density that is nearly stationary; with ``kl`` beta moves too, so that the KL is met."""
    best = state
    for _ in range(steps):
        state, error_M = examine(objective, nodes, best.log_f_M, beta=best.beta)
        step_M = newton_step(objective, nodes, state, error_M)
        beta_change = 0.0
        if kl is not None:
            weight_M = nodes.weight_M * np.exp(state.log_f_M) * state.log_f_M
            along_M = newton_step(objective, nodes, state, state.log_f_M)  # d log f / d log beta
            beta_change = (kl - state.kl - weight_M @ step_M) / (weight_M @ along_M)
            step_M = step_M + beta_change * along_M
        merit = _merit(state, kl)
        for halving in range(6):
            size = 0.5**halving
            moved_M = normalized(state.log_f_M + size * step_M, nodes)
            trial, _ = examine(objective, nodes, moved_M, beta=state.beta * np.exp(np.clip(size * beta_change, -1, 1)))
            if _merit(trial, kl) < merit:
                break
        else:
            return state
        best = trial
        if _merit(trial, kl) < _TOLERANCE:
            return trial
    return best


def _merit(state, kl):
    """What Newton's method brings to zero, relative to the size of log f (about the root of the KL) and to the KL."""
    return state.residual / min(1.0, state.kl**0.5) + (0.0 if kl is None else abs(state.kl / kl - 1))


def derivative(objective, nodes, f_M, cdf_M):
    """``dW/df`` at the nodes, up to a constant."""
    return sum(w * part.derivative(f_M, cdf_M, nodes) for w, part in objective.parts)


def tilt(scores_M, kl, nodes):
    """The scale s > 0 at which the density ``~ exp(s * scores)`` has this KL, and that log density.

    Raises:
      ValueError: no scale does, to what float64 and the grid resolve.
    """
    scores_M = scores_M - np.max(scores_M)
    spread = np.sqrt(nodes.integral((scores_M - nodes.integral(scores_M)) ** 2))
    low, high, s = 0.0, np.inf, np.sqrt(2 * kl) / spread if spread > 0 else np.nan
    for _ in range(_TILT_LIMIT):
        log_f_M = normalized(s * scores_M, nodes)
        weight_M = nodes.weight_M * np.exp(log_f_M)
        reached = kl_of_density(log_f_M, nodes)
        if abs(reached - kl) <= 1e-14 * kl or high - low <= 4e-16 * s:
            return s, log_f_M
        if reached < kl:
            low = s
        else:
            high = s
        centred_M = scores_M - weight_M @ scores_M
        growth = np.log(kl / reached) * reached / (s * s * (weight_M @ centred_M**2)) if reached > 0 else 1.0
        newton = s * np.exp(np.clip(growth, -3.0, 3.0))
        s = newton if low < newton < high else (0.5 * (low + high) if np.isfinite(high) else 2 * low)
        if not np.isfinite(s):
            break
    raise ValueError(f"kl = {kl:g} is out of reach: the scores reach {reached:.4g} before float64 and the grid run out")


def newton_step(objective, nodes, state, error_M):
    """Solves ``beta (delta + error) = const - int_u^1 q_F dF dv``, ``dF = int_0^u f delta``, ``dF(1) = 0`` for delta.

    With ``y = delta + error`` it reads ``y' = k dF``, ``dF' = f (y - error)``, ``dF(0) = dF(1) = 0``, where
    ``k = sum_i w_i g_i''(F) g_i'(u) / beta``. Inside a panel the two are collocated at the Gauss nodes and eliminated;
    the values at the panel edges then solve a banded system.
    """
    from scipy.linalg import solve_banded

    panels, (_, weights, inside) = len(nodes.width_P), rule()
    shape = (panels, POINTS)
    slope_u = [(w, part, part.slope(nodes.u_M)) for w, part in objective.parts]
    k = (sum(w * part.curvature(state.cdf_M) * g for w, part, g in slope_u) / state.beta).reshape(shape)
    f, error = np.exp(state.log_f_M).reshape(shape), error_M.reshape(shape)
    h = nodes.width_P[:, None]
    by_k = h[..., None] * inside * k[:, None, :]  # y = y0 + by_k d
    by_f = h[..., None] * inside * f[:, None, :]  # d = d0 + by_f (y - error)
    right = np.stack([by_f.sum(-1), np.ones(shape), -(by_f @ error[..., None])[..., 0]], -1)  # y0, d0, constant
    d = np.linalg.solve(np.eye(POINTS) - by_f @ by_k, right)
    y = by_k @ d
    y[..., 0] += 1.0
    inner = y.copy()
    inner[..., 2] -= error
    end_y = np.einsum("pj,pjc->pc", h * weights * k, d) + np.eye(3)[0]
    end_d = np.einsum("pj,pjc->pc", h * weights * f, inner) + np.eye(3)[1]
    # unknowns y_0, d_0, y_1, d_1, ...; rows d_0 = 0, then the two transfers of each panel, then d_P = 0
    banded, constant = np.zeros((5, 2 * panels + 2)), np.zeros(2 * panels + 2)
    rows = 1 + 2 * np.arange(panels)
    banded[1, 1], banded[2, -1] = 1.0, 1.0
    for offset, end in ((0, end_y), (1, end_d)):
        i = rows + offset
        for column in (0, 1):
            j = i - offset - 1 + column
            banded[2 + i - j, j] += end[:, column]
        j = rows + 1 + offset
        banded[2 + i - j, j] -= 1.0
        constant[i] = -end[:, 2]
    edges = solve_banded((2, 2), banded, constant).reshape(-1, 2)[:-1]
    y_M = (y[..., 0] * edges[:, :1] + y[..., 1] * edges[:, 1:] + y[..., 2]).ravel()
    return y_M - error_M
