"""Reductions over the tokens of a completion that count."""

import chex
import jax.numpy as jnp


def completion_mask(tokens_BRC, ended_BR, lengths_BR):
    """1 for each token that was drawn, its end-of-sequence token included, 0 for the padding behind it.

    The stop decision is an action of the policy, so the end-of-sequence token is part of the likelihood; a completion
    cut at the limit (`ended` false) has none and all its slots count.

    Args:
      tokens_BRC: int32, only its shape is used.
      ended_BR: bool, an end-of-sequence token was drawn.
      lengths_BR: int32, drawn tokens without the end-of-sequence token.

    Returns:
      float32 `[B, R, C]`. No gradient.
    """
    slots_C = jnp.arange(tokens_BRC.shape[-1])
    return (slots_C < (lengths_BR + ended_BR)[..., None]).astype(jnp.float32)


def masked_sum(values_BRC, mask_BRC):
    """Sum of `values` over the tokens with mask 1: `[..., C] -> [...]`.

    Values under mask 0 never reach the result or the gradient, whatever they are (NaN included).
    """
    chex.assert_equal_shape([values_BRC, mask_BRC])
    return jnp.sum(jnp.where(mask_BRC > 0, values_BRC, 0.0), axis=-1)


def masked_mean(values, mask):
    """Mean of `values` over the entries with mask 1, over all axes; NaN (never a plausible number) if there is none."""
    chex.assert_equal_shape([values, mask])
    return jnp.sum(jnp.where(mask > 0, values, 0.0)) / jnp.sum(mask)
