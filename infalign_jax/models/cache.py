"""The keys and values that decoding remembers: of a layer with a sliding window no more than the window.

Layers whose caches have one size lie in one stack, on a leading axis L. If the local layers need fewer slots than the
global ones there are two stacks, (global layers, local layers); else there is one, of all layers in their order.

A prompt ends at the last slot whatever its length, so its window is its last slots. The windowed stack of completions
is a ring: token t lies in slot t mod size, where it replaces the token that has just left the window.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Cache(NamedTuple):
    """Keys (rotated) and values, a tuple of one or two stacks each, in the layouts that `attention` wants.

    Of prompts both `[L, B, G, H, S]`; of completions `[L, B, R, G, H, C]` and `[L, B, R, G, C, H]`.
    """

    keys: tuple
    values: tuple


def _sizes(config, slots, windowed):
    """[(layers, slots)] of the stacks when a global layer keeps `slots` and a local one at most `windowed`."""
    local = sum(config.is_local)
    if windowed is None or windowed >= slots or not local:
        return [(config.num_layers, slots)]
    return [pair for pair in ((config.num_layers - local, slots), (local, windowed)) if pair[0]]


def _empty(config, sizes, leading, dtype):
    dtype, heads = jnp.dtype(dtype or config.dtype), (config.num_kv_heads, config.head_dim)
    return tuple(jnp.zeros((layers, *leading, *heads, slots), dtype) for layers, slots in sizes)


def empty_prompt_cache(config, num_prompts: int, slots: int) -> Cache:
    """Zeros for prompts of `slots` slots. The first completion token is itself one of the `window` that it sees."""
    sizes = _sizes(config, slots, config.window and max(config.window - 1, 1))
    keys = _empty(config, sizes, (num_prompts,), None)
    return Cache(keys, keys)


def empty_completion_cache(config, num_prompts: int, rollouts: int, slots: int, dtype=None) -> Cache:
    """Zeros with room for `slots` tokens a rollout, in `dtype` (config.dtype by default)."""
    keys = _empty(config, _sizes(config, slots, config.window), (num_prompts, rollouts), dtype)
    return Cache(keys, tuple(jnp.swapaxes(x, -1, -2) for x in keys))


def kinds(*caches):
    """The kinds of layer (0 global, 1 local) that these caches tell apart; (0,) if they tell none."""
    return (0, 1) if any(len(cache.keys) == 2 for cache in caches) else (0,)


def _place(config, stacks, layer, kind):
    """Where the layer lies in the stack of its kind, traced."""
    if len(stacks) == 1:
        return layer
    mine = np.array(config.is_local) == kind
    return jnp.asarray(np.maximum(np.cumsum(mine) - 1, 0))[layer]


def write(config, stacks, layer, x, axis: int, slot=0):
    """The stacks with x (of one layer; as many as fit of its last slots on `axis`, from the end) written from `slot` on."""

    def into(stack, kind):
        size = stack.shape[axis]
        part = jax.lax.slice_in_dim(x, max(x.shape[axis] - size, 0), None, axis=axis)[None].astype(stack.dtype)
        start = [_place(config, stacks, layer, kind), *[0] * (stack.ndim - 1)]
        start[axis] = slot % size
        if len(stacks) == 2:  # a layer of the other kind writes back what is there: a branch would copy the stack
            old = jax.lax.dynamic_slice(stack, start, part.shape)
            part = jnp.where(jnp.asarray(config.is_local)[layer] == bool(kind), part, old)
        return jax.lax.dynamic_update_slice(stack, part, start)

    return tuple(into(stack, kind) for kind, stack in enumerate(stacks))


def read(config, stacks, layer, kind: int, axis: int, slots: int, dtype):
    """The first `slots` slots on `axis` (or all there are) of a layer of this kind."""
    stack = stacks[kind if len(stacks) == 2 else 0]
    sizes = [1, *stack.shape[1:]]
    sizes[axis] = min(slots, sizes[axis])
    start = (_place(config, stacks, layer, kind), *[0] * (stack.ndim - 1))
    return jax.lax.dynamic_slice(stack, start, sizes)[0].astype(dtype)


def tokens_held(stacks, kind: int, axis: int, step, slots: int):
    """int `[K]`: the completion slot of the token in each of the first `slots` places, once token `step` is written.

    A place that holds none yet is given its own number, which lies beyond `step`.
    """
    size = stacks[kind if len(stacks) == 2 else 0].shape[axis]
    places = jnp.arange(min(slots, size))
    return places + size * jnp.maximum((step - places) // size, 0)
