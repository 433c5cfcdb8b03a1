"""Rewards with ties: the exact optimum over finitely many reward levels, 0/1 (verifiable) rewards included.

On levels 1..L, from the worst, with cumulative masses A_k under the reference and B_k under the policy, the win rate with
ties counted as one half is ``W = sum_k [g(B_k) - g(B_(k-1))] m_k``, ``m_k = (g(A_k) + g(A_(k-1)))/2``. Calibration maps level k
to the mid-rank ``u_k = (A_k + A_(k-1))/2``, so a transform takes L values per prompt; which ones are best depends on the
masses, so on the prompt. Source: InfAlign (arXiv 2412.19792); formula and comparison with pass@N in ``docs/theory.md``.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from infalign_jax.core import procedures, stationary, theory
from infalign_jax.core.checks import check_positive
from infalign_jax.core.procedure import all_convex
from infalign_jax.core.winrate import exact_win_rate


class LevelsOptimum(NamedTuple):
    """The optimal policy over reward levels, worst first.

    Attributes:
      probabilities: mass of each level under the policy, ``[L]``.
      scores: ``beta * log(policy/reference)`` of each level, 0 at the first: the optimal transform's values.
      u: calibrated reward of each level.
      beta, kl, win_rate: KL coefficient, KL in nats, inference-time win rate (ties one half).
      gap: ``beta * KL(q || Tq)``; for convex distortions an upper bound of the distance to the optimum.
      kind: ``certified`` for convex distortions, else ``local``.
    """

    probabilities: np.ndarray
    scores: np.ndarray
    u: np.ndarray
    beta: float
    kl: float
    win_rate: float
    gap: float
    kind: str


class _Masses(NamedTuple):
    """Reference masses in the role of a quadrature grid: densities are policy over reference."""

    u_M: np.ndarray
    weight_M: np.ndarray

    def integral(self, values_M):
        return self.weight_M @ values_M

    def from_left(self, values_M):
        return np.cumsum(self.weight_M * values_M)


def win_rate(objective, policy_probs, reference_probs):
    """Win rate over reward levels, worst first, ties counted as one half.

    Args:
      objective: procedure (or average) with a distortion.
      policy_probs, reference_probs: masses of the levels, ``[L]``.

    Raises:
      ValueError: masses that are no probabilities of the same length, or a procedure without a distortion.
    """
    q, p = checked_masses("policy_probs", policy_probs), checked_masses("reference_probs", reference_probs)
    if len(q) != len(p):
        raise ValueError(f"policy_probs and reference_probs must have the same length, got {len(q)} and {len(p)}")
    return float(exact_win_rate(objective, q, p, np.arange(len(p))))


def optimal_on_levels(procedure, reference_probs, *, kl=None, beta=None):
    """The policy over reward levels that maximises ``W - beta KL``, at a target KL or for a given beta.

    Args:
      procedure: procedure or average with a distortion, or a name.
      reference_probs: masses of the reward levels under the reference, worst first, ``[L]``, all positive.
      kl: target, nats; at most ``-log`` of the best level's mass. Or
      beta: the KL coefficient. Exactly one of the two.

    Raises:
      ValueError: not exactly one target, masses that are no probabilities, or a KL out of reach.
    """
    objective = procedures.from_name(procedure)
    p = checked_masses("reference_probs", reference_probs)
    if (kl is None) == (beta is None):
        raise ValueError(f"optimal_on_levels needs exactly one of kl and beta, got kl = {kl!r}, beta = {beta!r}")
    if np.any(p <= 0) or len(p) < 2:
        raise ValueError("reference_probs must have at least two levels, all of positive mass")
    masses = _Masses((np.cumsum(p) - 0.5 * p), p)
    adapted = procedures.Objective(objective.name, tuple((w, _on_levels(part, p)) for w, part in objective.parts))
    if beta is None:
        kl, limit = check_positive("kl", kl), -np.log(p[-1])
        if kl >= limit:
            raise ValueError(f"kl = {kl:g} is out of reach: the best level alone has KL {limit:.4g}")
        state = stationary.solve(adapted, masses, kl, masses.u_M, iterations=20_000)
    else:
        state = _at_beta(adapted, masses, check_positive("beta", beta))
    if not state.residual < 1e-10:
        raise ValueError(
            f"the optimum on these {len(p)} levels for {objective.name} was not found: residual {state.residual:.2g}"
        )
    q = p * np.exp(state.log_f_M)
    scores = state.beta * (state.log_f_M - state.log_f_M[0])
    rate, kind = win_rate(objective, q / q.sum(), p), "certified" if all_convex(objective) else "local"
    return LevelsOptimum(q, scores, masses.u_M, state.beta, state.kl, rate, state.gap, kind)


def _at_beta(adapted, masses, beta):
    """Damped iteration at fixed beta; steps that lower ``W - beta KL`` are halved."""
    log_f_M = np.zeros_like(masses.u_M)
    state, error_M = stationary.examine(adapted, masses, log_f_M, beta=beta)
    damping = 0.5
    for _ in range(50_000):
        if state.residual < 1e-14:
            break
        moved_M = theory.normalized(state.log_f_M - damping * np.clip(error_M, -5, 5), masses)
        trial, trial_error_M = stationary.examine(adapted, masses, moved_M, beta=beta)
        turned = (masses.weight_M * np.exp(moved_M)) @ (error_M * trial_error_M) < 0
        if turned and trial.residual >= state.residual:
            damping *= 0.5
            if damping < 1e-8:
                break
            continue
        state, error_M = trial, trial_error_M
        damping = max(damping * 0.8, 1e-6) if turned else min(damping * 1.2, 1.0)
    return state


def _on_levels(part, p):
    """A procedure whose derivative of W in q_j is ``-sum_(k >= j, k < L) g'(B_k) (m_(k+1) - m_k)``."""
    if part.distortion is None:
        raise ValueError(f"{part.name} is no distortion of F alone, so its law on reward levels is not available")
    rises = np.append(np.diff(_middle(part, p)), 0.0)

    def derivative(density_M, cdf_M, nodes):
        return -np.cumsum((part.slope(np.minimum(cdf_M, 1.0)) * rises)[::-1])[::-1]

    return dataclasses.replace(part, distortion=None, general_derivative=derivative)


def _middle(part, masses):
    """``m_k``: half of what the procedure leaves below level k and half of what up to it, ``[L]``."""
    boundaries = np.clip(np.concatenate([[0.0], np.cumsum(masses)[:-1], [1.0]]), 0.0, 1.0)
    after = part.distortion(boundaries)
    return 0.5 * (after[1:] + after[:-1])


def checked_masses(name, masses):
    """Float64 masses that are nonnegative and sum to 1, or ``ValueError``."""
    masses = np.asarray(masses, np.float64)
    if masses.ndim != 1 or not len(masses) or not np.all(masses >= 0) or abs(masses.sum() - 1) > 1e-8:
        raise ValueError(f"{name} must be a vector of nonnegative masses that sum to 1, got {masses.tolist()}")
    return masses / masses.sum()
