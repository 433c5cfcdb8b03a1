"""Token log-probabilities, exact KL and entropy from hidden states, without ever forming logits for all tokens.

The output head is applied to a few token slots at a time, and again in the backward pass, so that memory is that of
one chunk of logits and not of [B, T, V]. On a mesh every device does this with its own prompts, and the head is
gathered once, not once a chunk.
"""

import jax
import jax.numpy as jnp

from infalign_jax.models import transformer
from infalign_jax.sampling.split_head import on_own_prompts, ways

_CHUNK_BYTES = 32 << 20  # of float32 logits of one model, when the caller does not choose
_TRAINED_CHUNK_BYTES = 128 << 20  # the same under a gradient: the head's, [V, D], is read and written once a chunk
_SPLIT_CHUNK_BYTES = 512 << 20  # the same on each of several devices: accelerators, whose matmuls want many rows


def chunk_slots(leading: int, num_slots: int, vocab_size: int, budget: int = _CHUNK_BYTES) -> int:
    """How many token slots to take at a time so that `leading`·slots·V logits stay near `budget` bytes; from 1 to T."""
    return max(1, min(num_slots, budget // (4 * leading * vocab_size)))


def _over_chunks(function, arrays, chunk, remat):
    """`function` of slices of `arrays` along their slot axis (given with each), outputs `[..., T]` joined again."""
    (first, first_axis), *_ = arrays
    num_slots = first.shape[first_axis]
    num_chunks = -(-num_slots // chunk)
    if num_chunks == 1:
        return function(*[array for array, _ in arrays])

    def split(array, axis):
        array = jnp.moveaxis(array, axis, 0)
        array = jnp.pad(array, [(0, num_chunks * chunk - num_slots)] + [(0, 0)] * (array.ndim - 1))
        return array.reshape(num_chunks, chunk, *array.shape[1:])

    def body(_, parts):
        parts = [jnp.moveaxis(part, 0, axis) for part, (_, axis) in zip(parts, arrays, strict=True)]
        outputs = function(*parts)
        return None, jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), outputs)

    if remat:
        body = jax.checkpoint(body, prevent_cse=False)
    _, outputs = jax.lax.scan(body, None, [split(*pair) for pair in arrays])
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(num_chunks * chunk, *x.shape[2:])[:num_slots], 0, -1), outputs)


def _chunk(config, variables, targets, chunk, trained):
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be a positive number of token slots")
    num_slots = targets.shape[-1]
    if chunk is not None:
        return min(chunk, num_slots)
    devices = ways(variables, targets.shape[0])
    alone = _TRAINED_CHUNK_BYTES if trained else _CHUNK_BYTES
    budget = alone if devices == 1 else _SPLIT_CHUNK_BYTES
    return chunk_slots(targets.size // num_slots // devices, num_slots, config.vocab_size, budget)


def _pick(x, targets):
    """`x[..., targets]` along the last axis; as a masked sum, whose gradient is no scatter into an array of zeros."""
    return jnp.sum(jnp.where(jnp.arange(x.shape[-1]) == targets[..., None], x, 0.0), axis=-1)


def _below_largest(logits):
    return logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))


def token_log_probs(config, variables, hidden, targets, *, chunk=None, trained=False):
    """log π(target | context), float32 `[..., T]` in nats, of `targets [..., T]` given the `hidden [..., T, D]` before them.

    At temperature 1 over the full vocabulary, soft cap included. Differentiable in `variables` and `hidden`.
    chunk: token slots (of the T) taken at a time; by default as many as keep one chunk's logits near 32 MiB, or 128 MiB
    where `trained` says that a gradient will be taken (512 MiB on each device of a mesh).
    """
    chunk = _chunk(config, variables, targets, chunk, trained)

    def log_probs(variables, hidden, targets):
        logits = transformer.unembed(config, variables, hidden)
        return _pick(logits, targets) - jax.nn.logsumexp(logits, axis=-1)

    def own(heads, hidden, targets):
        arrays = [(hidden, hidden.ndim - 2), (targets, targets.ndim - 1)]
        return _over_chunks(lambda *parts: log_probs(*heads, *parts), arrays, chunk, remat=True)

    return on_own_prompts(config, own, [variables], [hidden, targets])


def completion_log_probs(config, variables, prompt_tokens_BS, prompt_lengths_B, tokens_BRC, *, trained=False):
    """`token_log_probs` of completions, `[B, R, C]`: each token given its prompt (left-padded) and those before it."""
    hidden_BRCD = transformer.forward_shared(config, variables, prompt_tokens_BS, prompt_lengths_B, tokens_BRC)
    return token_log_probs(config, variables, hidden_BRCD, tokens_BRC, trained=trained)


def token_statistics(
    config, policy_variables, reference_variables, hidden, reference_hidden, targets, *, chunk=None, trained=False
):
    """(log_probs, reference_log_probs, kl, entropy), each float32 `[..., T]` in nats per token.

    kl_t = Σ_v π(v) (log π(v) − log π_ref(v)) and entropy_t = −Σ_v π(v) log π(v) are exact sums over the vocabulary at
    the contexts given, not estimates from the sampled token. `hidden` and `reference_hidden` are `[..., T, D]`.
    Differentiable in all but the integer targets; wrap the reference in stop_gradient where it must not learn. `chunk`
    and `trained` as in `token_log_probs`.
    """
    chunk = _chunk(config, policy_variables, targets, chunk, trained)

    def statistics(policy, reference, hidden, reference_hidden, targets):
        # All from sums over logits less their largest: arrays of log-probs would be written and read once more.
        x = _below_largest(transformer.unembed(config, policy, hidden))
        y = _below_largest(transformer.unembed(config, reference, reference_hidden))
        weights = jnp.exp(x)
        total = weights.sum(-1)
        log_total, reference_log_total = jnp.log(total), jnp.log(jnp.exp(y).sum(-1))
        mean_log_p = jnp.sum(weights * x, -1) / total - log_total
        mean_log_q = jnp.sum(weights * y, -1) / total - reference_log_total
        log_probs = _pick(x, targets) - log_total, _pick(y, targets) - reference_log_total
        return *log_probs, mean_log_p - mean_log_q, -mean_log_p

    def own(heads, hidden, reference_hidden, targets):
        arrays = [(hidden, hidden.ndim - 2), (reference_hidden, hidden.ndim - 2), (targets, targets.ndim - 1)]
        return _over_chunks(lambda *parts: statistics(*heads, *parts), arrays, chunk, remat=True)

    return on_own_prompts(config, own, [policy_variables, reference_variables], [hidden, reference_hidden, targets])


def completion_statistics(
    config, policy_variables, reference_variables, prompt_tokens_BS, prompt_lengths_B, tokens_BRC, *, trained=False
):
    """`token_statistics` of completions, each `[B, R, C]`; no gradient enters the reference's hidden states."""
    prompt = prompt_tokens_BS, prompt_lengths_B, tokens_BRC
    hidden_BRCD = transformer.forward_shared(config, policy_variables, *prompt)
    reference_BRCD = jax.lax.stop_gradient(transformer.forward_shared(config, reference_variables, *prompt))
    return token_statistics(
        config, policy_variables, reference_variables, hidden_BRCD, reference_BRCD, tokens_BRC, trained=trained
    )
