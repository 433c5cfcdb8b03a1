"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split layout of the open checkpoints."""

import math

import jax.numpy as jnp
import numpy as np


def frequencies(head_dim: int, base: float, scaling=None) -> np.ndarray:
    """Angular frequencies base^(-2i/H), i < H/2, stretched by `scaling` (a RopeScaling or None). Radians a position."""
    omega = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return omega
    if scaling.kind == "linear":
        return omega / scaling.factor
    turns = scaling.original_context * omega / (2 * math.pi)  # turns made within the original context
    keep = (turns - scaling.low_frequency_factor) / (scaling.high_frequency_factor - scaling.low_frequency_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return keep * omega + (1 - keep) * omega / scaling.factor


def rotations(config, positions):
    """(cos, sin), each float32 `[kinds, ..., H/2]` for integer `positions [...]`.

    Kind 0 is that of global layers, kind 1 that of local ones; `kinds` is 1 when the two are the same.
    """
    omegas = [frequencies(config.head_dim, config.rope_base, config.rope_scaling)]
    if config.rope_local_base is not None and any(config.is_local):
        omegas.append(frequencies(config.head_dim, config.rope_local_base))
    angles = jnp.stack([positions[..., None].astype(jnp.float32) * omega.astype(np.float32) for omega in omegas])
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x, cos, sin):
    """Turn each pair (x_i, x_{i+H/2}) of `x [..., heads, H]` by its angle; cos, sin `[..., H/2]`. Keeps dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
