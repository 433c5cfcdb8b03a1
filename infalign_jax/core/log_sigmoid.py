"""The centred log-sigmoid of a reward: a transformation that needs a reference level, but no ranks."""

import numpy as np

from infalign_jax.core.checks import check_finite

QUANTILE = 0.85  # of a prompt's reference rewards: the level at which a response counts as good


def log_sigmoid(rewards, reference_rewards_PK):
    """`log sigmoid(r - c_p)`, c_p the 0.85 quantile of the prompt's reference rewards (arXiv 2402.00742).

    Rewards far above the level saturate at 0, so that a policy turns to the responses that are not good yet. It is
    increasing in r, so ranks and calibrated rewards are unchanged, and it keeps each prompt's reward scale.

    Args:
      rewards: float `[P, ...]`, Bradley-Terry units.
      reference_rewards_PK: float `[P, K]`, of the same prompts.

    Returns:
      float32 `[P, ...]`, <= 0.

    Raises:
      ValueError: a reward is not finite.

    Examples:
      >>> import numpy as np
      >>> round(float(log_sigmoid(np.array([[5.0]]), np.full((1, 4), 5.0))[0, 0]), 4)  # log 1/2
      -0.6931
    """
    rewards = check_finite("rewards", rewards)
    level_P = np.quantile(check_finite("reference_rewards", reference_rewards_PK), QUANTILE, axis=1)
    above = rewards - level_P.reshape(-1, *[1] * (rewards.ndim - 1))
    return -np.logaddexp(0.0, -above).astype(np.float32)
