"""Proximal policy optimisation on tokens: generalised advantages, and clipped losses of policy and value."""

import chex
import jax
import jax.numpy as jnp

from infalign_jax.core.masking import masked_mean


def token_rewards(scores_BR, log_ratios_BRC, mask_BRC, beta):
    """Rewards of the single tokens: `-beta * log_ratio_t`, and the response's score on its last token besides.

    Their sum over a response is `regularized_return`: the same objective, told token by token.

    Args:
      scores_BR: float `[B, R]`.
      log_ratios_BRC: float `[B, R, C]`, policy minus reference log-probability of each token, nats.
      mask_BRC: float `[B, R, C]`, ones first.
      beta: float >= 0, score units per nat.

    Returns:
      float `[B, R, C]`, zero under mask 0; carries no gradient.
    """
    last_BRC = mask_BRC * (1.0 - jnp.pad(mask_BRC[..., 1:], [(0, 0)] * (mask_BRC.ndim - 1) + [(0, 1)]))
    rewards_BRC = last_BRC * scores_BR[..., None] - beta * jnp.where(mask_BRC > 0, log_ratios_BRC, 0.0)
    return jax.lax.stop_gradient(rewards_BRC)


def generalized_advantages(rewards_BRC, values_BRC, mask_BRC, *, discount, decay):
    """GAE (arXiv 1506.02438): `A_t = sum_{s >= t} (discount decay)^(s - t) d_s`, `d_t = r_t + discount V_{t+1} - V_t`.

    V_t is the value before token t is drawn; after the last token it is 0.

    Args:
      rewards_BRC: float `[..., C]`, of each token.
      values_BRC: float `[..., C]`, reward units.
      mask_BRC: float `[..., C]`, ones first.
      discount: float in [0, 1]; 1 for responses that end.
      decay: float in [0, 1], lambda: 1 is the sum of rewards to come minus the value, 0 the one-step difference.

    Returns:
      advantages_BRC and targets_BRC = advantages + values, what the value should have been; both zero under mask 0, and
      without gradient.

    Examples:
      >>> one = jnp.ones((1, 1, 2))
      >>> [x.tolist() for x in generalized_advantages(one, 0 * one, one, discount=1.0, decay=1.0)]
      [[[[2.0, 1.0]]], [[[2.0, 1.0]]]]
    """
    chex.assert_equal_shape([rewards_BRC, values_BRC, mask_BRC])
    rewards_BRC, values_BRC = (jnp.where(mask_BRC > 0, x, 0.0) for x in (rewards_BRC, values_BRC))

    def backwards(carry, token):
        advantage, next_value = carry
        reward, value, mask = token
        advantage = mask * (reward + discount * next_value - value + discount * decay * advantage)
        return (advantage, value), advantage

    zeros = jnp.zeros(rewards_BRC.shape[:-1], rewards_BRC.dtype)
    tokens = [jnp.moveaxis(x, -1, 0) for x in (rewards_BRC, values_BRC, mask_BRC)]
    _, advantages_CBR = jax.lax.scan(backwards, (zeros, zeros), tokens, reverse=True)
    advantages_BRC = jax.lax.stop_gradient(jnp.moveaxis(advantages_CBR, 0, -1))
    return advantages_BRC, jax.lax.stop_gradient(advantages_BRC + values_BRC)


def whiten(advantages_BRC, mask_BRC, epsilon=1e-8):
    """Advantages minus their mean, over their standard deviation (plus epsilon), of all tokens that count; zero under mask 0."""
    centred_BRC = advantages_BRC - masked_mean(advantages_BRC, mask_BRC)
    deviation = jnp.sqrt(masked_mean(centred_BRC**2, mask_BRC))
    return mask_BRC * centred_BRC / (deviation + epsilon)


def clipped_policy_loss(log_probs_BRC, old_log_probs_BRC, advantages_BRC, mask_BRC, clip):
    """`-mean_t min(q_t A_t, clip(q_t, 1 - clip, 1 + clip) A_t)`, `q_t = pi(y_t) / pi_old(y_t)` (arXiv 1707.06347, eq. 7).

    Args:
      log_probs_BRC: float `[B, R, C]`, of the policy that trains; differentiable.
      old_log_probs_BRC: of the policy that drew the tokens.
      advantages_BRC: of the tokens.
      mask_BRC: 1 for drawn tokens.
      clip: float > 0.

    Returns:
      Scalar: a mean over all tokens. The gradient of a token is zero once its ratio has left the interval for the better.
    """
    ratios_BRC = jnp.exp(jnp.where(mask_BRC > 0, log_probs_BRC - old_log_probs_BRC, 0.0))
    clipped_BRC = jnp.clip(ratios_BRC, 1.0 - clip, 1.0 + clip)
    return -masked_mean(jnp.minimum(ratios_BRC * advantages_BRC, clipped_BRC * advantages_BRC), mask_BRC)


def value_loss(values_BRC, targets_BRC, mask_BRC):
    """Half the mean squared error of the values to their targets over the tokens with mask 1, reward units squared;
    differentiable.
    """
    return 0.5 * masked_mean((values_BRC - targets_BRC) ** 2, mask_BRC)
