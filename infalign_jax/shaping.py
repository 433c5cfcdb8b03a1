"""Reward shaping for any trainer: raw rewards and the reference's rewards in, calibrated and transformed rewards out.

>>> import numpy as np
>>> how = make_shaping("identity")
>>> reference = np.array([1, 2, 3, 4], np.float32)  # of one prompt, ascending
>>> u, score = shape(how, [0.5, 2.5, 4.0], [reference] * 3)
>>> u.tolist()
[0.0, 0.5, 0.875]
>>> score.round(3).tolist()  # mean 0, variance 1 under the reference
[-1.732, 0.0, 1.299]
"""

import dataclasses

import numpy as np

from infalign_jax.core import optimal, transforms
from infalign_jax.core.calibration import QUANTILES, calibrate


@dataclasses.dataclass(frozen=True)
class Shaping:
    """How raw rewards become scores (CTRL of arXiv 2412.19792): ``score = phi(C(r))``.

    Attributes:
      phi: the transform, of zero mean and unit variance under Uniform[0,1].
      beta: KL coefficient at which the best policy for these scores has the KL asked for, or None.
      kl: that KL, nats per sequence, or None.
      tails: as in `calibrate`.
    """

    phi: transforms.Transform
    beta: float | None
    kl: float | None
    tails: str


def make_shaping(transform, *, kl=None, rollouts=None, tails="flat"):
    """A `Shaping`.

    Args:
      transform: name or Transform: identity, log, exponential(t); with `kl` also optimal(PROCEDURE).
      kl: KL to aim for, nats per sequence; None leaves `beta` open.
      rollouts: K of the calibration tables, which `beta` and optimal(...) take into account; None for exact calibration.
      tails: 'flat' or 'exponential', as in `calibrate`.

    Raises:
      ValueError: an unknown name, optimal(...) without a KL, or a KL out of reach.
    """
    if tails not in QUANTILES:
        raise ValueError(f"tails must be one of {', '.join(QUANTILES)}, got {tails!r}")
    if kl is not None:
        phi, beta = optimal.resolve(transform, kl=kl, calibration_samples=rollouts)
        return Shaping(phi, beta, kl, tails)
    if isinstance(transform, str) and transform.strip().startswith("optimal"):
        raise ValueError(f"transform {transform!r} depends on the KL: give kl too, for example kl=0.5")
    return Shaping(transforms.standardize(transforms.from_name(transform)), None, None, tails)


def shape(shaping, rewards_N, references):
    """Calibrated and transformed rewards.

    Args:
      shaping: `Shaping`.
      rewards_N: numbers, finite.
      references: for each of them the reference rewards of its prompt, ascending float32; K may differ.

    Returns:
      u_N in [0, 1] and score_N, float64. A prompt's transform is tabulated at the ranks its K rollouts allow, as in training
      (`transforms.tabulate`), so log is finite at u = 0. No gradient: a measurement.

    Raises:
      ValueError: a number that is not finite.
    """
    if not len(rewards_N):
        return np.zeros(0), np.zeros(0)
    N, counts_N = len(rewards_N), np.array([len(row) for row in references])
    shape_NK = [1 << int(size - 1).bit_length() for size in (N, counts_N.max())]  # powers of two: few to compile
    table_NK, mask_NK, rewards_N1 = np.zeros(shape_NK, np.float32), np.zeros(shape_NK, bool), np.zeros((shape_NK[0], 1))
    mask_NK[N:, 0] = True  # rows of the padding need an entry too
    rewards_N1[:N, 0] = rewards_N
    for i, reference in enumerate(references):
        table_NK[i, : len(reference)], mask_NK[i, : len(reference)] = reference, True
    u_N1 = calibrate(rewards_N1, table_NK, is_sorted=True, tails=shaping.tails, reference_mask=mask_NK)
    u_N = np.asarray(u_N1, np.float64)[:N, 0]
    score_N = np.empty_like(u_N)
    for count in np.unique(counts_N):
        phi_M = transforms.tabulate(shaping.phi, int(count))
        here = counts_N == count
        score_N[here] = np.interp(u_N[here], np.linspace(0, 1, len(phi_M)), phi_M)
    return u_N, score_N
