"""KL-regularised policy gradient: the third step of CTRL (InfAlign, arXiv 2412.19792, algorithm 1)."""

import chex
import jax

from infalign_jax.core.advantages import leave_one_out
from infalign_jax.core.masking import masked_sum


def regularized_return(scores_BR, log_ratios_BR, beta):
    """Score minus the price of leaving the reference: `Phi(C) - beta * log(pi(y|x) / pi_ref(y|x))`.

    Its expectation under the policy is `E[Phi(C)] - beta KL(pi || pi_ref)`, the objective of CTRL. The log-ratio enters
    as a number: because `E[grad log pi] = 0`, the score-function gradient of this return is the exact gradient of the
    objective, while differentiating a log-ratio penalty in the loss is not. At the optimum the return is the same for
    every response, so the variance of the gradient vanishes there.

    Args:
      scores_BR: float `[B, R]`, transformed rewards.
      log_ratios_BR: float `[B, R]`, policy minus reference sequence log-probability, in nats.
      beta: float scalar >= 0, score units per nat.

    Returns:
      float `[B, R]`; carries no gradient.

    Examples:
      >>> float(regularized_return(1.0, 0.5, 2.0))
      0.0
    """
    return jax.lax.stop_gradient(scores_BR - beta * log_ratios_BR)


def policy_gradient_loss(log_probs_BRC, mask_BRC, returns_BR):
    """Surrogate whose gradient is the leave-one-out REINFORCE estimate of `-grad E[return]`.

        L = - mean_{b,r} A_br sum_c mask_brc log pi(y_brc | x_b, y_br<c),     A = leave_one_out(returns)

    A sequence counts once whatever its length (no division by length, which would favour long bad answers).

    Args:
      log_probs_BRC: float `[B, R, C]`, token log-probabilities under the policy, differentiable.
      mask_BRC: float `[B, R, C]`, 1 for drawn tokens, the end-of-sequence token included.
      returns_BR: float `[B, R]`, no gradient flows into them.

    Returns:
      Scalar; its value means nothing, its gradient is unbiased for on-policy rollouts.

    Raises:
      ValueError: fewer than two rollouts per prompt.
    """
    return surrogate_loss(log_probs_BRC, mask_BRC, leave_one_out(returns_BR))


def surrogate_loss(log_probs_BRC, mask_BRC, advantages_BR):
    """`- mean_{b,r} A_br sum_c mask_brc log pi(y_brc | x_b, y_br<c)`: `policy_gradient_loss` for advantages that are made.

    Args:
      log_probs_BRC, mask_BRC: as there.
      advantages_BR: float `[B, R]`, no gradient flows into them.

    Returns:
      Scalar whose gradient is that of the policy; its value means nothing.
    """
    chex.assert_equal_shape([log_probs_BRC, mask_BRC])
    advantages_BR = jax.lax.stop_gradient(advantages_BR)
    return -(advantages_BR * masked_sum(log_probs_BRC, mask_BRC)).mean()
