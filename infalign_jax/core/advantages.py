"""Baselines: from the scores of the rollouts of a prompt to their advantages."""

import chex
import jax.numpy as jnp


def leave_one_out(returns_BR):
    """Each return minus the mean of the other rollouts of its prompt (RLOO, arXiv 2402.14740).

        A_i = r_i - 1/(R-1) sum_{j != i} r_j = R/(R-1) (r_i - mean r)

    The baseline of a rollout does not depend on it, so the policy gradient stays unbiased.

    Args:
      returns_BR: float `[..., R]`, any scale.

    Returns:
      float `[..., R]`, summing to zero over the rollouts of a prompt, in the units of the returns. Linear in the
      returns; the losses of this package stop its gradient.

    Raises:
      ValueError: with one rollout per prompt there is no other rollout to compare with.

    Examples:
      >>> import numpy as np
      >>> leave_one_out(np.array([1.0, 2.0, 6.0])).tolist()
      [-3.0, -1.5, 4.5]
    """
    rollouts = returns_BR.shape[-1]
    if rollouts < 2:
        raise ValueError(f"rollouts per prompt is {rollouts}; the leave-one-out baseline needs at least 2")
    return (returns_BR - returns_BR.mean(axis=-1, keepdims=True)) * (rollouts / (rollouts - 1))


def group_standardize(rewards_BR, epsilon=1e-4):
    """(r - mean) / (standard deviation + epsilon) over the rollouts of each prompt (GRPO, arXiv 2402.03300).

    It removes each prompt's own reward scale, and with it the scale of any transform of the reward.

    Args:
      rewards_BR: float `[..., R]`.
      epsilon: float, keeps a prompt whose rollouts all score the same at zero instead of 0/0.

    Returns:
      float `[..., R]`, zero mean and (nearly) unit population variance per prompt.

    Examples:
      >>> import numpy as np
      >>> group_standardize(np.array([1.0, 3.0])).round(3).tolist()
      [-1.0, 1.0]
    """
    chex.assert_type(rewards_BR, float)
    centred_BR = rewards_BR - rewards_BR.mean(axis=-1, keepdims=True)
    deviation_B1 = jnp.sqrt(jnp.mean(centred_BR**2, axis=-1, keepdims=True))
    return centred_BR / (deviation_B1 + epsilon)
