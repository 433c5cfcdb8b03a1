"""Amortised calibration: predict the quantiles of a prompt's reference rewards, then calibrate without rollouts.

Quantile regression (Koenker and Bassett, 1978) learns the quantile function of the reference reward from the prompts of
a calibration table; a new prompt is then calibrated by inverting the predicted quantile function. Only the mathematics
is here; what maps a prompt to `raw_BM` is the caller's network.
"""

import jax
import jax.numpy as jnp
import numpy as np


def levels(count):
    """The quantile levels τ_i = (i − ½)/count, float32 numpy [count]. Raises ValueError for count < 2."""
    if count < 2:
        raise ValueError(f"quantile regression needs at least 2 levels, got {count}")
    return ((np.arange(count) + 0.5) / count).astype(np.float32)


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


def calibrate_by_quantiles(rewards_BR, quantiles_BM, levels_M):
    """u of each reward by inverting a predicted quantile function: the counterpart of `calibration.calibrate`.

    Linear between the predicted quantiles; beyond the last, 1 − u = (1 − τ_M) exp(−(r − q_M)/s) with the scale that
    passes through the last two, s = (q_M − q_{M−1}) / log((1 − τ_{M−1})/(1 − τ_M)); mirrored below the first.
    rewards_BR [..., R], quantiles_BM [..., M] increasing, levels_M [M] increasing inside (0, 1). Returns float32
    [..., R] in [0, 1], non-decreasing in the reward; the gradient is zero, as for `calibrate`. A row whose quantiles
    decrease or are not finite, and a reward that is not finite, give NaN. Raises ValueError for mismatched shapes.

    Examples:
      >>> u = calibrate_by_quantiles(jnp.array([[1.5]]), jnp.array([[1.0, 2.0, 3.0]]), levels(3))
      >>> round(float(u[0, 0]), 4)
      0.3333
    """
    shapes = jnp.shape(rewards_BR), jnp.shape(quantiles_BM), jnp.shape(levels_M)
    if len(shapes[2]) != 1 or shapes[2][0] < 2 or shapes[1][-1:] != shapes[2] or not shapes[0]:
        raise ValueError(f"expected rewards [..., R], quantiles [..., M] and levels [M], M >= 2; got shapes {shapes}")
    rewards_BR, quantiles_BM, levels_M = (
        jax.lax.stop_gradient(jnp.asarray(x, jnp.float32)) for x in (rewards_BR, quantiles_BM, levels_M)
    )

    def one_row(rewards_R, quantiles_M):
        inside_R = jnp.interp(rewards_R, quantiles_M, levels_M)
        above_R = 1 - _tail(rewards_R, quantiles_M[-1], quantiles_M[-2], 1 - levels_M[-1], 1 - levels_M[-2])
        below_R = _tail(-rewards_R, -quantiles_M[0], -quantiles_M[1], levels_M[0], levels_M[1])
        u_R = jnp.where(rewards_R > quantiles_M[-1], above_R, jnp.where(rewards_R < quantiles_M[0], below_R, inside_R))
        valid = jnp.all(jnp.isfinite(quantiles_M)) & jnp.all(quantiles_M[1:] >= quantiles_M[:-1])
        return jnp.where(valid & jnp.isfinite(rewards_R), u_R, jnp.nan)

    return jnp.vectorize(one_row, signature="(r),(m)->(r)")(rewards_BR, quantiles_BM)


def _tail(rewards_R, last, before, mass, mass_before):
    """The mass beyond each reward of the exponential tail with `mass` beyond `last`, `mass_before` beyond `before`."""
    scale = (last - before) / jnp.log(mass_before / mass)
    excess_R = jnp.maximum(rewards_R - last, 0.0)
    return jnp.where(scale > 0, mass * jnp.exp(-excess_R / jnp.where(scale > 0, scale, 1.0)), 0.0)
