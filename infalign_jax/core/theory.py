"""Win rate and KL of the policy that a transform leads to, as integrals on [0,1].

Under the reference the calibrated reward u is Uniform[0,1]; under the optimum for a transform it has density
``f(u) = exp(phi(u)/beta) / int exp(phi/beta)``, the same for every prompt. All functions work in float64 on the host,
whatever jax's default precision. Source: InfAlign (arXiv 2412.19792), calibrated procedures.
"""

import math

import numpy as np

from infalign_jax.core import finite_table
from infalign_jax.core.checks import check_positive
from infalign_jax.core.quadrature import grid


def density(phi, beta, nodes=None):
    """Log density ``[M]`` and distribution function ``[M]`` of u under the policy, at the nodes of a quadrature grid.

    Args:
      phi: transform (callable on numpy arrays).
      beta: KL coefficient, > 0.
      nodes: a ``quadrature.Grid``; one with edges at the breaks of phi by default.

    Raises:
      ValueError: beta is not positive, or phi is not finite inside (0,1).
    """
    nodes = grid(tuple(getattr(phi, "breaks", ()))) if nodes is None else nodes
    log_f_M = normalized(_scores(phi, nodes) / check_positive("beta", beta), nodes)
    return log_f_M, np.minimum(nodes.from_left(np.exp(log_f_M)), 1.0)


def kl(phi, beta, calibration_samples=None):
    """``int f log f du``: KL of the policy from the reference, nats per sequence.

    Args:
      phi: transform.
      beta: KL coefficient, > 0.
      calibration_samples: None for exact calibration, or K: the mean over tables of K fixed rollouts.

    Examples:
      >>> from infalign_jax.core import transforms
      >>> round(kl(transforms.log(), 1 / 3), 4)  # the best-of-4 policy: log 4 - 3/4
      0.6363
    """
    if calibration_samples is not None:
        values = finite_table.cell_values(phi, calibration_samples)
        return finite_table.mean_kl(values / check_positive("beta", beta))
    nodes = grid(tuple(getattr(phi, "breaks", ())))
    log_f_M, _ = density(phi, beta, nodes)
    return kl_of_density(log_f_M, nodes)


def win_rate(objective, phi, beta, calibration_samples=None):
    """Inference-time win rate of the policy against the reference, both used through the procedure.

    ``W = 1 - int G_policy(v) dG_reference(v)``, for a distortion ``1 - int g(F(v)) g'(v) dv``.

    Args:
      objective: procedure, or average of procedures (``sum_i w_i W_i``).
      phi: transform.
      beta: KL coefficient, > 0.
      calibration_samples: None for exact calibration, or K: the mean win rate, under exact rewards, of the policies
        trained on tables of K fixed rollouts (from a fixed set of simulated tables; standard error about 1e-4).

    Returns:
      W in [0,1]; ½ for a constant phi.

    Examples:
      >>> from infalign_jax.core import procedures, transforms
      >>> round(win_rate(procedures.standard(), transforms.log(), 1 / 3), 4)  # best of 4 against one draw
      0.8
    """
    if calibration_samples is not None:
        values = finite_table.cell_values(phi, calibration_samples)
        return finite_table.mean_win_rate(objective, values / check_positive("beta", beta))[0]
    breaks = {b for _, part in objective.parts for b in part.breaks} | set(getattr(phi, "breaks", ()))
    nodes = grid(tuple(sorted(breaks)))
    log_f_M, cdf_M = density(phi, beta, nodes)
    return win_rate_of_density(objective, np.exp(log_f_M), cdf_M, nodes)


def win_rate_of_density(objective, density_M, cdf_M, nodes):
    """Win rate of any policy under an objective, given by density_M and cdf_M of u at the nodes of a grid."""
    total = 0.0
    for weight, part in objective.parts:
        after_M, _ = part.law(density_M, cdf_M, nodes)
        _, reference_M = part.law(np.ones_like(nodes.u_M), nodes.u_M, nodes)
        total += weight * (1.0 - nodes.integral(after_M * reference_M))
    return float(total)


def beta_for_kl(phi, kl, calibration_samples=None):
    """The beta at which the policy for ``phi`` has this KL; the KL falls strictly as beta grows.

    Args:
      phi: transform; beta scales with it.
      kl: target, nats per sequence, > 0.
      calibration_samples: None for exact calibration, or K: the *mean* KL over tables of K fixed rollouts hits the
        target.

    Raises:
      ValueError: the target is not positive, or beyond what phi (or the table) can reach.

    Examples:
      >>> from infalign_jax.core import transforms
      >>> round(beta_for_kl(transforms.log(), 0.6363), 3)
      0.333
    """
    from scipy import optimize

    target = check_positive("kl", kl)
    if calibration_samples is None:
        nodes = grid(tuple(getattr(phi, "breaks", ())))
        values = _scores(phi, nodes)
        spread = math.sqrt(nodes.integral((values - nodes.integral(values)) ** 2))

        def divergence(beta):
            return kl_of_density(normalized(values / beta, nodes), nodes)
    else:
        values = finite_table.cell_values(phi, calibration_samples)
        spread = float(np.std(values))

        def divergence(beta):
            return finite_table.mean_kl(values / beta)

    name = getattr(phi, "name", "phi")
    if spread <= 1e-12 * np.max(np.abs(values)):
        raise ValueError(f"transform {name} is constant, so its KL is 0 for every beta and cannot be {target:g}")
    guess = math.log(spread / math.sqrt(2 * target))  # KL ~ variance / (2 beta^2) for small KL
    low = high = guess
    while divergence(math.exp(low)) < target:
        low -= 0.7
        if low < guess - 30:
            reached = divergence(math.exp(low))
            if reached < 1e-12:
                raise ValueError(f"kl = {target:g} is too small: float64 cannot tell it from 0")
            table = "" if calibration_samples is None else f" with a table of {calibration_samples} rollouts"
            raise ValueError(f"kl = {target:g} is out of reach of {name}{table}: its largest KL is {reached:.4g}")
    while divergence(math.exp(high)) > target:
        high += 0.7
    if low == high:
        return math.exp(low)
    return math.exp(optimize.brentq(lambda x: divergence(math.exp(x)) / target - 1, low, high, xtol=1e-14, rtol=1e-14))


def _scores(phi, nodes):
    """``phi`` at the nodes, checked."""
    with np.errstate(over="ignore", invalid="ignore"):
        values_M = np.asarray(phi(nodes.u_M), np.float64) * np.ones_like(nodes.u_M)
    if not np.all(np.isfinite(values_M)):
        bad = nodes.u_M[np.flatnonzero(~np.isfinite(values_M))[0]]
        raise ValueError(f"transform {getattr(phi, 'name', phi)!s} is not finite at u = {bad:g}")
    return values_M


def normalized(log_weights_M, nodes):
    """Log density ``[M]`` proportional to ``exp(log_weights)``, at the nodes of a grid."""
    log_weights_M = log_weights_M - np.max(log_weights_M)
    return log_weights_M - math.log(nodes.integral(np.exp(log_weights_M)))


def kl_of_density(log_f_M, nodes):
    """``int f log f - (f - 1)``, from log_f_M at the nodes of a grid.

    The second term integrates to 0, and keeps the digits of a small KL.
    """
    return float(nodes.integral(np.exp(log_f_M) * log_f_M - np.expm1(log_f_M)))
