"""Refusals that several files share."""

import numpy as np


def finite(name, values):
    """`values` as float64.

    Raises:
      ValueError: a value is not finite; names the first and its index.
    """
    values = np.asarray(values, np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{name} has {values[tuple(bad[0])]} at index {bad[0].tolist()}; every value must be finite")
    return values
