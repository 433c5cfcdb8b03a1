"""Calibration: a raw reward becomes its quantile `u` among the reference policy's own rewards for the same prompt.

InfAlign (Balashankar et al., arXiv 2412.19792) trains on a function of

    C(x, y) = P(r(x, z) < r(x, y)) + ½ P(r(x, z) = r(x, y)),        z drawn from the reference policy,

which is Uniform[0, 1] under the reference policy for every prompt, whatever the scale of the reward. Here C is
estimated from K rewards of reference rollouts, the row of the prompt in a calibration table.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.core.tails import tail_quantiles


def calibrate(rewards, reference_rewards, *, is_sorted=False, tails="flat", reference_mask=None):
    """The calibrated reward Ĉ = (#{k: r_k < r} + ½ #{k: r_k = r}) / K of each reward (CTRL in arXiv 2412.19792).

    Args:
      rewards: `[..., R]`, raw rewards of responses to one prompt, any real scale, compared as float32.
      reference_rewards: `[..., K]`, rewards of the reference policy's rollouts for that prompt, K >= 1; leading axes
        broadcast against those of `rewards`.
      is_sorted: the rows of `reference_rewards` ascend; then a reward costs O(log K), without a sort.
      tails: "flat": the rank above. "exponential": linear interpolation between the reference rewards and an
        exponential tail beyond the extremes (`tails.tail_quantiles`), for small K or large N.
      reference_mask: `[..., K]`, 1 where the rollout counts, 0 where it failed or is padding: its reward is then never
        looked at and may be anything. In sorted rows the masked entries come last. Default: all count.

    Returns:
      u `[..., R]`, float32 in [0, 1]: multiples of ½/K for flat tails. They are piecewise constant in both arguments, so
      the gradient is zero; it is defined as zero for exponential tails too, as calibration is a measurement and not a
      path for gradients. Works under jit, vmap and grad.

    Raises:
      ValueError: unknown tails, an empty table (or row), non-finite values, and rows that do not ascend though
        `is_sorted`. Traced values cannot be refused: the affected rewards (all of a row with a bad table) come out as NaN.

    Examples:
      >>> calibrate([1.5, 2.0], [1.0, 2.0, 3.0, 4.0]).tolist()  # a tie counts half
      [0.25, 0.375]
    """
    if tails not in QUANTILES:
        raise ValueError(f"tails must be one of {', '.join(QUANTILES)}, got {tails!r}")
    mask = jnp.ones(jnp.shape(reference_rewards), bool) if reference_mask is None else reference_mask
    check_inputs(rewards, reference_rewards, mask, is_sorted)
    rewards, table = (jax.lax.stop_gradient(jnp.asarray(x, jnp.float32)) for x in (rewards, reference_rewards))
    mask = jnp.broadcast_to(jnp.asarray(mask, bool), table.shape)
    return _calibrate(rewards, table, mask, is_sorted, tails)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _calibrate(rewards, table, mask, is_sorted, tails):
    def calibrate_row(rewards_R, table_K, mask_K):
        table_K, count, valid = prepare_row(table_K, mask_K, is_sorted)
        u_R = QUANTILES[tails](rewards_R, table_K, count)
        return jnp.where(valid & jnp.isfinite(rewards_R), u_R, jnp.nan)

    return jnp.vectorize(calibrate_row, signature="(r),(k),(k)->(r)")(rewards, table, mask)


def rank_quantiles(rewards_R, table_K, count):
    """(#{k: r_k < r} + ½ #{k: r_k = r}) / count for ascending `table_K` (padding: +inf); O(log K) each."""
    below_R = jnp.searchsorted(table_K, rewards_R, side="left", method="scan")
    up_to_R = jnp.searchsorted(table_K, rewards_R, side="right", method="scan")
    return 0.5 * (below_R + up_to_R).astype(jnp.float32) / count


QUANTILES = {"flat": rank_quantiles, "exponential": tail_quantiles}


def prepare_row(table_K, mask_K, is_sorted):
    """The row in ascending order with +inf where masked, how many rewards count, and whether the row can be trusted."""
    valid = jnp.all(jnp.isfinite(table_K) | ~mask_K) & jnp.any(mask_K)
    table_K = jnp.where(mask_K, table_K, jnp.inf)
    if is_sorted:
        valid &= jnp.all(table_K[1:] >= table_K[:-1])
    else:
        table_K = jnp.sort(table_K)
    return table_K, jnp.sum(mask_K).astype(jnp.float32), valid


def check_inputs(rewards, reference_rewards, mask, is_sorted):
    """Refuses what can be recognised before tracing: shapes always, values where they are concrete."""
    _check_shapes(jnp.shape(rewards), jnp.shape(reference_rewards), jnp.shape(mask))
    if not isinstance(rewards, jax.core.Tracer):
        _check_finite("rewards", rewards, np.ones((), bool))
    if isinstance(reference_rewards, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        return
    table = np.asarray(reference_rewards, np.float32)
    mask = np.broadcast_to(np.asarray(mask, bool), table.shape)
    _check_finite("reference_rewards", reference_rewards, mask)
    empty = np.argwhere(~mask.any(-1))
    if len(empty):
        raise ValueError(f"reference_mask leaves no rollout in row {_index(empty[0])}; calibration needs at least one")
    table = np.where(mask, table, np.inf)
    descents = np.argwhere(table[..., 1:] < table[..., :-1]) if is_sorted else ()
    if len(descents):
        raise ValueError(
            f"reference_rewards is said to be sorted but does not ascend after entry {_index(descents[0])}; "
            "sort each row (masked entries last) or leave is_sorted=False"
        )


def _check_shapes(rewards, table, mask):
    if not rewards or not table:
        raise ValueError(f"rewards and reference_rewards need at least one axis, got shapes {rewards} and {table}")
    if table[-1] == 0:
        raise ValueError(
            f"reference_rewards has shape {table}: calibration needs at least one reference rollout (K >= 1)"
        )
    try:
        np.broadcast_shapes(rewards[:-1], table[:-1])
    except ValueError:
        raise ValueError(
            f"the leading axes of rewards {rewards} and reference_rewards {table} do not match; "
            "expected [..., R] and [..., K]"
        ) from None
    try:
        fits = np.broadcast_shapes(mask, table) == table
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"reference_mask has shape {mask}, which does not fit reference_rewards of shape {table}")


def _check_finite(name, values, mask):
    with np.errstate(over="ignore"):
        single = np.asarray(values, np.float32)
    bad = np.argwhere(~np.isfinite(single) & mask)
    if len(bad):
        value = np.asarray(values)[tuple(bad[0])]
        raise ValueError(f"{name} has {value} at index {_index(bad[0])}; every reward must be finite in float32")


def _index(position):
    return "[" + ", ".join(str(int(i)) for i in position) + "]"
