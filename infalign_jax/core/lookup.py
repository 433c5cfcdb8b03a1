"""A transform as data: its values at fixed points of [0, 1], so that one compiled step serves every transform."""

import jax
import jax.numpy as jnp
import numpy as np

TAIL_POINTS = 2049


def grid(calibration_samples, tails="flat"):
    """Where a transform must be known for a table of K = `calibration_samples` rollouts: float32 numpy [M], ascending.

    "flat": the 2K + 1 values j/(2K) that a rank among K can take; `transforms.tabulate` gives the values there.
    "exponential": TAIL_POINTS points, equally spaced in logit u. The tail puts calibrated rewards within 1/(K + 1) of
    either end, where optimal transforms for large N change fastest; the points resolve 1 − u to about a hundredth of
    itself down to e^{−6}/(K + 1), beyond which a transform is taken as constant (finite, also for the logarithm).

    Raises ValueError for K < 1 or unknown tails.
    """
    if calibration_samples < 1:
        raise ValueError(f"calibration_samples must be at least 1, got {calibration_samples}")
    if tails == "flat":
        steps = 2 * calibration_samples
        return np.arange(steps + 1, dtype=np.float32) / np.float32(steps)
    if tails != "exponential":
        raise ValueError(f"tails must be one of flat, exponential, got {tails!r}")
    end = np.log(calibration_samples + 1.0) + 6
    return (1 / (1 + np.exp(-np.linspace(-end, end, TAIL_POINTS)))).astype(np.float32)


def lookup(u, grid_M, values_M):
    """φ(u) by linear interpolation between its values on the grid, constant beyond its ends; O(log M) each, inside jit.

    u [...] in [0, 1], grid_M ascending, values_M = φ(grid_M), float32. At a point of the grid, hence always for flat
    tables, it is the tabulated value, up to the rounding of u. NaN stays NaN. The gradient is zero, as for u.
    """
    return jax.lax.stop_gradient(jnp.interp(u, grid_M, values_M))
