"""KL-regularised policy gradient: the third step of CTRL (InfAlign, arXiv 2412.19792, algorithm 1)."""

import chex
import jax
import jax.numpy as jnp

from infalign_jax.core.advantages import leave_one_out
from infalign_jax.core.masking import masked_sum


def regularized_return(scores_BR, log_ratios_BR, beta):
    """Score minus the price of leaving the reference: `Phi(C) - beta * log(pi(y|x) / pi_ref(y|x))`.

    Its expectation under the policy is `E[Phi(C)] - beta KL(pi || pi_ref)`, the objective of CTRL. The log-ratio enters
    as a number: because `E[grad log pi] = 0`, the score-function gradient of this return is the exact gradient of the
    objective, while differentiating a log-ratio penalty in the loss is not.

    Args:
      scores_BR: float `[B, R]`, transformed rewards.
      log_ratios_BR: float `[B, R]`, policy minus reference sequence log-probability, in nats.
      beta: float scalar >= 0, score units per nat.

    Returns:
      float `[B, R]`; carries no gradient.
    """
    return jax.lax.stop_gradient(scores_BR - beta * log_ratios_BR)


def policy_gradient_loss(log_probs_BRC, mask_BRC, returns):
    """Surrogate whose gradient is the leave-one-out REINFORCE estimate of `-grad E[return]`.

        L = - mean_{b,r} sum_c A_brc mask_brc log pi(y_brc | x_b, y_br<c),     A = leave_one_out(returns) over r

    A sequence counts once whatever its length (no division by length, which would favour long bad answers).

    Args:
      log_probs_BRC: float `[B, R, C]`, token log-probabilities under the policy, differentiable.
      mask_BRC: float `[B, R, C]`, 1 for drawn tokens, the end-of-sequence token included.
      returns: float `[B, R]`, one for a whole sequence, or `[B, R, C]`, what follows each token; no gradient flows into
        them.

    Returns:
      Scalar; its value means nothing, its gradient is unbiased for on-policy rollouts.

    Raises:
      ValueError: fewer than two rollouts per prompt.
    """
    chex.assert_equal_shape([log_probs_BRC, mask_BRC])
    returns_BRC = returns if returns.ndim == 3 else returns[:, :, None]
    advantages_BRC = jax.lax.stop_gradient(leave_one_out(returns_BRC, axis=1))
    return -masked_sum(advantages_BRC * log_probs_BRC, mask_BRC).mean()


def exact_kl_loss(log_probs_BRC, kl_BRC, mask_BRC, scores_BR, beta):
    """The same objective with the divergence summed over the vocabulary at each token instead of sampled.

    With `KL_c` the divergence between policy and reference for token c given the tokens before it,

        grad KL = E[ sum_c ( grad KL_c + grad log pi(y_c) sum_{c' > c} KL_c' ) ],

    so the price of leaving the reference is differentiated directly where that is possible, and only its consequences
    for later tokens go through the score function. The expectation is that of `regularized_return` with
    `policy_gradient_loss`; what the sampled log-ratio adds in variance, which grows with the length, is gone.

    Args:
      log_probs_BRC: float `[B, R, C]`, differentiable.
      kl_BRC: float `[B, R, C]`, exact divergence per token in nats, differentiable in the policy.
      mask_BRC: float `[B, R, C]`.
      scores_BR: float `[B, R]`, transformed rewards, no gradient.
      beta: float scalar, score units per nat.

    Returns:
      Scalar; its value means nothing, its gradient is unbiased for on-policy rollouts.

    Raises:
      ValueError: fewer than two rollouts per prompt.
    """
    masked_kl_BRC = jnp.where(mask_BRC > 0, kl_BRC, 0.0)
    later_BRC = jnp.cumsum(masked_kl_BRC[..., ::-1], axis=-1)[..., ::-1] - masked_kl_BRC
    returns_BRC = jax.lax.stop_gradient(scores_BR[..., None] - beta * later_BRC)
    return policy_gradient_loss(log_probs_BRC, mask_BRC, returns_BRC) + beta * masked_kl_BRC.sum(-1).mean()
