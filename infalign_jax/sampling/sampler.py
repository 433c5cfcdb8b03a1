"""Rollouts: one prefill a prompt, then a decode loop over all its rollouts that stops when the last has ended."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.models import cache as caches
from infalign_jax.models import sharding, transformer
from infalign_jax.sampling import categorical
from infalign_jax.sampling import logits as filters


class Rollouts(NamedTuple):
    """R sampled completions of each of B prompts.

    tokens_BRC              int32, right-padded with pad_id; EOS included when drawn
    mask_BRC                float32, 1 for every drawn token (EOS too), 0 after it
    log_probs_BRC           float32 nats of each drawn token at temperature 1, all tokens allowed; 0 where mask is 0
    sampling_log_probs_BRC  the same under the distribution it was drawn from (temperature and filters; 0 if greedy)
    ended_BR                bool: EOS was drawn; False means cut at max_tokens
    """

    tokens_BRC: jax.Array
    mask_BRC: jax.Array
    log_probs_BRC: jax.Array
    sampling_log_probs_BRC: jax.Array
    ended_BR: jax.Array


class Begun(NamedTuple):
    """What a decode loop reads and leaves as it is: the prompts' cache and lengths, and the random numbers."""

    prompt_cache: transformer.Cache
    prompt_lengths_B: jax.Array
    uniforms_CBR2: jax.Array


class State(NamedTuple):
    """What a decode loop carries: the next token's number, the states that predict it, and all that was drawn."""

    step: jax.Array
    hidden_BRD: jax.Array
    cache: transformer.Cache
    rollouts: Rollouts


def check_prompts(prompt_tokens_BS, prompt_lengths_B):
    """Refuse on the host what cannot be a left-padded batch of prompts: lengths outside 1..S."""
    if prompt_tokens_BS.ndim != 2 or prompt_lengths_B.shape != prompt_tokens_BS.shape[:1]:
        raise ValueError(
            f"prompt_tokens is {prompt_tokens_BS.shape} and prompt_lengths {prompt_lengths_B.shape}; "
            "they must be [B, S] and [B]"
        )
    if isinstance(prompt_lengths_B, jax.core.Tracer) or not getattr(prompt_lengths_B, "is_fully_addressable", True):
        return
    lengths, slots = np.asarray(prompt_lengths_B), prompt_tokens_BS.shape[1]
    for row in np.flatnonzero((lengths < 1) | (lengths > slots))[:1]:
        raise ValueError(f"prompt_lengths[{row}] is {lengths[row]}; a prompt has from 1 to {slots} tokens here")


def sample(
    config,
    variables,
    prompt_tokens_BS,
    prompt_lengths_B,
    row_ids_B,
    key,
    *,
    rollouts: int,
    max_tokens: int,
    eos_ids,
    pad_id: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    cache_dtype: str | None = None,
) -> Rollouts:
    """Draw `rollouts` completions of up to `max_tokens` tokens for every prompt.

    prompt_tokens_BS  left-padded, prompt_lengths_B each from 1 to S
    row_ids_B         int: who the prompt is. The random numbers of a rollout are a function of (key, row id, rollout
                      number, token slot) alone, so it does not matter which batch or device it is drawn on
    eos_ids           token ids that end a completion; may be empty
    temperature       0 is greedy; top_k, top_p and min_p as in `sampling.logits`, None for off
    cache_dtype       of the completions' keys and values, config.dtype by default

    Compiled once for each shape and set of options. Raises ValueError for an empty prompt or an option out of range.
    """
    how = check(
        config, prompt_tokens_BS, prompt_lengths_B, rollouts=rollouts, max_tokens=max_tokens, eos_ids=eos_ids,
        pad_id=pad_id, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, cache_dtype=cache_dtype,
    )  # fmt: skip
    return _sample(how, variables, prompt_tokens_BS, prompt_lengths_B, row_ids_B, key)


class How(NamedTuple):
    """The static arguments of sampling, checked; what `sample` is compiled for."""

    config: Any
    rollouts: int
    max_tokens: int
    eos_ids: tuple
    pad_id: int
    filters: tuple  # temperature, top_k, top_p, min_p
    cache_dtype: str | None


