"""Amortised calibration: predict the quantiles of a prompt's reference rewards, then calibrate without rollouts.

Quantile regression (Koenker and Bassett, 1978) learns the quantile function of the reference reward from the prompts of
a calibration table; the quantiles that it predicts for a new prompt are a row for `calibration.calibrate`. Only the
mathematics is here; what maps a prompt to `raw_BM` is the caller's network.
"""

import jax
import jax.numpy as jnp


def monotone_quantiles(raw_BM, location=0.0, scale=1.0):
    """Unconstrained outputs of a network to increasing quantiles.

    The middle entry is the value at the middle level; every other entry is, through softplus, the positive step to its
    neighbour nearer the middle. `location` and `scale` put a network whose outputs are of order 1 in units of reward:
    pass mean and standard deviation of all reference rewards. Returns [..., M], strictly increasing up to rounding;
    differentiable everywhere, no gradient vanishes for crossing quantiles, as there are none.
    """
    middle = raw_BM.shape[-1] // 2
    steps = jax.nn.softplus(raw_BM)
    up = jnp.cumsum(steps[..., middle + 1 :], -1)
    down = jnp.flip(jnp.cumsum(jnp.flip(steps[..., :middle], -1), -1), -1)
    centre = raw_BM[..., middle : middle + 1]
    return location + scale * jnp.concatenate([centre - down, centre, centre + up], -1)


def pinball_loss(quantiles_BM, rewards_BK, levels_M, mask_BK=None):
    """Mean over levels and rollouts of ρ_τ(r − q_τ), ρ_τ(d) = max(τ d, (τ − 1) d): least where q_τ is the τ-quantile.

    quantiles_BM [..., M], rewards_BK [..., K]; mask_BK is 0 for rollouts that do not count, whatever stands there. Each
    rollout weighs the same, so a prompt with more rollouts weighs more. Returns a float32 scalar in units of reward;
    with equally spaced levels twice its value approximates the continuous ranked probability score. The gradient with
    respect to q_τ is (the fraction of rewards below q_τ) − τ, over M. No rollout at all gives NaN.
    """
    mask_BK = jnp.ones_like(rewards_BK) if mask_BK is None else mask_BK
    rewards_BK = jnp.where(mask_BK > 0, rewards_BK, 0.0)
    miss_BKM = rewards_BK[..., :, None] - quantiles_BM[..., None, :]
    loss_BK = jnp.maximum(levels_M * miss_BKM, (levels_M - 1) * miss_BKM).mean(-1)
    weight_BK = (mask_BK > 0).astype(loss_BK.dtype)
    return jnp.sum(loss_BK * weight_BK) / jnp.sum(weight_BK)
