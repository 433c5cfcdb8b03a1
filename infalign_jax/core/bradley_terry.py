"""The Bradley-Terry model of pairs of responses: the loss that trains a reward, and whether it is as sure as it is right."""

import jax
import jax.numpy as jnp


def bradley_terry_loss(chosen_rewards_B, rejected_rewards_B):
    """Mean of `-log sigmoid(r_chosen - r_rejected)` (Bradley and Terry, 1952): maximum likelihood of the choices.

    Only differences count, so a reward model's offset per prompt is arbitrary; its scale says how sure it is.

    Args:
      chosen_rewards_B, rejected_rewards_B: float `[B]`, the same units.

    Returns:
      Scalar in nats, >= 0, log 2 for a model that knows nothing; differentiable, never overflows.

    Examples:
      >>> round(float(bradley_terry_loss(jnp.zeros(1), jnp.zeros(1))), 4)  # log 2
      0.6931
    """
    return -jnp.mean(jax.nn.log_sigmoid(chosen_rewards_B - rejected_rewards_B))


def expected_calibration_error(margins_B, bins=10):
    """How far the model's sureness is from its hit rate: `sum_bins (n_bin / n) |accuracy - mean confidence|`.

    The confidence of a pair is `sigmoid(|margin|)` in [1/2, 1], a hit is `margin > 0` (a tie is half a hit).

    Args:
      margins_B: float `[B]`, reward of the chosen minus reward of the rejected response.
      bins: number of equal bins of the confidence.

    Returns:
      Scalar in [0, 1]; piecewise, not for training.

    Examples:
      >>> round(float(expected_calibration_error(jnp.array([0.0, 0.0]))), 4)  # sure by half, right by half
      0.0
    """
    confidence_B = jax.nn.sigmoid(jnp.abs(margins_B))
    hits_B = 0.5 * (1.0 + jnp.sign(margins_B))
    which_B = jnp.clip(((confidence_B - 0.5) * 2 * bins).astype(int), 0, bins - 1)
    excess = jnp.zeros(bins).at[which_B].add(hits_B - confidence_B)
    return jnp.sum(jnp.abs(excess)) / margins_B.shape[0]
