"""Reductions over the tokens of a completion that count."""

import chex
import jax.numpy as jnp


def masked_sum(values_BRC, mask_BRC):
    """Sum of `values` over the tokens with mask 1: `[..., C] -> [...]`.

    Values under mask 0 never reach the result or the gradient, whatever they are (NaN included).

    Examples:
      >>> float(masked_sum(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0])))
      3.0
    """
    chex.assert_equal_shape([values_BRC, mask_BRC])
    return jnp.sum(jnp.where(mask_BRC > 0, values_BRC, 0.0), axis=-1)


def masked_mean(values, mask):
    """Mean of `values` over the entries with mask 1, over all axes; NaN (never a plausible number) if there is none.

    Examples:
      >>> float(masked_mean(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0])))
      1.5
    """
    chex.assert_equal_shape([values, mask])
    return jnp.sum(jnp.where(mask > 0, values, 0.0)) / jnp.sum(mask)
