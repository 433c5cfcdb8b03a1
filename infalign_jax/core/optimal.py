"""The best transform there is: the density that maximises win rate at a given KL, and the transform that leads to it.

For convex distortions (best-of-N, every mixture and average of best-of-N) the win rate is concave in the density and
the returned ``gap`` is a certificate: no policy whatever is better by more. Source of the problem: InfAlign
(arXiv 2412.19792); certificate and uniqueness are proved in ``docs/theory.md``.
"""

import dataclasses
import functools
import math

import numpy as np

from infalign_jax.core import finite_optimum, naming, procedures, stationary, theory, transforms
from infalign_jax.core.checks import check_positive, check_whole
from infalign_jax.core.procedure import all_convex, all_distortions
from infalign_jax.core.quadrature import grid

_LARGEST_KL, _SMALLEST_KL = 40.0, 1e-9


@dataclasses.dataclass(frozen=True)
class OptimalTransform:
    """An optimal transform and what is known about it.

    Attributes:
      procedure: the name of what it is optimal for.
      phi: callable, ``phi/beta = log f`` up to a constant; float64 on numpy arrays, linear interpolation in the array's
        precision on jax arrays; ``tabulate`` it for training.
      beta: KL coefficient at which it is optimal; equals dW/dKL along the frontier.
      kl: KL of the optimal policy, nats per sequence (with a table of K: mean over tables).
      win_rate: of the optimal policy (with a table of K: mean over tables, standard error about 1e-4).
      gap: ``beta * KL(f || Tf)``. Convex distortions: an upper bound of ``J* - J(f)``, ``J = W - beta KL``. Otherwise
        it measures how far the condition of optimality is from being met, and bounds nothing; with a table of K it is the
        gain that one more Newton step promises.
      residual: ``int f |log f - log Tf|``, nats: how well the fixed point is met.
      kind: ``certified`` (convex distortions), ``unique`` (proved to be the only stationary point) or ``local``.
      starts, agreed: of how many starts, how many ended at the returned density.
      calibration_samples: K of the fixed tables it is optimal for, or None for exact calibration.
    """

    procedure: str
    phi: transforms.Transform
    beta: float
    kl: float
    win_rate: float
    gap: float
    residual: float
    kind: str
    starts: int
    agreed: int
    calibration_samples: int | None = None


def optimal_transform(procedure, *, kl=None, beta=None, calibration_samples=None):
    """Maximises ``W - beta * KL`` over all policies, at a target KL or for a given beta.

    Args:
      procedure: procedure, average of procedures, or a name such as ``best_of(8)``.
      kl: target KL in nats per sequence; or
      beta: the KL coefficient. Exactly one of the two.
      calibration_samples: None for exact calibration, or K: the optimum among the policies that see ranks in a fixed
        table of K rollouts, one value per rank cell, mean win rate against mean KL over tables.

    Returns:
      ``OptimalTransform``.

    Raises:
      ValueError: not exactly one target, a target that float64 (or a table of K) cannot resolve, or a procedure
        without the law that is needed.

    Examples:
      >>> best = optimal_transform("best_of(4)", kl=0.5)
      >>> best.kind, round(best.win_rate, 4)
      ('certified', 0.8733)
    """
    objective = procedures.from_name(procedure)
    if (kl is None) == (beta is None):
        raise ValueError(f"optimal_transform needs exactly one of kl and beta, got kl = {kl!r}, beta = {beta!r}")
    name, value = ("kl", kl) if beta is None else ("beta", beta)
    value = check_positive(name, value)
    if calibration_samples is not None:
        size = check_whole("calibration_samples", calibration_samples)
        found = finite_optimum.solve(objective, size, **{name: value})
        phi = finite_optimum.interpolated(f"optimal({objective.name})", found.scores)
        facts = (found.kl, found.win_rate, found.gap, found.residual, "local", 1, 1, size)
        return OptimalTransform(objective.name, phi, found.beta, *facts)
    state, starts, agreed, nodes = _at_kl(objective, value) if beta is None else _at_beta(objective, value)
    win_rate = theory.win_rate_of_density(objective, np.exp(state.log_f_M), state.cdf_M, nodes)
    phi = _callable(objective, state, nodes)
    kind = "certified" if all_convex(objective) else "unique" if _is_worst_of(objective) else "local"
    facts = (state.kl, win_rate, state.gap, state.residual, kind, starts, agreed)
    return OptimalTransform(objective.name, phi, state.beta, *facts)


