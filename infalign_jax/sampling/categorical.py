"""Drawing tokens by inverse CDF in two levels: a block of the vocabulary, then a token of the block.

Noise for every logit (the Gumbel trick) costs more than a small model's forward pass; this needs two uniform numbers
a draw, one pass of exp, and sums that give the log-probability as well.
"""

import math

import jax
import jax.numpy as jnp


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

    Each pair is a function of (key, row id, rollout number, slot) and of nothing else.
    """

    fold = jax.random.fold_in

    def pair(slot, row, rollout):
        return jax.random.uniform(fold(fold(fold(key, row), rollout), slot), (2,))

    over_rollouts = jax.vmap(pair, (None, None, 0))
    over_rows = jax.vmap(over_rollouts, (None, 0, None))
    return jax.vmap(over_rows, (0, None, None))(jnp.arange(slots), row_ids_B, jnp.arange(rollouts))
