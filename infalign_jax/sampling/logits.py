"""What temperature, top-k, top-p and min-p do to logits: pure functions `[..., V] -> [..., V]`, float32.

A filter sets the logits of the tokens it removes to −inf and never removes the most likely one. They are applied in
the order temperature, top-k, top-p, min-p, each to the distribution that the one before it left.
"""

import jax
import jax.numpy as jnp


def check(temperature, top_k, top_p, min_p):
    """Raise ValueError naming the first sampling option that is out of range."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be at least 0 and finite (0 is greedy)")
    if top_k is not None and (top_k < 1 or top_k != int(top_k)):
        raise ValueError(f"top_k is {top_k}; it must be a positive integer or None")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be in (0, 1] or None")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"min_p is {min_p}; it must be in [0, 1] or None")


def keep_top_k(logits, k: int):
    """Keep the k largest logits (and any equal to the k-th)."""
    kth = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= kth, logits, -jnp.inf)


def keep_top_p(logits, p: float):
    """Keep the smallest set of most likely tokens whose probability reaches p (Holtzman et al. 2020, arXiv 1904.09751).

    Tokens exactly as likely as the least likely one kept are kept too.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    descending = -jnp.sort(-probabilities, axis=-1)
    before = jnp.cumsum(descending, axis=-1) - descending
    smallest = jnp.min(jnp.where(before < p, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(probabilities >= smallest, logits, -jnp.inf)


def keep_min_p(logits, p: float):
    """Keep tokens at least p times as likely as the most likely one (Nguyen et al. 2024, arXiv 2407.01082)."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.where(logits >= top + jnp.log(p), logits, -jnp.inf)


def filter_logits(logits, *, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """Logits of the sampling distribution; `temperature` must be above 0 here (greedy is the sampler's own branch)."""
    logits = logits.astype(jnp.float32) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = keep_top_k(logits, top_k)
    if top_p is not None and top_p < 1:
        logits = keep_top_p(logits, top_p)
    if min_p is not None and min_p > 0:
        logits = keep_min_p(logits, min_p)
    return logits
