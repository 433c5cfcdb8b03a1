"""From rewards to scores: what a method of stage `align` takes for a reward, its calibration and its transform."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.core import optimal, transforms
from infalign_jax.core.advantages import group_standardize
from infalign_jax.core.calibration import calibrate
from infalign_jax.core.kl_control import starting_beta
from infalign_jax.core.log_sigmoid import log_sigmoid

UNCALIBRATED = ("raw", "raw_group_std", "log_sigmoid")


class ScoreRule(NamedTuple):
    """What turns the rewards of a method into scores. All of it is data, so that one compiled step serves every method.

    phi_M: float32, the transform at the 2K + 1 values a rank among K can take, equally spaced in [0, 1]; between them,
      where fitted tails put u, it is interpolated.
    raw: 1.0 scores with `reward / reward_scale` instead of `phi(u)`.
    reward_scale: reward units; the standard deviation of all reference rewards.
    group_std: 1.0 divides each prompt's centred scores by their standard deviation (GRPO).
    loss_scale: multiplies the loss; 1 / max(beta, 1) keeps a large starting beta from blowing up the gradient.
    """

    phi_M: jax.Array
    raw: jax.Array
    reward_scale: jax.Array
    group_std: jax.Array
    loss_scale: jax.Array


def score_rewards(rewards_BR, reference_rewards_BK, rule, tails):
    """Rewards calibrated and, by the rule, transformed -> (scores_BR, u_BR), inside jit.

    Args:
      rewards_BR: float32, raw.
      reference_rewards_BK: float32, each row ascending.
      rule: `ScoreRule`.
      tails: as in `calibrate`, static.
    """
    u_BR = calibrate(rewards_BR, reference_rewards_BK, is_sorted=True, tails=tails)
    phi_BR = jnp.interp(u_BR, jnp.linspace(0.0, 1.0, rule.phi_M.shape[0]), rule.phi_M)
    scores_BR = jnp.where(rule.raw > 0, rewards_BR / rule.reward_scale, phi_BR)
    return jnp.where(rule.group_std > 0, group_standardize(scores_BR), scores_BR), u_BR


def taken(method, rewards_BR, table_BK):
    """What a method takes for the rewards of some prompts: increasing functions, that leave calibrated rewards alone."""
    return log_sigmoid(rewards_BR, table_BK) if method == "log_sigmoid" else rewards_BR


def score_rule(method, table_PK, target_kl):
    """The `ScoreRule` of a method, and the beta it starts from.

    Calibrated methods start from the closed form of their transform for a table of K rollouts; uncalibrated ones from
    the beta that spends the target KL on the table's own rewards (`starting_beta`).

    Raises:
      ValueError: unknown method.
    """
    K = table_PK.shape[1]
    if method in UNCALIBRATED:
        table_PK = taken(method, table_PK, table_PK)
        scores_PK = table_PK / table_PK.std()
        if method == "raw_group_std":
            scores_PK = np.asarray(group_standardize(jnp.asarray(scores_PK)))
        phi_M, beta = np.zeros(2 * K + 1), starting_beta(scores_PK, target_kl)
    else:
        phi, beta = optimal.resolve(method, kl=target_kl, calibration_samples=K)
        phi_M = transforms.tabulate(phi, K)
    raw = method in UNCALIBRATED
    values = (phi_M, raw, table_PK.std() if raw else 1.0, method == "raw_group_std", 1.0 / max(beta, 1.0))
    return ScoreRule(*(np.asarray(value, np.float32) for value in values)), beta
