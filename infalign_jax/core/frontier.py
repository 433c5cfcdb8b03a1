"""Win rate against KL: every transform beside the optimum, and how much a hand-picked exponential loses.

Reproduces the analytical comparison of InfAlign (arXiv 2412.19792) for any procedure, with the optimum added.
"""

import itertools
import math

import numpy as np

from infalign_jax.core import procedures, theory, transforms
from infalign_jax.core.checks import check_positive
from infalign_jax.core.optimal import optimal_transform

DEFAULT_KLS = tuple(np.linspace(0.1, 2.0, 20).round(10))

# Of transforms in figures: colours that stay apart under the colour-vision deficiencies (Okabe and Ito), and dashes besides.
_LOOKS = (("#0072b2", "-"), ("#009e73", "--"), ("#d55e00", "-."), ("#e69f00", ":"), ("#cc79a7", (0, (5, 1, 1, 1))))


def frontier(
    procedure, transforms_=("identity", "log", "exponential(10)", "optimal"), kls=DEFAULT_KLS, calibration_samples=None
):
    """Win rate of each transform at each KL.

    Args:
      procedure: procedure, average, or a name.
      transforms_: names or Transforms; ``optimal`` is the optimum for this procedure at each KL.
      kls: targets, nats per sequence.
      calibration_samples: None for exact calibration, or K: means over tables of K rollouts.

    Returns:
      A list of rows ``{procedure, transform, kl, beta, win_rate, calibration_samples}``; ``win_rate`` and ``beta`` are None
      where a transform cannot reach the KL.

    Raises:
      ValueError: an unknown name or a KL that is not positive.

    Examples:
      >>> [row] = frontier("standard", ("log",), kls=(0.6363,))
      >>> round(row["beta"], 3), round(row["win_rate"], 3)  # the best-of-4 policy against one draw
      (0.333, 0.8)
    """
    objective = procedures.from_name(procedure)
    rows = []
    for phi in transforms_:
        phi = phi if phi == "optimal" else transforms.standardize(transforms.from_name(phi))
        for kl in kls:
            check_positive("kl", float(kl))
            row = {"procedure": objective.name, "transform": getattr(phi, "name", phi), "kl": float(kl)}
            beta, win_rate = _point(objective, phi, float(kl), calibration_samples)
            rows.append(row | {"beta": beta, "win_rate": win_rate, "calibration_samples": calibration_samples})
    return rows


def _point(objective, phi, kl, calibration_samples):
    if phi == "optimal":
        found = optimal_transform(objective, kl=kl, calibration_samples=calibration_samples)
        return found.beta, found.win_rate
    try:
        beta = theory.beta_for_kl(phi, kl, calibration_samples)
    except ValueError as error:
        if "out of reach" not in str(error):
            raise
        return None, None
    return beta, theory.win_rate(objective, phi, beta, calibration_samples)


def best_exponential(procedure, kl, calibration_samples=None):
    """The t whose ``exponential(t)`` has the largest win rate at this KL, and what it and the paper's |t| = 10 lose.

    Args:
      procedure: procedure, average, or a name.
      kl: target, nats per sequence.
      calibration_samples: None for exact calibration, or K.

    Returns:
      dict with ``t``, ``win_rate``, ``optimum`` (of all transforms), ``loss = optimum - win_rate``, and for the paper's
      choice ``t_paper`` (10 or -10, the better one), ``win_rate_paper``, ``loss_paper``.

    Raises:
      ValueError: a KL out of reach.
    """
    from scipy import optimize

    objective = procedures.from_name(procedure)
    kl = check_positive("kl", kl)

    def rate(t):
        return _point(objective, transforms.standardize(transforms.exponential(t)), kl, calibration_samples)[1] or 0.0

    sizes = np.geomspace(0.05, 500.0, 24)
    grid = np.concatenate([-sizes[::-1], sizes])
    peak = int(np.argmax([rate(t) for t in grid]))
    sign, size = math.copysign(1.0, grid[peak]), math.log(abs(grid[peak]))
    step = math.log(sizes[1] / sizes[0])
    found = optimize.minimize_scalar(
        lambda x: -rate(sign * math.exp(x)),
        bounds=(size - step, size + step),
        method="bounded",
        options={"xatol": 1e-5},
    )
    paper = max((10.0, -10.0), key=rate)
    optimum = optimal_transform(objective, kl=kl, calibration_samples=calibration_samples).win_rate
    return {
        "t": sign * math.exp(found.x),
        "win_rate": -float(found.fun),
        "optimum": optimum,
        "loss": optimum + float(found.fun),
        "t_paper": paper,
        "win_rate_paper": rate(paper),
        "loss_paper": optimum - rate(paper),
    }


