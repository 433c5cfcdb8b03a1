"""Rollouts in which a long response does not hold up the others: `sampler.sample` driven from the host.

Between stretches of tokens the host looks at which rollouts have ended, and goes on with half as many of each prompt (or
a quarter, ...) as soon as these hold all that have not. The random numbers of a rollout are its own, so it makes no
difference to what is drawn. Prompts stay where they are, so on a mesh no device waits for another's rows; only where
each has a single rollout, on one device, are prompts themselves let go of.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.models import cache as caches
from infalign_jax.models.sharding import keep_batch_split
from infalign_jax.sampling import sampler

STRETCH = 16  # tokens between two looks
FEW = 8  # rows that cost hardly more than one


def _split(begun, state, like):
    """The same, laid out by prompt over the mesh that `like` knows: what a loop reads again lies where it is used."""
    keep = functools.partial(keep_batch_split, like=like)
    begun = begun._replace(
        prompt_cache=keep(begun.prompt_cache, axis=-4), uniforms_CBR2=keep(begun.uniforms_CBR2, axis=1)
    )
    return begun, sampler.State(state.step, keep(state.hidden_BRD), keep(state.cache, axis=-5), keep(state.rollouts))


@functools.partial(jax.jit, static_argnums=0)
def _begin(how, variables, *prompts_and_key):
    return _split(*sampler.begin(how, variables, *prompts_and_key), variables["params"]["embed"]["embedding"])


_advance = functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)(sampler.advance)
_grow = functools.partial(jax.jit, static_argnums=(0, 2))(caches.grow)  # apart: `_advance` takes over what it is given
_draw = functools.partial(jax.jit, static_argnums=0)(sampler.draw)


@jax.jit
def _keep(begun, state, prompts_b, rollouts_br):
    """Begun and state of the rollouts at these places of every prompt, or (rollouts_br None) of these prompts."""

    def take(x, axis):
        axis %= x.ndim
        if rollouts_br is None:
            return jnp.take(x, prompts_b, axis=axis, mode="clip")
        one_prompt = functools.partial(jnp.take, axis=axis, mode="clip")
        return jax.vmap(one_prompt, in_axes=(axis, 0), out_axes=axis)(x, rollouts_br)

    of_rollouts = sampler.State(
        state.step, take(state.hidden_BRD, 0), jax.tree.map(lambda x: take(x, -5), state.cache),
        jax.tree.map(lambda x: take(x, 0), state.rollouts),
    )  # fmt: skip
    begun = begun._replace(uniforms_CBR2=take(begun.uniforms_CBR2, 1))
    if rollouts_br is None:
        cache = jax.tree.map(lambda x: take(x, -4), begun.prompt_cache)
        begun = begun._replace(prompt_cache=cache, prompt_lengths_B=take(begun.prompt_lengths_B, 0))
    return _split(begun, of_rollouts, state.hidden_BRD)


@jax.jit
def _cut(rollouts, lengths_BR, ended_BR, pad_id):
    """The rollouts without what lies beyond these lengths."""
    keep_BRC = jnp.arange(rollouts.mask_BRC.shape[-1]) < lengths_BR[..., None]
    zeroed = [jnp.where(keep_BRC, x, 0) for x in rollouts[1:4]]
    return sampler.Rollouts(jnp.where(keep_BRC, rollouts.tokens_BRC, pad_id), *zeroed, ended_BR)


def _look(how, rollouts, looked_BR, stop):
    """(rollouts cut where `stop` says, how many tokens each has or 0 where nobody asks, which have not ended)."""
    if stop is None:
        return rollouts, looked_BR, ~jax.device_get(rollouts.ended_BR)
    tokens_BRC, mask_BRC, ended_BR = jax.device_get((rollouts.tokens_BRC, rollouts.mask_BRC, rollouts.ended_BR))
    lengths_BR = mask_BRC.sum(-1).astype(np.int32)
    rows = zip(tokens_BRC.reshape(-1, how.max_tokens), lengths_BR.flat, looked_BR.flat, strict=True)
    ends = [stop(tokens[:length].tolist(), looked) for tokens, length, looked in rows]
    stopped_BR = np.array([end is not None for end in ends]).reshape(lengths_BR.shape)
    if stopped_BR.any():
        lengths_BR = np.where(stopped_BR, np.array([end or 0 for end in ends]).reshape(lengths_BR.shape), lengths_BR)
        ended_BR = ended_BR | stopped_BR
        rollouts = _cut(rollouts, lengths_BR, ended_BR, how.pad_id)
    return rollouts, lengths_BR, ~ended_BR


def _store(whole, here, rollouts):
    for array, part in zip(whole, jax.device_get(rollouts), strict=True):
        array[here] = part


def halved(size, needed):
    """The smallest of size, size/2, size/4, ... (rounded up) that is at least `needed`."""
    while size > 1 and -(-size // 2) >= needed:
        size = -(-size // 2)
    return size


def survivors(live_BR, one_device=True):
    """(prompts [b], rollouts [b, r]): places that hold all live rollouts, r of every prompt, halved as often as they fit.

    Where every prompt has one rollout, and on one device, some of the prompts instead.
    """
    B, R = live_BR.shape
    if R > 1 or not one_device:
        order_BR = np.argsort(~live_BR, axis=1, kind="stable")
        return np.arange(B), order_BR[:, : halved(R, live_BR.sum(1).max())]
    prompts_b = np.argsort(~live_BR[:, 0], kind="stable")[: halved(B, live_BR.sum())]
    return prompts_b, np.zeros((len(prompts_b), 1), int)


def sample(config, variables, prompt_tokens_BS, prompt_lengths_B, row_ids_B, key, *, stop=None, **options):
    """The `Rollouts` of `sampler.sample`, as host arrays, at a cost that follows their lengths. For one process.

    stop      None, or a function (tokens of a rollout, how many it had when last looked at) -> how many it is to keep, or
              None to go on. A rollout that is stopped has `ended`, and nothing after the tokens it keeps
    options   those of `sampler.sample`

    Compiled once for each number of rollouts and each number of slots attended to, a power of two.
    """
    how = sampler.check(config, prompt_tokens_BS, prompt_lengths_B, **options)
    one_device = not isinstance(prompt_tokens_BS, jax.Array) or len(prompt_tokens_BS.sharding.device_set) == 1
    begun, state = _begin(how, variables, prompt_tokens_BS, prompt_lengths_B, row_ids_B, key)
    whole = jax.tree.map(np.array, jax.device_get(state.rollouts))
    here = np.ix_(*map(np.arange, whole.ended_BR.shape))  # the places of the rollouts at hand in the whole
    looked_BR = np.zeros(whole.ended_BR.shape, np.int32)
    for end in [*range(STRETCH, how.max_tokens, STRETCH), how.max_tokens]:
        slots = min(1 << (end - 1).bit_length(), how.max_tokens)
        state = state._replace(cache=_grow(how.config, state.cache, slots))
        state = _advance(how, slots, variables, begun, state, min(end, how.max_tokens - 1))
        if end == how.max_tokens:  # this token is never read
            state = state._replace(rollouts=_draw(how, variables, begun, state)[1])
        rollouts, looked_BR, live_BR = _look(how, state.rollouts, looked_BR, stop)
        state = state._replace(rollouts=rollouts)
        if end == how.max_tokens or not live_BR.any():
            break
        prompts_b, rollouts_br = survivors(live_BR, one_device)
        if rollouts_br.size < live_BR.size > FEW:
            _store(whole, here, rollouts)
            moved = len(prompts_b) < len(live_BR)
            begun, state = _keep(begun, state, *((prompts_b, None) if moved else (None, rollouts_br)))
            rows = prompts_b[:, None], rollouts_br
            here, looked_BR = tuple(np.broadcast_to(x, live_BR.shape)[rows] for x in here), looked_BR[rows]
    _store(whole, here, state.rollouts)
    return whole