def _is_worst_of(objective):
    (_, part), *others = objective.parts
    return not others and part.shape == "concave" and part.draws is not None and part.rank_weights(part.draws)[0] == 1.0


def _nodes(objective, uniform=64):
    return grid(_breaks(objective), uniform)


def _breaks(objective):
    return tuple(sorted({b for _, part in objective.parts for b in part.breaks}))


def _starts(objective, nodes):
    """Scores to start from: the derivative at the reference; where the optimum may not be unique, shapes besides."""
    u = nodes.u_M
    own = stationary.derivative(objective, nodes, np.ones_like(u), u)
    if all_convex(objective) or _is_worst_of(objective):
        return [own]
    shapes = [u, u**6, -((1 - u) ** 6), (u - 0.5) ** 2, -((u - 0.5) ** 2), -u, np.sin(6 * u), -np.sin(6 * u)]
    return [own, *shapes]


def _solve(objective, kl, nodes, starts):
    """The best stationary density at this KL over the starts, and how many starts ended there."""
    found = []
    for start_M in starts:
        state = stationary.solve(objective, nodes, kl, start_M)
        if state.residual < 1e-10:
            win_rate = theory.win_rate_of_density(objective, np.exp(state.log_f_M), state.cdf_M, nodes)
            found.append((win_rate, state))
    if not found:
        raise ValueError(
            f"kl = {kl:g} is beyond what float64 resolves for {objective.name}: no density meets the condition"
        )
    best = max(win_rate for win_rate, _ in found)
    agreeing = [state for win_rate, state in found if win_rate > best - 1e-9]
    return min(agreeing, key=lambda state: state.residual), len(agreeing)


def _at_kl(objective, kl):
    if not _SMALLEST_KL <= kl <= _LARGEST_KL:
        raise ValueError(f"kl = {kl:g} is outside [{_SMALLEST_KL:g}, {_LARGEST_KL:g}] nats, which float64 resolves")
    nodes = _nodes(objective)
    starts = _starts(objective, nodes)
    with np.errstate(all="ignore"):  # what overflows ends in a large residual and is refused
        if all_convex(objective):  # narrow layers are followed from a small KL
            for easier in 0.5 * 2.0 ** np.arange(math.ceil(math.log2(max(kl, 0.5) / 0.5))):
                starts = [stationary.solve(objective, nodes, easier, starts[0]).log_f_M]
        state, agreed = _solve(objective, kl, nodes, starts)
        finer = _nodes(objective, 96)
        logit_fine, logit = (np.log(g.u_M) - np.log(g.w_M) for g in (finer, nodes))  # u itself is all 1 near the end
        check, _ = _solve(objective, kl, finer, [np.interp(logit_fine, logit, state.log_f_M)])
    depth = -np.min(state.log_f_M)
    if depth > 1e13:
        raise ValueError(
            f"kl = {kl:g} is beyond what float64 resolves for {objective.name}: log f reaches -{depth:.1g}"
        )
    change = abs(check.beta / state.beta - 1)
    smooth = all_distortions(objective)
    if not change < (1e-9 if smooth else 1e-6):
        raise ValueError(
            f"kl = {kl:g} is not resolved in float64 for {objective.name}: a finer grid changes beta by {change:.1g}"
        )
    return state, len(starts), agreed, nodes


