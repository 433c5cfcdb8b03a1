"""Losses on pairs of a prompt's responses that train a policy without sampling from it: DPO, IPO and BoNBoN.

All of them see a policy through the margin of a pair, `h = log_ratio(chosen) - log_ratio(rejected)`, where a log-ratio is
the policy's minus the reference's log-probability of a whole response, in nats.
"""

import math

import jax
import jax.numpy as jnp

from infalign_jax.core.checks import check_whole


def dpo_loss(margins_B, beta, preferred_B=1.0):
    """Direct preference optimisation (arXiv 2305.18290): `-mean[p log sigmoid(beta h) + (1 - p) log sigmoid(-beta h)]`.

    Where p is the Bradley-Terry probability `sigmoid(r_chosen - r_rejected)` and the pairs are of full support, the
    minimiser is `pi ∝ pi_ref exp(r / beta)`: KL-regularised RL on the raw reward. With p = 1 throughout, rewards act as
    if they were infinitely far apart, and only the number of steps bounds the margin.

    Args:
      margins_B: float `[B]`, h in nats; differentiable.
      beta: float > 0, Bradley-Terry units per nat.
      preferred_B: float in [0, 1], the probability p that the chosen response is preferred.

    Returns:
      Scalar in nats, >= 0.

    Examples:
      >>> round(float(dpo_loss(jnp.zeros(1), 0.1)), 4)  # log 2
      0.6931
    """
    logits_B = beta * margins_B
    losses_B = preferred_B * jax.nn.log_sigmoid(logits_B) + (1.0 - preferred_B) * jax.nn.log_sigmoid(-logits_B)
    return -jnp.mean(losses_B)


def ipo_loss(margins_B, tau, preferred_B=1.0):
    """Identity preference optimisation (arXiv 2310.12036, equation 17): `mean[p (h - c)^2 + (1 - p) (h + c)^2]`.

    c = 1 / (2 tau). For pairs drawn from the reference policy and labelled by which reward is higher, the minimiser is
    `pi ∝ pi_ref exp(u / tau)`, u being the calibrated reward: CTRL with the identity transform.

    Args:
      margins_B: float `[B]`, h in nats, summed over tokens (not averaged); differentiable.
      tau: float > 0, units of u per nat.
      preferred_B: float in [0, 1], as in `dpo_loss`; 1/2 for two responses of the same reward.

    Returns:
      Scalar in nats squared, >= 0.

    Examples:
      >>> float(ipo_loss(jnp.array([5.0]), 0.1))  # a margin of 1 / (2 tau)
      0.0
    """
    target = 0.5 / tau
    return jnp.mean(preferred_B * (margins_B - target) ** 2 + (1.0 - preferred_B) * (margins_B + target) ** 2)


def bonbon_margin(n):
    """What BoNBoN wants the mean margin of best and worst of n to be: `(n - 1) (1 + 1/2 + ... + 1/(n - 1))` nats.

    The best-of-n policy has log-ratio `log n + (n - 1) log u`; the expectation of log u is -1/n for the best of n uniform
    draws and `-(1 + 1/2 + ... + 1/n)` for the worst (arXiv 2406.00832, theorem 3, where it is called 1 / (2 beta*)).

    Raises:
      ValueError: n is no whole number of at least 2.

    Examples:
      >>> bonbon_margin(3)  # (3 - 1) (1 + 1/2)
      3.0
    """
    n = check_whole("n", n, 2)
    return (n - 1) * math.fsum(1.0 / k for k in range(1, n))


def bonbon_loss(margins_B, chosen_log_probs_B, n, sft_share):
    """BoNBoN (arXiv 2406.00832): `mean[share * -log pi(chosen) + (1 - share) (h - bonbon_margin(n))^2]`.

    Chosen and rejected are the best and the worst of the same n responses of the reference policy. The first term alone
    is minimised by the best-of-n policy, and the second is met by it on average. With worst and best exchanged, the
    target is the worst-of-n policy.

    Args:
      margins_B: float `[B]`, h in nats; differentiable.
      chosen_log_probs_B: float `[B]`, log-probability of the chosen response under the policy, nats; differentiable.
      n: whole number >= 2.
      sft_share: float in [0, 1].

    Returns:
      Scalar.
    """
    squares_B = (margins_B - bonbon_margin(n)) ** 2
    return jnp.mean((1.0 - sft_share) * squares_B - sft_share * chosen_log_probs_B)
