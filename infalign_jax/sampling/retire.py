"""Rollouts in which a long response does not hold up the others: `sampler.sample` driven from the host.

Between stretches of tokens the host looks at which rollouts have ended, and goes on with a smaller rectangle of prompts
and rollouts as soon as one of half the rows (or fewer) holds all that have not. The random numbers of a rollout are its
own, so it makes no difference to what is drawn.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.sampling import sampler

STRETCH = 16  # tokens between two looks
_FEW = 8  # rows that cost hardly more than one

_begin = functools.partial(jax.jit, static_argnums=0)(sampler.begin)
_advance = functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)(sampler.advance)


_draw = functools.partial(jax.jit, static_argnums=0)(sampler.draw)


@jax.jit
def _keep(begun, state, prompts_b, rollouts_br):
    """Begun and state of the prompts and rollouts at these places."""
    rows = prompts_b[:, None], rollouts_br
    begun = begun._replace(
        prompt_cache=jax.tree.map(lambda x: x[:, prompts_b], begun.prompt_cache),
        prompt_lengths_B=begun.prompt_lengths_B[prompts_b],
        uniforms_CBR2=begun.uniforms_CBR2[:, *rows],
    )
    cache = jax.tree.map(lambda x: x[:, *rows], state.cache)
    return begun, sampler.State(
        state.step, state.hidden_BRD[rows], cache, jax.tree.map(lambda x: x[rows], state.rollouts)
    )


@jax.jit
def _cut(rollouts, lengths_BR, ended_BR, pad_id):
    """The rollouts without what lies beyond these lengths."""
    keep_BRC = jnp.arange(rollouts.mask_BRC.shape[-1]) < lengths_BR[..., None]
    zeroed = [jnp.where(keep_BRC, x, 0) for x in rollouts[1:4]]
    return sampler.Rollouts(jnp.where(keep_BRC, rollouts.tokens_BRC, pad_id), *zeroed, ended_BR)


def _look(how, rollouts, looked_BR, stop):
    """(rollouts cut where `stop` says, their lengths)."""
    lengths_BR = np.asarray(rollouts.mask_BRC).sum(-1).astype(np.int32)
    if stop is None:
        return rollouts, lengths_BR
    rows = zip(
        np.asarray(rollouts.tokens_BRC).reshape(-1, how.max_tokens), lengths_BR.flat, looked_BR.flat, strict=True
    )
    ends = [stop(tokens[:length].tolist(), looked) for tokens, length, looked in rows]
    stopped_BR = np.array([end is not None for end in ends]).reshape(lengths_BR.shape)
    if stopped_BR.any():
        lengths_BR = np.where(stopped_BR, np.array([end or 0 for end in ends]).reshape(lengths_BR.shape), lengths_BR)
        rollouts = _cut(rollouts, lengths_BR, rollouts.ended_BR | stopped_BR, how.pad_id)
    return rollouts, lengths_BR


def _store(whole, here, rollouts):
    for array, part in zip(whole, rollouts, strict=True):
        array[here] = part


def _smaller(size, needed):
    """The smallest of size, size/2, size/4, ... (rounded up) that is at least `needed`."""
    while size > 1 and -(-size // 2) >= needed:
        size = -(-size // 2)
    return size


def rectangle(live_BR):
    """(prompts [b], rollouts [b, r]): places of a rectangle that holds all live rollouts, its sides the whole one's halved."""
    prompts_b = np.argsort(-live_BR.sum(1), kind="stable")[: _smaller(len(live_BR), live_BR.any(1).sum())]
    order_bR = np.argsort(~live_BR[prompts_b], axis=1, kind="stable")
    return prompts_b, order_bR[:, : _smaller(live_BR.shape[1], live_BR.sum(1).max())]


def sample(config, variables, prompt_tokens_BS, prompt_lengths_B, row_ids_B, key, *, stop=None, **options):
    """The `Rollouts` of `sampler.sample`, as host arrays, at a cost that follows their lengths; for one device.

    stop      None, or a function (tokens of a rollout, how many it had when last looked at) -> how many it is to keep, or
              None to go on. A rollout that is stopped has `ended`, and nothing after the tokens it keeps
    options   those of `sampler.sample`

    Compiled once for each size of rectangle and each number of slots attended to, a power of two.
    """
    how = sampler.check(config, prompt_tokens_BS, prompt_lengths_B, **options)
    begun, state = _begin(how, variables, prompt_tokens_BS, prompt_lengths_B, row_ids_B, key)
    whole = jax.tree.map(np.array, state.rollouts)
    here = np.ix_(*map(np.arange, whole.ended_BR.shape))  # the places of the rectangle's rollouts in the whole
    looked_BR = np.zeros(whole.ended_BR.shape, np.int32)
    for end in [*range(STRETCH, how.max_tokens, STRETCH), how.max_tokens]:
        slots = min(1 << (end - 1).bit_length(), how.max_tokens)
        state = _advance(how, slots, variables, begun, state, min(end, how.max_tokens - 1))
        if end == how.max_tokens:  # this token is never read
            state = state._replace(rollouts=_draw(how, variables, begun, state)[1])
        rollouts, looked_BR = _look(how, state.rollouts, looked_BR, stop)
        state, live_BR = state._replace(rollouts=rollouts), ~np.asarray(rollouts.ended_BR)
        if end == how.max_tokens or not live_BR.any():
            break
        places = rectangle(live_BR)
        if places[1].size < live_BR.size > _FEW:
            _store(whole, here, rollouts)
            begun, state = _keep(begun, state, *places)
            rows = places[0][:, None], places[1]
            here, looked_BR = tuple(np.broadcast_to(x, live_BR.shape)[rows] for x in here), looked_BR[rows]
    _store(whole, here, state.rollouts)
    return whole