def _at_beta(objective, beta):
    """Finds the KL whose optimum has this beta, then solves at fixed beta.

    Where the optimum is unique, beta falls as KL grows. Elsewhere several KLs can have this beta, so the KL with the largest
    ``W - beta KL`` is looked for first.
    """
    from scipy import optimize

    nodes = _nodes(objective)
    start_M = _starts(objective, nodes)[0]

    @functools.cache
    def excess(log_kl):
        return math.log(_solve(objective, math.exp(log_kl), nodes, [start_M])[0].beta / beta)

    low = high = math.log(0.5)
    try:
        if not (all_convex(objective) or _is_worst_of(objective)):
            low, high = _bracket(objective, beta, nodes)
        while excess(low) < 0:
            low -= 1.5
        while excess(high) > 0:
            high += 0.5
    except ValueError as error:
        raise ValueError(f"beta = {beta:g} is out of reach for {objective.name}: {error}") from None
    log_kl = low if low == high else optimize.brentq(excess, low, high, xtol=1e-8)
    state, starts, agreed, nodes = _at_kl(objective, math.exp(log_kl))
    if all_distortions(objective):
        state = stationary.polish(objective, nodes, state._replace(beta=beta))
    return state, starts, agreed, nodes


def _bracket(objective, beta, nodes):
    """Logarithms of two KLs around the one with the largest ``W - beta KL``, from a scan."""
    kls, values = np.geomspace(0.01, 4.0, 16), []
    for kl in kls:
        state, _ = _solve(objective, kl, nodes, _starts(objective, nodes))
        win_rate = theory.win_rate_of_density(objective, np.exp(state.log_f_M), state.cdf_M, nodes)
        values.append(win_rate - beta * kl)
    best = int(np.argmax(values))
    return math.log(kls[max(best - 1, 0)]), math.log(kls[min(best + 1, len(kls) - 1)])


def _callable(objective, state, nodes):
    """``beta * log f`` as a transform: piecewise cubic with the known slope ``sum_i w_i g_i'(F) g_i'(u)``."""
    from scipy import interpolate

    u, kept = np.unique(nodes.u_M, return_index=True)
    values = (state.beta * state.log_f_M)[kept]
    if all_distortions(objective):
        slope_M = sum(w * part.slope(state.cdf_M) * part.slope(nodes.u_M) for w, part in objective.parts)
        curve = interpolate.CubicHermiteSpline(u, values, slope_M[kept])
    else:
        curve = interpolate.PchipInterpolator(u, values)
    dense = np.union1d(u, np.linspace(u[0], u[-1], 8193)).astype(np.float32)
    single = np.unique(dense)
    single_values = curve(np.clip(single.astype(np.float64), u[0], u[-1])).astype(np.float32)

    def function(x, xp):
        if xp is np:
            return curve(np.clip(x, u[0], u[-1])).astype(x.dtype)
        return xp.interp(x, single, single_values)

    return transforms.Transform(f"optimal({objective.name})", function, breaks=_breaks(objective))


def resolve(name, *, kl, calibration_samples=None):
    """What ``align`` needs for any transform name: the standardised transform and the beta with this KL.

    ``resolve('exponential(10)', kl=0.5, calibration_samples=64)``,
    ``resolve('optimal(best_of(8))', kl=0.5, calibration_samples=64)``,
    ``resolve('optimal(average_of(best_of(1),best_of(2)))', kl=0.5)``.

    Args:
      name: transform name, ``optimal(<procedure or average>)`` included, or a Transform.
      kl: target KL in nats per sequence.
      calibration_samples: K of the calibration table, or None for exact calibration.

    Returns:
      ``(phi, beta)``: zero mean and unit variance under Uniform[0,1], and the KL coefficient on that scale.

    Raises:
      ValueError: unknown name, or a target out of reach.
    """
    if isinstance(name, str) and name.strip().startswith("optimal"):
        head, args = naming.parse(name, "transform")
        if head != "optimal" or len(args) != 1 or not isinstance(args[0], tuple):
            raise ValueError(f"transform {name!r} must be optimal(<procedure>), for example optimal(best_of(8))")
        inner = name.strip()[len("optimal") :].strip()[1:-1]
        phi = optimal_transform(inner, kl=kl, calibration_samples=calibration_samples).phi
    else:
        phi = transforms.from_name(name)
    phi = transforms.standardize(phi)
    return phi, theory.beta_for_kl(phi, kl, calibration_samples)
