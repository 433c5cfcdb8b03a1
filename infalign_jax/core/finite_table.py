"""What a fixed calibration table of K rollouts does to the theory.

With K reference rewards of a prompt in the table, a response's calibrated reward is its rank j/K, so a policy trained
with ``phi`` weighs the K+1 cells between the table's order statistics by ``w_j = exp(phi(j/K)/beta)``. The true
width of the j-th cell is random: the widths V are uniform on the simplex (spacings of K uniform points). Per prompt

    p_j = V_j w_j / Z,   Z = sum_j V_j w_j,   KL = sum_j p_j log w_j - log Z,   F linear inside each cell,

and what training shows is the mean over prompts, that is over V. The mean KL is a one-dimensional integral, computed
here to rounding error; the mean win rate is an average over a fixed set of simulated tables.
"""

import functools

import numpy as np

from infalign_jax.core.checks import check_whole
from infalign_jax.core.quadrature import rule
from infalign_jax.core.transforms import at_half_ranks

MOST_ROLLOUTS = 4096  # K of a table that commands take: what the theory of a table costs grows faster than K
_STEP = 0.25  # of the trapezoidal rule in log s: its integrand is analytic for |Im| < pi/2, so the error is below 1e-16
_TABLE_CELLS = 1_500_000  # simulated cells: the standard error of a win rate is about 1e-4 for every K


def cell_values(phi, calibration_samples):
    """``phi`` at the ranks ``j/K``, j = 0..K, in float64; where it is infinite at 0 (the logarithm), at ``1/(2K)``.

    Raises:
      ValueError: K is not a positive whole number, or phi is not finite at the ranks.
    """
    size = check_whole("calibration_samples", calibration_samples)
    values = at_half_ranks(phi, size)[::2]
    if not np.all(np.isfinite(values)):
        raise ValueError(f"transform {getattr(phi, 'name', phi)!s} is not finite at the ranks j/{size}")
    return values


def mean_kl(log_weights):
    """Mean over tables of the KL of the policy with these cell weights, in nats, exact to rounding.

    With independent exponentials E_j, ``V = E / sum E`` and ``S = sum_j w_j E_j``,
    ``E log Z = E log S - digamma(K+1)``, ``E log S = int (e^-s - prod_i 1/(1+s w_i)) ds/s`` and
    ``E p_j = int w_j/(1+s w_j) prod_i 1/(1+s w_i) ds``; both by the trapezoidal rule in log s.

    Args:
      log_weights: ``phi(j/K)/beta`` up to a constant, ``[K+1]``.
    """
    from scipy import special

    a = np.asarray(log_weights, np.float64)
    a = a - special.logsumexp(a)
    x = np.arange(-20.0, 45.0, _STEP)
    exponents = [np.logaddexp(0.0, point + a).sum() for point in x[::8]]
    x = x[: 1 + 8 * np.searchsorted(exponents, 745.0)]  # beyond, the product is 0 in float64
    shifted = x[:, None] + a
    product = np.exp(-np.logaddexp(0.0, shifted).sum(1))
    # left of -20 the first integrand is e^x w_j to rounding, a geometric series, and the second vanishes like e^2x
    tail = np.exp(x[0] + a) / np.expm1(_STEP)
    mean_p = _STEP * (product @ special.expit(shifted) + tail)
    mean_log_s = _STEP * np.sum(np.exp(-np.exp(x)) - product)
    used = mean_p > 0
    return float(mean_p[used] @ a[used] - mean_log_s + special.digamma(len(a)))


def largest_kl(calibration_samples):
    """Mean KL of the policy that always answers from the top cell: ``1 + 1/2 + ... + 1/K``; nothing exceeds it."""
    return float(np.sum(1.0 / np.arange(1, calibration_samples + 1)))


@functools.lru_cache(maxsize=8)
def simulated_tables(calibration_samples, cells=_TABLE_CELLS, seed=0):
    """Cell widths ``[tables, K+1]`` of simulated tables, the same ones at every call."""
    rng = np.random.default_rng([seed, calibration_samples])
    widths = rng.standard_exponential((max(64, cells // (calibration_samples + 1)), calibration_samples + 1))
    return widths / widths.sum(1, keepdims=True)


def policy(log_weights, widths):
    """Cell probabilities ``[tables, K+1]`` and ``log Z [tables]`` of the policy with these weights."""
    top = np.max(log_weights)
    mass = widths * np.exp(log_weights - top)
    total = mass.sum(1, keepdims=True)
    return mass / total, np.log(total[:, 0]) + top


def loss_rates(procedure, probabilities, widths):
    """``1 - W = int g(F(v)) g'(v) dv`` of each simulated table, Gauss points inside each cell; ``[tables]``."""
    upper_F, upper_v = np.cumsum(probabilities, 1), np.cumsum(widths, 1)
    points, weights, _ = rule(points_of(procedure))
    lost = np.zeros(len(widths))
    for point, weight in zip(points, weights, strict=True):
        F = np.clip(upper_F - (1 - point) * probabilities, 0.0, 1.0)
        v = np.clip(upper_v - (1 - point) * widths, 0.0, 1.0)
        lost += weight * np.sum(procedure.distortion(F) * procedure.slope(v) * widths, 1)
    return lost


def mean_win_rate(objective, log_weights, tables=None):
    """Mean win rate over simulated tables, and its standard error.

    The per-table KL and log Z, whose means are known exactly, serve as control variates.

    Args:
      objective: procedure or average of procedures, each with a distortion.
      log_weights: ``phi(j/K)/beta`` up to a constant, ``[K+1]``.
      tables: cell widths ``[tables, K+1]``; those of ``simulated_tables`` by default.

    Raises:
      ValueError: a procedure's law is not a distortion.
    """
    log_weights = np.asarray(log_weights, np.float64)
    size = len(log_weights) - 1
    widths = simulated_tables(size) if tables is None else tables
    probabilities, log_z = policy(log_weights, widths)
    lost = sum(w * loss_rates(ranked(part), probabilities, widths) for w, part in objective.parts)
    divergence = probabilities @ np.where(np.isfinite(log_weights), log_weights, 0.0) - log_z
    controls = divergence - mean_kl(log_weights)
    centred = controls - controls.mean()
    spread = np.dot(centred, centred)
    slope = np.dot(centred, lost) / spread if spread > 0 else 0.0
    adjusted = lost - slope * controls
    return float(1 - adjusted.mean()), float(adjusted.std(ddof=1) / np.sqrt(len(adjusted)))


def points_of(procedure):
    """Gauss points inside a cell: as many as make polynomials of the procedure's degree exact, or enough (1e-8)."""
    degree = 16 if procedure.draws is None else procedure.draws
    return min(degree, 3 + degree // 4, 16)


def ranked(procedure):
    """The procedure itself, or ``ValueError`` if its law is no distortion."""
    if procedure.distortion is None:
        raise ValueError(f"{procedure.name} is no distortion of F alone, so the law of a table is not available")
    return procedure
