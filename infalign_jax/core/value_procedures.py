"""Procedures that look at the calibrated reward itself and not only at ranks: their laws are no distortions of F.

Their derivative ``dW/df`` is taken from the law directly; see ``docs/theory.md``.
"""

import math

import numpy as np

from infalign_jax.core.checks import check_whole
from infalign_jax.core.procedure import Procedure, rows

_STEP = 0.25  # of the trapezoidal rule in log s, analytic for |Im| < pi/2


def rewind_and_repeat(threshold_quantile, max_tries):
    """Keep the first draw above the reference's quantile q, ``threshold_quantile``, else the last of ``max_tries`` draws.

    With ``p = F(q)``, ``T = max_tries`` and ``S = 1 + p + ... + p^(T-2)`` the result has distribution
    ``p^(T-1) F(v) + 1{v > q} S (F(v) - p)``: a function of F(v) and F(q). ``select`` wants calibrated rewards.

    Raises:
      ValueError: the quantile is not inside (0,1), or max_tries is not a positive whole number.
    """
    tries = check_whole("max_tries of rewind_and_repeat", max_tries)
    q = threshold_quantile
    if isinstance(q, bool) or not isinstance(q, (int, float)) or not 0 < q < 1:
        raise ValueError(f"threshold_quantile of rewind_and_repeat must be a number inside (0, 1), got {q!r}")
    name = f"rewind_and_repeat({q:.15g},{tries})"

    def coefficients(density_M, nodes):
        p = float(nodes.weight_M @ (density_M * (nodes.u_M < q)))
        geometric = sum(p**i for i in range(tries - 1))
        growth = sum(i * p ** (i - 1) for i in range(1, tries - 1))
        return p, p ** (tries - 1), geometric, growth, nodes.u_M > q

    def law(density_M, cdf_M, nodes):
        p, last, geometric, _, above_M = coefficients(density_M, nodes)
        after_M = last * cdf_M + above_M * geometric * (cdf_M - p)
        return after_M, density_M * (last + above_M * geometric)

    def derivative(density_M, cdf_M, nodes):
        p, last, geometric, growth, above_M = coefficients(density_M, nodes)
        _, reference_M = law(np.ones_like(density_M), nodes.u_M, nodes)
        by_cdf_M = (last + above_M * geometric) * reference_M
        by_p_M = (tries - 1) * p ** max(tries - 2, 0) * cdf_M + above_M * (growth * (cdf_M - p) - geometric)
        return -nodes.to_right(by_cdf_M) - (nodes.u_M < q) * nodes.integral(by_p_M * reference_M)

    def select(u_PM, rng):
        u_PM = rows(u_PM, tries, name)[:, :tries]
        accepted_PM = u_PM > q
        accepted_PM[:, -1] = True
        return np.argmax(accepted_PM, axis=1)

    def value_weights(u_M):
        if len(u_M) < tries:
            raise ValueError(f"{name} needs n = {tries} samples per prompt, but only m = {len(u_M)} are there")
        kept_M = u_M > q
        below = int((~kept_M).sum())
        failed = math.comb(below, tries) / math.comb(len(u_M), tries)
        return np.where(kept_M, (1 - failed) / max(len(u_M) - below, 1), failed / max(below, 1))

    return Procedure(name, None, None, None, tries, select, None, None, law, derivative, (float(q),), value_weights)


def soft_best_of(n, temperature):
    """Of n draws keep the i-th with probability ``exp(u_i/T) / sum_j exp(u_j/T)``: best-of-n as T -> 0.

    With ``x(u) = exp(u/T)`` and ``L(s) = int f e^(-s x)`` the result has density ``n f x int e^(-s x) L(s)^(n-1) ds``.
    ``select`` wants calibrated rewards.

    Raises:
      ValueError: n is not a positive whole number, or the temperature is not in [0.01, inf).

    Examples:
      >>> soft_best_of(4, 0.5).name
      'soft_best_of(4,0.5)'
    """
    n = check_whole("n of soft_best_of", n)
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0.01 <= temperature < math.inf:
        raise ValueError(
            f"temperature of soft_best_of must be a number in [0.01, inf), got {temperature!r}; use best_of below"
        )
    name = f"soft_best_of({n},{temperature:.15g})"
    s_S = np.exp(np.arange(-38.0, 5.0 + 1 / temperature, _STEP))

    kernels = {}  # by grid: a large matrix that no density changes

    def parts(density_M, nodes):
        if id(nodes) not in kernels:
            x_M = np.exp(-nodes.w_M / temperature)  # exp(u/T) up to a factor
            kernels[id(nodes)] = nodes, x_M, np.exp(-np.outer(x_M, s_S))  # the grid kept, so that its id stays its own
        _, x_M, decay_MS = kernels[id(nodes)]
        return x_M, decay_MS, (nodes.weight_M * density_M) @ decay_MS

    def density(density_M, nodes):
        x_M, decay_MS, laplace_S = parts(density_M, nodes)
        return n * density_M * x_M * (decay_MS @ (_STEP * s_S * laplace_S ** (n - 1)))

    def law(density_M, cdf_M, nodes):
        after_M = density(density_M, nodes)
        return nodes.from_left(after_M), after_M

    def derivative(density_M, cdf_M, nodes):
        below_M = nodes.from_left(density(np.ones_like(density_M), nodes))  # P(reference result < u)
        x_M, decay_MS, laplace_S = parts(density_M, nodes)
        own_M = n * x_M * below_M * (decay_MS @ (_STEP * s_S * laplace_S ** (n - 1)))
        if n == 1:
            return own_M
        wins_S = (nodes.weight_M * density_M * x_M * below_M) @ decay_MS
        return own_M + n * (n - 1) * (decay_MS @ (_STEP * s_S * laplace_S ** (n - 2) * wins_S))

    def select(u_PM, rng):
        u_PM = rows(u_PM, n, name)[:, :n]
        return np.argmax(u_PM / temperature + rng.gumbel(size=u_PM.shape), axis=1)

    return Procedure(name, None, None, None, n, select, None, None, law, derivative)
