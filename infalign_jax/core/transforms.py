"""Reward transforms: functions of the calibrated reward u in [0,1] that turn ordinary RLHF into inference-aware RLHF.

The policy that maximises ``E[phi(u)] - beta * KL`` has density ``exp(phi(u)/beta)`` relative to the reference, so a
transform matters only up to a positive affine map, with beta rescaled. ``standardize`` fixes that freedom.
Source: InfAlign (arXiv 2412.19792), section on CTRL; the logarithm is best-of-n distillation.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from infalign_jax.core import naming
from infalign_jax.core.checks import check_whole
from infalign_jax.core.quadrature import grid


def namespace(u):
    """``numpy`` for numbers and numpy arrays, ``jax.numpy`` for jax arrays and tracers."""
    if isinstance(u, (np.ndarray, np.generic, float, int, list, tuple)):
        return np
    import jax.numpy as jnp

    return jnp


@dataclasses.dataclass(frozen=True)
class Transform:
    """A callable ``phi(u)`` with a name; elementwise, any shape, dtype kept, differentiable, usable in jit and vmap.

    Attributes:
      name: as in results, e.g. ``exponential(10)``; ``from_name`` reads it back.
      function: ``function(u, xp)`` with ``xp`` numpy or jax.numpy.
      standard: the standardised function in the same form, where a closed form is known.
      breaks: points of [0,1] where the function has kinks or jumps, for exact quadrature.
    """

    name: str
    function: Callable
    standard: Callable | None = None
    breaks: tuple = ()

    def __call__(self, u):
        xp = namespace(u)
        u = xp.asarray(u)
        return self.function(u if u.dtype.kind == "f" or xp is not np else u.astype(np.float64), xp)

    def __repr__(self):
        return f"<transform {self.name}>"


def identity():
    """``phi(u) = u``: optimal for the standard win rate, whose derivative in the density is u itself."""
    return Transform("identity", lambda u, xp: u, lambda u, xp: math.sqrt(12.0) * (u - 0.5))


def log():
    """``phi(u) = log u``: with ``beta = 1/(n-1)`` the optimum is exactly the best-of-n policy; ``-inf`` at 0.

    Under Uniform[0,1] ``log u`` has mean -1 and variance 1.
    """
    return Transform("log", lambda u, xp: xp.log(u), lambda u, xp: xp.log(u) + 1.0)


def exponential(t):
    """``phi(u) = sign(t) * exp(t*u)``: the InfAlign paper's choice; t > 0 for best-of-N, t < 0 for worst-of-N.

    Raises:
      ValueError: t is 0 or not finite (0 would make a constant).

    Examples:
      >>> exponential(10).name, float(exponential(10)(0.0))
      ('exponential(10)', 1.0)
    """
    t = float(t)
    if not math.isfinite(t) or t == 0:
        raise ValueError(f"exponential(t) needs a finite t other than 0, got t = {t:g}")
    sign, size = math.copysign(1.0, t), abs(t)
    # Around the anchor all values are at most 1 and, for small t, expm1 keeps the digits that exp(tu) - mean lose.
    if size < 1:
        anchor = 0.5
        mean = sum((size / 2) ** (2 * k) / math.factorial(2 * k + 1) for k in range(1, 10))
        variance = sum(2 * k * size ** (2 * k) / math.factorial(2 * k + 2) for k in range(1, 12))
    else:
        anchor = 1.0 if t > 0 else 0.0
        mean = -math.expm1(-size) / size - 1
        variance = -math.expm1(-2 * size) / (2 * size) - (mean + 1) ** 2
    scale = sign / math.sqrt(variance)
    return Transform(
        f"exponential({t:.15g})",
        lambda u, xp: sign * xp.exp(t * u),
        lambda u, xp: scale * (xp.expm1(t * (u - anchor)) - mean),
    )


def standardize(phi):
    """``(phi - mean) / std`` with both taken under the continuous Uniform[0,1].

    Args:
      phi: a transform of this module or any function of u that accepts numpy (and, for training, jax) arrays.

    Returns:
      A ``Transform`` of the same name.

    Raises:
      ValueError: phi has no finite mean and variance, or is constant.

    Examples:
      >>> round(float(standardize(identity())(1.0)), 3)  # (u - 1/2) / sqrt(1/12)
      1.732
    """
    name = getattr(phi, "name", getattr(phi, "__name__", "custom"))
    if getattr(phi, "standard", None) is not None:
        return Transform(name, phi.standard, phi.standard, phi.breaks)
    mean, std = moments(phi)

    def function(u, xp):
        return (phi(u) - mean) / std

    return Transform(name, function, function, getattr(phi, "breaks", ()))


def moments(phi):
    """Mean and standard deviation of ``phi`` under Uniform[0,1], by quadrature in float64.

    Raises:
      ValueError: they are not finite, or phi is constant.
    """
    nodes = grid(tuple(getattr(phi, "breaks", ())))
    values_M = np.asarray(phi(nodes.u_M), np.float64) * np.ones_like(nodes.u_M)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = nodes.integral(values_M)
        std = math.sqrt(nodes.integral((values_M - mean) ** 2))
    name = getattr(phi, "name", repr(phi))
    if not (math.isfinite(mean) and math.isfinite(std)):
        raise ValueError(f"transform {name} has no finite mean and variance on [0,1]: mean {mean}, std {std}")
    if std <= 1e-12 * np.max(np.abs(values_M)):
        raise ValueError(f"transform {name} is constant on [0,1] (std {std:g}), so it prefers no response")
    return float(mean), float(std)


def tabulate(phi, calibration_samples):
    """Values of ``phi`` at the ``2K+1`` calibrated rewards ``j/(2K)`` that a table of K rollouts can give.

    Odd j are ties, which take the middle of two ranks.

    The table is a runtime argument: ``table[round(2*K*u)]`` with one compiled step for every transform. A transform
    that is not finite at 0 (the logarithm) is taken at ``u = 1/(2K)`` there.

    Args:
      phi: any transform.
      calibration_samples: K, rollouts in the calibration table of a prompt.

    Returns:
      float32 numpy ``[2K+1]``, all finite.

    Raises:
      ValueError: K is not a positive whole number, or phi is not finite on ``[1/(2K), 1]`` in float32.
    """
    size = check_whole("calibration_samples", calibration_samples)
    with np.errstate(over="ignore"):
        values = at_half_ranks(phi, size).astype(np.float32)
    if not np.all(np.isfinite(values)):
        bad = np.flatnonzero(~np.isfinite(values))[0] / (2 * size)
        raise ValueError(
            f"transform {getattr(phi, 'name', phi)!s} is not finite in float32 at u = {bad:g}; standardize it first"
        )
    return values


def at_half_ranks(phi, size):
    """``phi`` at ``j/(2K)``, j = 0..2K, K the ``size`` of a table, float64 ``[2K+1]``.

    Where it is infinite at 0 (the logarithm), it is taken at ``1/(2K)``; whether the rest is finite is for the caller to check.
    """
    u = np.arange(2 * size + 1) / (2 * size)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        values = np.array(phi(u), np.float64) * np.ones_like(u)
    if not np.isfinite(values[0]):
        values[0] = values[1]
    return values


CHOICES = {"identity": identity, "log": log, "exponential": exponential}


def from_name(name):
    """The transform with this name: ``identity``, ``log`` or ``exponential(t)``; a Transform is returned as it is.

    Raises:
      ValueError: anything else; the message lists what is legal. ``optimal(...)`` depends on the KL target and the
        table size and is made by ``optimal.resolve``.

    Examples:
      >>> from_name("exponential(-5)")
      <transform exponential(-5)>
    """
    if isinstance(name, Transform):
        return name
    if isinstance(name, str) and name.strip().startswith("optimal"):
        raise ValueError(f"transform {name!r} depends on the target KL: make it with optimal.resolve(name, kl=...)")
    return naming.build(CHOICES, name, "transform", ["optimal(procedure)"])
