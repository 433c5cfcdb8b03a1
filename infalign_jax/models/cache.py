"""The keys and values that decoding remembers: of a layer with a sliding window no more than the window.

Layers whose caches have one size lie in one stack, on a leading axis L. If the local layers need fewer slots than the
global ones there are two stacks, (global layers, local layers); else there is one, of all layers in their order.
A model of few layers has no stacks but arrays of each layer, without an axis L: CPUs copy what they read out of a stack.

A prompt ends at the last slot whatever its length, so its window is its last slots. The windowed stack of completions
is a ring: token t lies in slot t mod size, where it replaces the token that has just left the window.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_FEW_LAYERS = 4  # a loop over so many is compiled layer by layer


class Cache(NamedTuple):
    """Keys (rotated) and values, a tuple of stacks or of the layers' arrays each, in the layouts that `attention` wants.

    Of prompts both `[L, B, G, H, S]`; of completions `[L, B, R, G, H, C]` and `[L, B, R, G, C, H]`.
    """

    keys: tuple
    values: tuple


def apart(config) -> bool:
    """Whether each layer has arrays of its own."""
    return config.num_layers <= _FEW_LAYERS


def _sizes(config, slots, windowed):
    """[(leading axis, slots)] of the arrays when a global layer keeps `slots` and a local one at most `windowed`."""
    if apart(config):
        least = slots if windowed is None else min(slots, windowed)
        return [((), least if local else slots) for local in config.is_local]
    local = sum(config.is_local)
    if windowed is None or windowed >= slots or not local:
        return [((config.num_layers,), slots)]
    return [((layers,), size) for layers, size in ((config.num_layers - local, slots), (local, windowed)) if layers]


def _empty(config, sizes, leading, dtype):
    dtype, heads = jnp.dtype(dtype or config.dtype), (config.num_kv_heads, config.head_dim)
    return tuple(jnp.zeros((*stack, *leading, *heads, slots), dtype) for stack, slots in sizes)


def empty_prompt_cache(config, num_prompts: int, slots: int) -> Cache:
    """Zeros for prompts of `slots` slots. The first completion token is itself one of the `window` that it sees."""
    sizes = _sizes(config, slots, config.window and max(config.window - 1, 1))
    keys = _empty(config, sizes, (num_prompts,), None)
    return Cache(keys, keys)


def empty_completion_cache(config, num_prompts: int, rollouts: int, slots: int, dtype=None) -> Cache:
    """Zeros with room for `slots` tokens a rollout, in `dtype` (config.dtype by default)."""
    keys = _empty(config, _sizes(config, slots, config.window), (num_prompts, rollouts), dtype)
    return Cache(keys, tuple(jnp.swapaxes(x, -1, -2) for x in keys))


def grow(config, cache, slots: int):
    """The completion cache with room for `slots` tokens a rollout, where each layer has arrays of its own.

    A loop that reads all it carries needs no copy of the slots in use. Rings that are full stay as they are, and so does a
    cache of stacks, which has all its room from the beginning.
    """
    if not apart(config):
        return cache

    def widen(x, axis, size):
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, max(size - x.shape[axis], 0))
        return jnp.pad(x, padding)

    sizes = [size for _, size in _sizes(config, slots, config.window)]
    keys = tuple(widen(x, x.ndim - 1, size) for x, size in zip(cache.keys, sizes, strict=True))
    return Cache(keys, tuple(widen(x, x.ndim - 2, size) for x, size in zip(cache.values, sizes, strict=True)))


def squeeze(config, cache):
    """The completion cache as a decode loop is to carry it: where each layer has arrays of its own, without axes of length 1.

    XLA leaves such axes out of what it multiplies, and CPUs copy a whole array four times a step, and write to it twice, if
    it is carried in one shape and read in another. One prompt, one rollout a prompt or one key/value head makes such an axis.
    """
    return jax.tree.map(jnp.squeeze, cache) if apart(config) else cache


def unsqueeze(cache, like):
    """What `squeeze` made of a cache in the shapes of `like`, in these shapes again."""
    return jax.tree.map(lambda x, whole: x.reshape(whole.shape), cache, like)


def kinds(config, *caches):
    """The kinds of layer (0 global, 1 local) that these stacks tell apart; (0,) if they tell none."""
    return (0, 1) if not apart(config) and any(len(cache.keys) == 2 for cache in caches) else (0,)


def _of(config, stacks, layer, kind):
    """The array that the layer of this kind is in."""
    return stacks[layer if apart(config) else kind if len(stacks) == 2 else 0]


def _place(config, stacks, layer, kind):
    """Where the layer lies in the stack of its kind, traced; nowhere in an array of its own."""
    if apart(config):
        return []
    if len(stacks) == 1:
        return [layer]
    mine = np.array(config.is_local) == kind
    return [jnp.asarray(np.maximum(np.cumsum(mine) - 1, 0))[layer]]


def write(config, stacks, layer, x, axis: int, slot=0):
    """The stacks with x (of one layer; as many as fit of its last slots on `axis`, from the end) written from `slot` on."""

    def into(stack, kind):
        size, place = stack.shape[axis], _place(config, stacks, layer, kind)
        part = jax.lax.slice_in_dim(x, max(x.shape[axis] - size, 0), None, axis=axis).astype(stack.dtype)
        part = part.reshape(*[1] * len(place), *part.shape)
        start = [*place, *[0] * x.ndim]
        start[axis] = slot % size
        if kind is not None:  # a layer of the other kind writes back what is there: a branch would copy the stack
            old = jax.lax.dynamic_slice(stack, start, part.shape)
            part = jnp.where(jnp.asarray(config.is_local)[layer] == bool(kind), part, old)
        long = [i for i, n in enumerate(stack.shape) if n > 1]  # the shape in which a loop carries it
        part, start = part.reshape([part.shape[i] for i in long]), [start[i] for i in long]
        return jax.lax.dynamic_update_slice(stack.squeeze(), part, start).reshape(stack.shape)

    if apart(config):
        return tuple(into(own, None) if i == layer else own for i, own in enumerate(stacks))
    return tuple(into(stack, kind if len(stacks) == 2 else None) for kind, stack in enumerate(stacks))


def read(config, stacks, layer, kind: int, axis: int, slots: int, dtype):
    """The first `slots` slots on `axis` (or all there are) of a layer of this kind."""
    stack, place = _of(config, stacks, layer, kind), _place(config, stacks, layer, kind)
    sizes = [*[1] * len(place), *stack.shape[len(place) :]]
    sizes[axis] = min(slots, sizes[axis])
    own = jax.lax.dynamic_slice(stack, [*place, *[0] * (stack.ndim - len(place))], sizes)
    return own.reshape(sizes[len(place) :]).astype(dtype)


def tokens_held(config, stacks, layer, kind: int, axis: int, step, slots: int):
    """int `[K]`: the completion slot of the token in each of the first `slots` places, once token `step` is written.

    A place that holds none yet is given its own number, which lies beyond `step`.
    """
    size = _of(config, stacks, layer, kind).shape[axis]
    places = jnp.arange(min(slots, size))
    return places + size * jnp.maximum((step - places) // size, 0)
