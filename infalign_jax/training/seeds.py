"""Random keys: every one is a fold of (seed, purpose, step)."""

import zlib

import jax


def key_for(seed, purpose, step=0):
    """The key of one purpose at one step, the same on every host, device count and restart.

    Args:
      seed: int, the run's.
      purpose: str, e.g. 'align/rollouts'.
      step: int or int32 array, the global step.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, step)
