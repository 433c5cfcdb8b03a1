"""Many rows through a program that is compiled for a few."""

import jax
import numpy as np


def in_calls(call, n, size):
    """What `call(rows)` gives for the rows 0 … n − 1, `size` at once: its host arrays `[size, ...]` joined to `[n, ...]`.

    The last call is filled up with rows from the front, so that every call has one shape.
    """
    parts = [call(np.arange(first, first + size) % n) for first in range(0, n, size)]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:n], *parts)
