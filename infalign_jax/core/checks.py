"""Refusals that several files share: one sentence with the argument's name and its value."""

import math

import numpy as np


def check_finite(name, values):
    """`values` as float64.

    Raises:
      ValueError: a value is not finite; names the first and its index.
    """
    values = np.asarray(values, np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{name} has {values[tuple(bad[0])]} at index {bad[0].tolist()}; every value must be finite")
    return values


def check_whole(name, value, low=1):
    """`value` as int.

    Raises:
      ValueError: it is no whole number of at least `low`.
    """
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value != int(value) or value < low:
        raise ValueError(f"{name} must be a whole number >= {low}, got {value!r}")
    return int(value)


def check_positive(name, value):
    """`value` as float.

    Raises:
      ValueError: it is no positive finite number.
    """
    if isinstance(value, bool) or not np.isscalar(value) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")
    return float(value)