def check(
    config, prompt_tokens_BS, prompt_lengths_B, *, rollouts, max_tokens, eos_ids, pad_id=0, temperature=1.0,
    top_k=None, top_p=None, min_p=None, cache_dtype=None,
) -> How:  # fmt: skip
    """The arguments of `sample` as a `How`. Raises ValueError naming the first that is out of range."""
    check_prompts(prompt_tokens_BS, prompt_lengths_B)
    filters.check(temperature, top_k, top_p, min_p)
    for name, value in (("rollouts", rollouts), ("max_tokens", max_tokens)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    for name, ids in (("eos_ids", eos_ids), ("pad_id", (pad_id,))):
        if any(not 0 <= i < config.vocab_size for i in ids):
            raise ValueError(f"{name} is {ids}; token ids run from 0 to {config.vocab_size - 1}")
    eos_ids = tuple(int(i) for i in eos_ids)
    options = (float(temperature), top_k, top_p, min_p)
    return How(config.replace(remat="none"), rollouts, max_tokens, eos_ids, int(pad_id), options, cache_dtype)


def block_ends(max_tokens: int) -> list[int]:
    """Where the decode loop is cut into stretches that each attend to a fixed number of slots: at most 8 stretches.

    A stretch of 16 tokens attends to the slots up to its own end, so the slots of later tokens cost nothing; each is
    compiled on its own, hence the limit on their number.
    """
    size = max(16, 16 * -(-max_tokens // (8 * 16)))
    return [min(end, max_tokens) for end in range(size, max_tokens + size, size)]


def _draw(options, logits, uniforms):
    """(tokens, log-probs at temperature 1, log-probs under the sampling distribution) from logits `[..., V]`."""
    temperature, top_k, top_p, min_p = options
    if temperature == 1.0 and top_k is None and top_p is None and min_p is None:
        tokens, log_probs = categorical.draw(logits, uniforms)
        return tokens, log_probs, log_probs
    if temperature == 0.0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        sampling_log_probs = jnp.zeros(tokens.shape, jnp.float32)
    else:
        filtered = filters.filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        tokens, sampling_log_probs = categorical.draw(filtered, uniforms)
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return tokens, picked - jax.nn.logsumexp(logits, axis=-1), sampling_log_probs


def begin(how, variables, prompt_tokens_BS, prompt_lengths_B, row_ids_B, key):
    """Reads the prompts and draws the random numbers -> (`Begun`, the first `State`)."""
    config, num_prompts = how.config, prompt_tokens_BS.shape[0]
    hidden_BD, prompt_cache = transformer.prefill(config, variables, prompt_tokens_BS, prompt_lengths_B)
    uniforms_CBR2 = categorical.uniforms(key, row_ids_B, how.rollouts, how.max_tokens)
    shape = (num_prompts, how.rollouts, how.max_tokens)
    zeros = jnp.zeros(shape, jnp.float32)
    done = Rollouts(jnp.full(shape, how.pad_id, jnp.int32), zeros, zeros, zeros, jnp.zeros(shape[:2], bool))
    hidden_BRD = jnp.broadcast_to(hidden_BD[:, None], (num_prompts, how.rollouts, config.embed_dim))
    room = 0 if caches.apart(config) else how.max_tokens  # what starts empty grows with each stretch
    cache = caches.empty_completion_cache(config, *shape[:2], room, how.cache_dtype)
    return Begun(prompt_cache, prompt_lengths_B, uniforms_CBR2), State(jnp.int32(0), hidden_BRD, cache, done)


def draw(how, variables, begun, state):
    """One more token of every rollout that has not ended -> (tokens `[B, R]`, `Rollouts` with them)."""
    done = state.rollouts

    def write(array_BRC, x_BR):
        return jax.lax.dynamic_update_slice(array_BRC, x_BR[..., None].astype(array_BRC.dtype), (0, 0, state.step))

    mesh = sharding.decode_mesh(variables, state.hidden_BRD.shape[0])
    logits_BRV = transformer.unembed(how.config, variables, state.hidden_BRD)
    logits_BRV = sharding.from_columns_to_rows(logits_BRV, mesh, "vocab")
    tokens_BR, *log_probs = _draw(how.filters, logits_BRV, begun.uniforms_CBR2[state.step])
    live_BR = ~done.ended_BR
    tokens_BR = jnp.where(live_BR, tokens_BR, how.pad_id)
    is_eos_BR = jnp.isin(tokens_BR, jnp.array(how.eos_ids, jnp.int32)) if how.eos_ids else jnp.zeros_like(live_BR)
    columns = (tokens_BR, live_BR, *[jnp.where(live_BR, x, 0.0) for x in log_probs])
    arrays = [write(array, x) for array, x in zip(done[:4], columns, strict=True)]
    return tokens_BR, Rollouts(*arrays, done.ended_BR | (live_BR & is_eos_BR))


def advance(how, slots, variables, begun, state, stop):
    """Draws and reads tokens up to number `stop`, or until every rollout has ended; attends to `slots` of them."""

    def body(state):
        tokens_BR, done = draw(how, variables, begun, state)
        hidden_BRD, cache = transformer.decode(
            how.config, variables, tokens_BR, state.step, begun.prompt_lengths_B, begun.prompt_cache,
            caches.unsqueeze(state.cache, whole), slots=slots,
        )  # fmt: skip
        return State(state.step + 1, hidden_BRD, caches.squeeze(how.config, cache), done)

    def going_on(state):
        return (state.step < stop) & ~state.rollouts.ended_BR.all()

    variables = transformer.by_layer(how.config, variables)
    whole = caches.grow(how.config, state.cache, slots)
    state = jax.lax.while_loop(going_on, body, state._replace(cache=caches.squeeze(how.config, whole)))
    return state._replace(cache=caches.unsqueeze(state.cache, whole))


@functools.partial(jax.jit, static_argnums=0)
def _sample(how, variables, prompt_tokens_BS, prompt_lengths_B, row_ids_B, key):
    begun, state = begin(how, variables, prompt_tokens_BS, prompt_lengths_B, row_ids_B, key)
    mesh = sharding.decode_mesh(variables, prompt_lengths_B.shape[0])
    variables = sharding.decode_variables(variables, how.config.dtype, mesh)
    state = state._replace(hidden_BRD=sharding.keep_rows_whole(state.hidden_BRD, mesh))
    for end in block_ends(how.max_tokens):
        # The last token is drawn but never read, hence the loops stop one short of max_tokens.
        state = advance(how, end, variables, begun, state, min(end, how.max_tokens - 1))
    return draw(how, variables, begun, state._replace(step=jnp.int32(how.max_tokens - 1)))[1]
