"""Gradients of a large batch from small parts of it, one after the other."""

import jax
import jax.numpy as jnp

from infalign_jax.models.sharding import keep_batch_split


def accumulate(gradient, variables, batch, parts):
    """Mean of `gradient(variables, part)` over equal parts of a batch: exact for losses that are means over prompts.

    Args:
      gradient: `(variables, batch) -> (gradients, metrics)`; gradients and metrics without axes are means over the batch's
        leading axis, metrics with axes have it.
      variables: tree of arrays.
      batch: tree of arrays `[B, ...]`, every device's prompts next to each other; each device takes a share of every part.
      parts: divides B.

    Returns:
      (gradients, metrics) of the whole batch. Sums of several parts are kept in float32.
    """
    if parts == 1:
        return gradient(variables, batch)
    like = jax.tree.leaves(variables)[0]

    def split(x):
        x = jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
        return keep_batch_split(x, like, axis=1)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    def add(total, part):
        gradients, metrics = gradient(variables, part)
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype) / parts, total, gradients), metrics

    zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, jnp.promote_types(v.dtype, jnp.float32)), variables)
    total, metrics = jax.lax.scan(add, zeros, jax.tree.map(split, batch))
    gradients = jax.tree.map(lambda t, v: t.astype(v.dtype), total, variables)
    return gradients, jax.tree.map(lambda x: x.mean(0) if x.ndim == 1 else join(x), metrics)
