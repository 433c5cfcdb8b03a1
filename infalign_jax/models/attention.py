"""Grouped-query attention in which the rollouts of a prompt share the prompt's keys and values.

Slots of a left-padded prompt run 0..S-1 and those of a completion S, S+1, ...: since every prompt ends at slot S-1,
the distance between two tokens is the difference of their slots whatever the prompt's length. M = N / G below.
A softmax over several sets of keys is kept as (weighted values, running max, normaliser) and joined at the end, so
the sets are never concatenated or repeated.

Keys lie slot-minor, `[..., H, S]`, and so do the prompt's values: matrices of a few query rows against many slots
run two to three times faster that way on CPUs. The values of completions, short and many, are faster as `[..., C, H]`.
"""

import jax
import jax.numpy as jnp

_MASKED = -1e30  # finite: a row with no visible key stays free of NaN, and gets weight 0 when joined


def _part(scores, values, mask, soft_cap, equation):
    """Unnormalised attention over one set of keys: (float32 values, max, normaliser)."""
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = jnp.where(mask, scores, _MASKED)
    # The max cancels in the joined softmax, so its gradient is exactly zero.
    top = jax.lax.stop_gradient(scores.max(axis=-1))
    weights = jnp.exp(scores - top[..., None])
    out = jnp.einsum(equation, weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return out, top, weights.sum(axis=-1)


def _join(one, two):
    out_one, top_one, sum_one = one
    out_two, top_two, sum_two = two
    top = jnp.maximum(top_one, top_two)
    scale_one, scale_two = jnp.exp(top_one - top), jnp.exp(top_two - top)
    total = sum_one * scale_one + sum_two * scale_two
    return out_one * (scale_one / total)[..., None] + out_two * (scale_two / total)[..., None]


def _visible(distance, window):
    """Causality and, if there is one, the sliding window, from query slot minus key slot."""
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def valid_slots(lengths_B, num_slots: int):
    """bool `[B, S]`: which slots of left-padded prompts hold real tokens."""
    return jnp.arange(num_slots) >= num_slots - lengths_B[:, None]


def attend_prompt(q_BSGMH, k_BGHS, v_BGHS, valid_BS, window, soft_cap):
    """Causal attention of a prompt to itself -> float32 `[B, S, G, M, H]`.

    `window`: int or int array, or None for none. A padded slot sees itself, to keep its (unused) output finite.
    """
    slots = jnp.arange(q_BSGMH.shape[1])
    distance_QS = slots[:, None] - slots[None, :]
    mask_BQS = _visible(distance_QS, window) & (valid_BS[:, None, :] | (distance_QS == 0))
    scores = jnp.einsum("bqgmh,bghs->bgqms", q_BSGMH, k_BGHS, preferred_element_type=jnp.float32)
    out, _, total = _part(scores, v_BGHS, mask_BQS[:, None, :, None, :], soft_cap, "bgqms,bghs->bgqmh")
    return (out / total[..., None]).transpose(0, 2, 1, 3, 4)


def attend_completion(q_BRCGMH, prompt_kv, own_kv, valid_BS, first_slot, window, soft_cap, held_K=None):
    """Attention of completion tokens to their prompt and to their own past -> float32 `[B, R, C, G, M, H]`.

    prompt_kv   keys and values `[B, G, H, S]`, common to the R rollouts; the prompt's last S slots may be all there is
    own_kv      keys `[B, R, G, H, K]` and values `[B, R, G, K, H]` of completion slots 0..K-1, or of slots held_K
    first_slot  the completion slot of the first query (0 in training, the step in decoding)
    """
    num_queries = q_BRCGMH.shape[2]
    prompt_slots = prompt_kv[0].shape[-1]
    queries = first_slot + jnp.arange(num_queries)
    mask_BCS = _visible(prompt_slots + queries[:, None] - jnp.arange(prompt_slots), window) & valid_BS[:, None, :]
    mask_CK = _visible(queries[:, None] - (jnp.arange(own_kv[0].shape[-1]) if held_K is None else held_K), window)

    scores = jnp.einsum("brcgmh,bghs->bgrcms", q_BRCGMH, prompt_kv[0], preferred_element_type=jnp.float32)
    prompt = _part(scores, prompt_kv[1], mask_BCS[:, None, None, :, None, :], soft_cap, "bgrcms,bghs->bgrcmh")
    prompt = [jnp.moveaxis(x, 1, 2) for x in prompt]  # to the layout of the other part, b r g c m
    scores = jnp.einsum("brcgmh,brghk->brgcmk", q_BRCGMH, own_kv[0], preferred_element_type=jnp.float32)
    own = _part(scores, own_kv[1], mask_CK[:, None, :], soft_cap, "brgcmk,brgkh->brgcmh")
    return jnp.moveaxis(_join(prompt, own), 2, 3)