def figure(rows, title=None):
    """A matplotlib figure of the rows of one or several frontiers: one panel per procedure, one line per transform.

    Args:
      rows: from :func:`frontier`; several procedures may be concatenated.
      title: above all panels.

    Returns:
      The ``matplotlib.figure.Figure``; nothing is shown or written.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["procedure"] for row in rows))
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    result = Figure(figsize=(4.2 * columns, 3.4 * lines), layout="constrained")
    axes = np.ravel(result.subplots(lines, columns, squeeze=False))
    for axis, name in zip(axes, names, strict=False):
        own = [row for row in rows if row["procedure"] == name and row["win_rate"] is not None]
        for transform, look in zip(
            dict.fromkeys(row["transform"] for row in own), itertools.cycle(_LOOKS), strict=False
        ):
            points = [(row["kl"], row["win_rate"]) for row in own if row["transform"] == transform]
            best = {"color": "black", "linestyle": "-", "linewidth": 2.2, "zorder": 3}
            style = best if transform == "optimal" else {"linewidth": 1.6, "color": look[0], "linestyle": look[1]}
            axis.plot(*zip(*points, strict=True), label=transform, **style)
        axis.set(title=name, xlabel="KL from the reference (nats per sequence)", ylabel="win rate")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    for axis in axes[len(names) :]:
        axis.remove()
    if title:
        result.suptitle(title)
    return result


def minimax_average(procedure_list, kl):
    """The average of procedures whose optimum makes the largest loss against the specialists as small as it can be.

    ``min over policies of max_i (W_i* - W_i)`` at this KL, with ``W_i*`` the best win rate for procedure i alone. By duality
    (exact for convex distortions, where W_i is concave in the density) it is the optimum of an average with the weights that
    minimise ``max_f sum_i w_i (W_i(f) - W_i*)``.

    Args:
      procedure_list: procedures or names.
      kl: target, nats per sequence.

    Returns:
      ``(objective, losses)``: the average (weights below 1e-6 left out), and each procedure's loss at its optimum.

    Raises:
      ValueError: a procedure that is not convex, so that the duality does not hold, or fewer than two.
    """
    from scipy import optimize

    parts = [procedures.from_name(p) for p in procedure_list]
    if len(parts) < 2:
        raise ValueError(f"minimax_average needs at least two procedures, got {len(parts)}")
    for part in parts:
        if getattr(part, "shape", None) not in ("convex", "linear"):
            raise ValueError(f"minimax_average needs convex distortions, which {part.name} has not")
    best = np.array([optimal_transform(part, kl=kl).win_rate for part in parts])

    def average(weights):
        weights = np.clip(weights, 0.0, None) / np.sum(np.clip(weights, 0.0, None))
        kept = weights > 1e-6
        pairs = [(w, part) for w, part in zip(weights / weights[kept].sum(), parts, strict=True) if w > 1e-6]
        return procedures.average_of(pairs)

    def losses(objective):
        found = optimal_transform(objective, kl=kl)
        return best - np.array([theory.win_rate(part, found.phi, found.beta) for part in parts])

    def dual(weights):
        lost = losses(average(weights))
        return -float(weights @ lost), -lost  # its gradient, by the envelope theorem

    start = np.full(len(parts), 1 / len(parts))
    found = optimize.minimize(
        dual,
        start,
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * len(parts),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-10},
    )
    objective = average(found.x)
    return objective, losses(objective)
