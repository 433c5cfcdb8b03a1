"""Token log-probabilities, exact KL and entropy from hidden states, without ever forming logits for all tokens.

The output head is applied to a few token slots at a time, and again in the backward pass, so that memory is that of
one chunk of logits and not of [B, T, V]. On a mesh every device does this with its own prompts, and the head is
gathered once, not once a chunk.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from infalign_jax.models import transformer
from infalign_jax.sampling.split_head import on_own_prompts, ways

_CHUNK_BYTES = 32 << 20  # of float32 logits of one model, when the caller does not choose
_SPLIT_CHUNK_BYTES = 512 << 20  # the same on each of several devices: accelerators, whose matmuls want many rows


def chunk_slots(leading: int, num_slots: int, vocab_size: int, budget: int = _CHUNK_BYTES) -> int:
    """How many token slots to take at a time so that `leading`·slots·V logits stay near `budget` bytes; from 1 to T."""
    return max(1, min(num_slots, budget // (4 * leading * vocab_size)))


def _chunk(config, variables, targets, chunk):
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be a positive number of token slots")
    num_slots = targets.shape[-1]
    if chunk is not None:
        return min(chunk, num_slots)
    devices = ways(variables, targets.shape[0])
    budget = _CHUNK_BYTES if devices == 1 else _SPLIT_CHUNK_BYTES
    return chunk_slots(targets.size // num_slots // devices, num_slots, config.vocab_size, budget)


def token_log_probs(config, variables, hidden, targets, *, chunk=None):
    """log π(target | context), float32 `[..., T]` in nats, of `targets [..., T]` given the `hidden [..., T, D]` before them.

    At temperature 1 over the full vocabulary, soft cap included. Differentiable in `variables` and `hidden`.
    chunk: token slots (of the T) taken at a time; by default as many as keep one chunk's logits near 32 MiB (512 MiB on
    each device of a mesh).
    """
    chunk = _chunk(config, variables, targets, chunk)

    def own(heads, hidden, targets):
        return _statistics(config, chunk, heads, [hidden], targets)[0]

    return on_own_prompts(config, own, [variables], [hidden, targets])


def token_statistics(config, policy_variables, reference_variables, hidden, reference_hidden, targets, *, chunk=None):
    """(log_probs, reference_log_probs, kl, entropy), each float32 `[..., T]` in nats per token.

    kl_t = Σ_v π(v) (log π(v) − log π_ref(v)) and entropy_t = −Σ_v π(v) log π(v) are exact sums over the vocabulary at
    the contexts given, not estimates from the sampled token. `hidden` and `reference_hidden` are `[..., T, D]`.
    Differentiable in all but the integer targets; wrap the reference in stop_gradient where it must not learn.
    """
    chunk = _chunk(config, policy_variables, targets, chunk)

    def own(heads, hidden, reference_hidden, targets):
        return _statistics(config, chunk, heads, [hidden, reference_hidden], targets)

    return on_own_prompts(config, own, [policy_variables, reference_variables], [hidden, reference_hidden, targets])


def _statistics(config, chunk, models, hiddens, targets):
    """What is asked of one model (its log-probs) or of two, at once or in chunks."""
    name = "embed" if config.tied_embeddings else "unembed"
    heads = [{"params": {name: variables["params"][name]}} for variables in models]
    if chunk < targets.shape[-1]:
        return tuple(_in_chunks(config, chunk, heads, hiddens, targets))
    return tuple(
        _of_logits([transformer.unembed(config, *pair) for pair in zip(heads, hiddens, strict=True)], targets)[0]
    )


def _of_logits(logits, targets):
    """The statistics of one or two models' logits, and the logarithm of each softmax's normaliser."""
    totals = [jax.nn.logsumexp(x, axis=-1) for x in logits]
    picked = [jnp.take_along_axis(x, targets[..., None], axis=-1)[..., 0] for x in logits]
    statistics = [x - total for x, total in zip(picked, totals, strict=True)]
    if len(logits) == 2:
        log_p, log_q = (x - total[..., None] for x, total in zip(logits, totals, strict=True))
        p = jnp.exp(log_p)
        statistics += [jnp.sum(p * (log_p - log_q), -1), -jnp.sum(p * log_p, -1)]
    return statistics, totals


def _by_logits(logits, targets, totals, statistics, gradients):
    """From gradients by the statistics to those by each model's logits; None stands for no gradient.

    With p and q the softmaxes of policy and reference: d log p(y) = 1[v = y] - p, d KL = p (log p - log q - KL) by the
    policy's logits and q - p by the reference's, d entropy = -p (log p + entropy).
    """
    one_hot = jnp.arange(logits[0].shape[-1]) == targets
    logs = [x - total for x, total in zip(logits, totals, strict=True)]
    softmaxes = [jnp.exp(x) for x in logs]
    terms = [[g * (one_hot - p)] if g is not None else [] for g, p in zip(gradients, softmaxes, strict=False)]
    by_kl, by_entropy = gradients[2:] or (None, None)
    if by_kl is not None:
        terms[0].append(by_kl * softmaxes[0] * (logs[0] - logs[1] - statistics[2]))
        terms[1].append(by_kl * (softmaxes[1] - softmaxes[0]))
    if by_entropy is not None:
        terms[0].append(-by_entropy * softmaxes[0] * (logs[0] + statistics[3]))
    return [sum(each) if each else None for each in terms]


def _scan(function, carry, arrays, axis, chunk):
    """`carry, outputs = function(carry, arrays)` on slices of the arrays along their axis of token slots, one after the other."""
    num_slots = jax.tree.leaves(arrays)[0].shape[axis]
    num_chunks = -(-num_slots // chunk)

    def split(x):
        x = jnp.moveaxis(x, axis, 0)
        x = jnp.pad(x, [(0, num_chunks * chunk - num_slots)] + [(0, 0)] * (x.ndim - 1))
        return jnp.moveaxis(x.reshape(num_chunks, chunk, *x.shape[1:]), 1, axis + 1)

    def join(x):
        x = jnp.moveaxis(x, axis + 1, 1)
        return jnp.moveaxis(x.reshape(num_chunks * chunk, *x.shape[2:])[:num_slots], 0, axis)

    carry, outputs = jax.lax.scan(function, carry, jax.tree.map(split, arrays))
    return carry, jax.tree.map(join, outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_chunks(config, chunk, heads, hiddens, targets):
    """`_statistics`, with one chunk of logits at a time, forward and backward; reverse mode only.

    The backward pass forms the logits again and takes the normalisers from the forward pass.
    """
    return _forward_in_chunks(config, chunk, heads, hiddens, targets)[0]


def _forward_in_chunks(config, chunk, heads, hiddens, targets):
    def body(_, parts):
        hiddens, targets = parts
        logits = [transformer.unembed(config, *pair) for pair in zip(heads, hiddens, strict=True)]
        return None, _of_logits(logits, targets)

    return _scan(body, None, (hiddens, targets), targets.ndim - 1, chunk)[1]


def _forward(config, chunk, *primals):
    heads, hiddens, targets = jax.tree.map(lambda x: x.value, primals, is_leaf=lambda x: hasattr(x, "perturbed"))
    statistics, totals = _forward_in_chunks(config, chunk, heads, hiddens, targets)
    return statistics, (heads, hiddens, targets, totals, statistics)


def _backward(config, chunk, saved, gradients):
    heads, hiddens, targets, totals, statistics = saved
    gradients = [None if isinstance(g, SymbolicZero) else g for g in gradients]

    def body(by_heads, parts):
        hiddens, *per_token = parts
        pairs = [
            jax.vjp(functools.partial(transformer.unembed, config), *pair) for pair in zip(heads, hiddens, strict=True)
        ]
        logits, pullbacks = zip(*pairs, strict=True)
        by_logits = _by_logits(logits, *jax.tree.map(lambda x: x[..., None], per_token))
        found = [(None, None) if g is None else pull(g) for g, pull in zip(by_logits, pullbacks, strict=True)]
        by_heads = [
            None if new is None else jax.tree.map(jnp.add, old, new)
            for old, (new, _) in zip(by_heads, found, strict=True)
        ]
        return by_heads, [by_hidden for _, by_hidden in found]

    learns = (
        [True] if len(heads) == 1 else [any(gradients[i] is not None for i in rows) for rows in ((0, 2, 3), (1, 2))]
    )
    zeros = [jax.tree.map(jnp.zeros_like, head) if yes else None for head, yes in zip(heads, learns, strict=True)]
    arrays = hiddens, targets, totals, statistics, gradients
    by_heads, by_hiddens = _scan(body, zeros, arrays, targets.ndim - 1, chunk)
    return by_heads, by_hiddens, None


_in_chunks.defvjp(_forward, _backward, symbolic_zeros=True)
