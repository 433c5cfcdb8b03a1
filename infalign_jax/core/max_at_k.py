"""The policy gradient of the expected maximum of k rewards: best-of-k optimised directly, without calibration."""

import math

import jax.numpy as jnp
import numpy as np

from infalign_jax.core.advantages import leave_one_out
from infalign_jax.core.checks import check_whole


def max_at_k(rewards_BR, k):
    """The unbiased estimate of `E[max of k draws]` from R >= k draws: the mean of the maximum over all subsets of k.

    With rewards in ascending order it is `sum_j C(j - 1, k - 1) / C(R, k) r_j`.

    Args:
      rewards_BR: float `[..., R]`.
      k: whole number, 1 <= k <= R.

    Returns:
      float `[...]`, reward units.

    Raises:
      ValueError: k is out of range.

    Examples:
      >>> round(float(max_at_k(jnp.array([1.0, 2.0, 3.0]), 2)), 3)  # the pairs have the maxima 2, 3 and 3
      2.667
    """
    R = rewards_BR.shape[-1]
    weights_R = [math.comb(j, _checked(k, R) - 1) / math.comb(R, k) for j in range(R)]
    return jnp.sort(rewards_BR, axis=-1) @ jnp.asarray(weights_R, rewards_BR.dtype)


def max_at_k_advantages(rewards_BR, k):
    """What each rollout adds to the maximum of k: advantages whose policy gradient is that of `E[max of k draws]`.

        A_i = k E_T[max(r_i - max T, 0)],   T a random subset of k - 1 of the other rollouts

    The gradient of `E[max_S]` over a set S of k draws is `sum_{i in S} E[max_S grad log pi(y_i)]`; averaging over all
    subsets of the R rollouts, and taking from each term the maximum without y_i, which is independent of y_i, leaves the
    mean over the rollouts of `A_i grad log pi(y_i)`, without bias (pass@k policy optimisation, arXiv 2505.15201). For
    k = 1 it is the leave-one-out advantage.

    Args:
      rewards_BR: float `[..., R]`; any scale, and the scale is kept.
      k: whole number, 1 <= k <= R. At k = R the estimate stands on the largest rollout alone: choose R a few times k.

    Returns:
      float `[..., R]` >= 0 for k > 1; not centred, and not to be: a mean over the others would depend on y_i. Losses stop
      its gradient.

    Raises:
      ValueError: k is out of range.

    Examples:
      >>> max_at_k_advantages(jnp.array([1.0, 2.0, 3.0]), 2).tolist()
      [0.0, 1.0, 3.0]
    """
    R = rewards_BR.shape[-1]
    if _checked(k, R) == 1:
        return leave_one_out(rewards_BR)
    # The largest of T is the j-th smallest of the R - 1 others (j from 0) with this probability; a rollout gains only over
    # those below it, whose places do not change when it is left out.
    weights_R = jnp.asarray([math.comb(j, k - 2) / math.comb(R - 1, k - 1) for j in range(R)], rewards_BR.dtype)
    ranked_BR, order_BR = jnp.sort(rewards_BR, axis=-1), jnp.argsort(rewards_BR, axis=-1)
    gains_BRR = ranked_BR[..., :, None] - ranked_BR[..., None, :]
    below_RR = np.tril(np.ones((R, R), np.float32), -1)
    sorted_BR = k * jnp.einsum("...ij,ij,j->...i", gains_BRR, below_RR, weights_R)
    return jnp.take_along_axis(sorted_BR, jnp.argsort(order_BR, axis=-1), axis=-1)


def _checked(k, rollouts):
    k = check_whole("k", k)
    if k > rollouts:
        raise ValueError(f"max_at_k({k}) needs at least {k} rollouts per prompt, and there are {rollouts}")
    return k
