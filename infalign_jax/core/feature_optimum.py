"""The best policy among those that see only some features of a response: what a network that learns no others can reach.

The policies are pi(y) ∝ pi_ref(y) exp(theta . f(y)). With every indicator of a response among the features that is any policy;
with the number of times each token stands at each place it is all policies that draw their tokens independently of those
before. Host code, float64.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from infalign_jax.core.checks import check_finite
from infalign_jax.core.procedure import all_distortions
from infalign_jax.core.winrate import exact_win_rate


class FeatureOptimum(NamedTuple):
    """Weights [N] of the reference's responses, summing to 1; their KL in nats; the win rate of the objective."""

    weights_N: np.ndarray
    kl: float
    win_rate: float


def solve(objective, rewards_N, features_NF, kl):
    """Maximises the win rate of `objective` over theta, subject to KL(pi || pi_ref) <= kl.

    The N responses of the reference policy to a prompt stand for its law, so N must be large against the number of features. With
    the levels of reward ascending, B and A the mass of policy and reference up to each,

        dW / dp_v = -sum over levels k from v to the last but one of g'(B_k) (g(A_k+1) - g(A_k-1)) / 2

    (`exact_win_rate` differentiated), and dW / dtheta is its covariance with the features under the policy.

    Args:
      objective: procedure, or average of several, with a distortion.
      rewards_N: rewards of responses drawn from the reference.
      features_NF: their features; constants and units do not matter.
      kl: nats, > 0.

    Returns:
      `FeatureOptimum`: the better of the local optima found from three starts.

    Raises:
      ValueError: other shapes, numbers that are not finite, a procedure without a distortion, a KL that is not above 0 or
        that no start could keep.

    Examples:
      >>> from infalign_jax.core import procedures
      >>> two = solve(procedures.standard(), [0.0, 1.0], [[0.0], [1.0]], 0.1)  # KL of (1 - p, p) to a fair coin
      >>> round(float(two.weights_N[1]), 4)
      0.7198
    """
    rewards_N, features_NF = check_finite("rewards_N", rewards_N), check_finite("features_NF", features_NF)
    if rewards_N.ndim != 1 or features_NF.ndim != 2 or len(features_NF) != len(rewards_N):
        raise ValueError(f"rewards {rewards_N.shape} and features {features_NF.shape} must be [N] and [N, F]")
    if not all_distortions(objective):
        raise ValueError(f"{objective.name} has no distortion; its optimum over features is not solved for")
    if not kl > 0:
        raise ValueError(f"kl is {kl:g}; it must be above 0")
    levels_V, level_N = np.unique(rewards_N, return_inverse=True)
    reference_V = np.bincount(level_N) / len(level_N)
    features_NF = features_NF - features_NF.mean(0)
    features_NF = features_NF / np.maximum(features_NF.std(0), 1e-12)

    def value(theta_F):
        weights_N = special.softmax(features_NF @ theta_F)
        policy_V = np.bincount(level_N, weights_N)
        win = exact_win_rate(objective, policy_V, reference_V, levels_V)
        slope_V = _slope(objective, policy_V, reference_V)
        return -float(win), -_covariance(weights_N, slope_V[level_N], features_NF)

    def slack(theta_F):
        return kl - _divergence(special.softmax(features_NF @ theta_F))

    def slack_slope(theta_F):
        return -_covariance(special.softmax(features_NF @ theta_F), features_NF @ theta_F, features_NF)

    limit = {"type": "ineq", "fun": slack, "jac": slack_slope}
    starts = (np.full(features_NF.shape[1], size) for size in (0.2, -0.2, 0.05))
    found = [
        optimize.minimize(value, start, jac=True, method="SLSQP", constraints=[limit], options={"maxiter": 300})
        for start in starts
    ]
    kept = [result for result in found if slack(result.x) > -1e-3 * kl]
    if not kept:
        raise ValueError(f"no policy of these features was found within kl = {kl:g}")
    best = min(kept, key=lambda result: result.fun)
    weights_N = special.softmax(features_NF @ best.x)
    return FeatureOptimum(weights_N, _divergence(weights_N), -float(best.fun))


def _slope(objective, policy_V, reference_V):
    """The derivative of the win rate in the policy's mass of each of the ascending levels, up to a constant."""
    up_to_V, reference_up_to_V = (np.minimum(np.cumsum(p_V), 1.0) for p_V in (policy_V, reference_V))
    slope_V = np.zeros_like(policy_V)
    for share, part in objective.parts:
        beaten_V = np.r_[0.0, part.distortion(reference_up_to_V)]
        inner = part.slope(up_to_V[:-1]) * (beaten_V[2:] - beaten_V[:-2]) / 2
        slope_V[:-1] -= share * np.cumsum(inner[::-1])[::-1]
    return slope_V


def _covariance(weights_N, values_N, features_NF):
    return (weights_N * (values_N - weights_N @ values_N)) @ features_NF


def _divergence(weights_N):
    return float(special.xlogy(weights_N, weights_N * len(weights_N)).sum())
