"""Drawing tokens by inverse CDF in two levels: a block of the vocabulary, then a token of the block.

Noise for every logit (the Gumbel trick) costs more than a small model's forward pass; this needs two uniform numbers
a draw, one pass of exp, and sums that give the log-probability as well.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32


def _pick(weights, uniform):
    """First index at which the running sum of `weights [..., W]` exceeds uniform·total; never one of weight zero."""
    running = jnp.cumsum(weights, axis=-1)
    positive = weights > 0
    hit = (running > uniform[..., None] * running[..., -1:]) & positive
    # Rounding may leave no hit at uniform -> 1; then the last token of positive weight is the one.
    last = weights.shape[-1] - 1 - jnp.argmax(positive[..., ::-1], axis=-1)
    return jnp.where(hit.any(axis=-1), jnp.argmax(hit, axis=-1), last)


def draw(logits, uniforms):
    """Exact draws from softmax(logits) -> (int32 tokens `[...]`, their float32 log-probabilities `[...]`).

    logits `[..., V]` float32, −inf for what must never be drawn; uniforms `[..., 2]` in [0, 1). Equal uniforms give
    equal tokens whatever else is in the batch.
    """
    vocab_size = logits.shape[-1]
    width = max(1, 1 << round(math.log2(vocab_size) / 2))
    blocks = -(-vocab_size // width)
    top = logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    padding = [(0, 0)] * (weights.ndim - 1) + [(0, blocks * width - vocab_size)]
    weights = jnp.pad(weights, padding).reshape(*weights.shape[:-1], blocks, width)
    block_sums = weights.sum(axis=-1)
    block = _pick(block_sums, uniforms[..., 0])
    inside = jnp.take_along_axis(weights, block[..., None, None], axis=-2)[..., 0, :]
    tokens = (block * width + _pick(inside, uniforms[..., 1])).astype(jnp.int32)
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return tokens, picked - top[..., 0] - jnp.log(block_sums.sum(axis=-1))


def uniforms(key, row_ids_B, rollouts: int, slots: int):
    """Two uniforms in [0, 1) for every token to be drawn, `[C, B, R, 2]`.

    Each pair is a function of (key, row id, rollout number, slot) and of nothing else: the row's key folded once more
    with the two numbers, as one block of the cipher.
    """
    slot_CR, rollout_CR = jnp.meshgrid(jnp.arange(slots), jnp.arange(rollouts), indexing="ij")
    numbers = jnp.concatenate([rollout_CR.ravel(), slot_CR.ravel()]).astype(jnp.uint32)

    def of_row(row):
        bits = threefry_2x32(jax.random.key_data(jax.random.fold_in(key, row)), numbers)
        return (bits >> 8).astype(jnp.float32).reshape(2, slots, rollouts) * 2.0**-24

    return jnp.moveaxis(jax.vmap(of_row)(row_ids_B), (0, 1), (1, 3))
