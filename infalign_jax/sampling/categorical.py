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


def rollout_keys(key, row_ids_B, rollouts: int):
    """A key for every rollout, `[B, R]`, that depends on (key, row id, rollout number) and nothing else."""
    rows = jax.vmap(lambda row: jax.random.fold_in(key, row))(row_ids_B)
    return jax.vmap(lambda row: jax.vmap(lambda r: jax.random.fold_in(row, r))(jnp.arange(rollouts)))(rows)


def uniforms(keys_BR, step):
    """Two uniforms in [0, 1) for each rollout at one step, `[B, R, 2]`."""
    return jax.vmap(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, step), (2,))))(keys_BR)
