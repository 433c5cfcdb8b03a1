"""What a calibration table costs that belongs to another policy than the one that is aligned. Host code, float64.

Two cases: the reference has moved to the optimum of an earlier alignment, for which everything is known in closed form,
and any two policies, of which one has rewards of responses to the same prompts.
"""

from typing import NamedTuple

import numpy as np

from infalign_jax.core import optimal, procedures, theory, transforms
from infalign_jax.core.calibration import calibrate
from infalign_jax.core.kl_control import beta_from_samples
from infalign_jax.core.quadrature import grid
from infalign_jax.core.winrate import exact_win_rate


class Tilted(NamedTuple):
    """A transform on one table: win rates by procedure, each [P], and the mean error |û − C| of the table's quantiles."""

    win_rates: dict
    calibration_error: float


def seen_through(phi, moved, beta):
    """The transform `phi` as it acts on a reference that has moved, while the table stays that of the old one.

    The new reference is the old one's optimum for `moved` at `beta`. A response of quantile v there has the quantile
    u = G⁻¹(v) in the old table, G' = exp(moved / beta) / Z, and so is scored phi(G⁻¹(v)).

    Args:
      phi, moved: transforms.
      beta: KL coefficient of the first alignment, > 0.

    Returns:
      `Transform` of v.

    Examples:
      >>> from infalign_jax.core import transforms
      >>> best_of_2 = seen_through(transforms.identity(), transforms.log(), 1.0)  # G(u) = u²
      >>> round(float(best_of_2(0.25)), 4)
      0.5
    """
    nodes = grid(tuple(getattr(moved, "breaks", ())))
    _, cdf_M = theory.density(moved, beta, nodes)
    v_M, u_M = np.r_[0.0, cdf_M, 1.0], np.r_[0.0, nodes.u_M, 1.0]

    def function(v, xp):
        return phi(xp.interp(v, v_M, u_M))

    breaks = tuple(float(np.interp(u, u_M, v_M)) for u in getattr(phi, "breaks", ()))
    return transforms.Transform(f"{phi.name} on a stale table", function, breaks=breaks)


def moved_win_rate(procedure, method, *, kl, moved, moved_kl):
    """Win rates over a reference that has moved, of the optimum for a method: (with its own table, with the old one).

    Exact calibration on continuous rewards. Both policies spend `kl` nats on the new reference; the new reference is the
    optimum for `moved` at `moved_kl` nats from the old one, whose table is used.

    Args:
      procedure: procedure or its name.
      method, moved: transform names, such as 'exponential(10)' and 'identity'.
      kl, moved_kl: nats per sequence, > 0.

    Raises:
      ValueError: unknown name, or a KL out of reach.
    """
    law = procedures.from_name(procedure)
    phi, beta = optimal.resolve(method, kl=kl)
    stale = seen_through(phi, *optimal.resolve(moved, kl=moved_kl))
    return tuple(
        float(theory.win_rate(law, score, price))
        for score, price in ((phi, beta), (stale, theory.beta_for_kl(stale, kl)))
    )


def tilted(rewards_PM, table_PK, method, kl, names):
    """Win rates over a policy of its own optimum for a method, the quantiles being those of any table.

    The optimum is the policy's M responses to each prompt weighted by exp(phi(û) / beta), û their quantiles in the table
    and beta such that the mean KL is `kl` (`beta_from_samples`): no training, so what differs between two tables is the
    tables' doing. M in the hundreds; with few responses the weights overfit them, the same for every table.

    Args:
      rewards_PM: responses of the policy to each prompt, none of them in the table.
      table_PK: rewards of K responses of any policy to the same prompts.
      method: transform name.
      kl: nats per sequence.
      names: procedures with a distortion, as texts.

    Returns:
      `Tilted`; its error is to the policy's own quantiles.

    Raises:
      ValueError: other shapes, or a KL out of reach of M responses.
    """
    rewards_PM, table_PK = np.asarray(rewards_PM, np.float64), np.asarray(table_PK, np.float64)
    if rewards_PM.ndim != 2 or table_PK.ndim != 2 or len(rewards_PM) != len(table_PK):
        raise ValueError(
            f"rewards {rewards_PM.shape} and table {table_PK.shape} must be [P, M] and [P, K] for the same P prompts"
        )
    phi, _ = optimal.resolve(method, kl=kl, calibration_samples=table_PK.shape[1])
    u_PM, own_PM = (np.asarray(calibrate(rewards_PM, table), np.float64) for table in (table_PK, rewards_PM))
    scores_PM = np.asarray(phi(u_PM), np.float64)
    weights_PM = np.exp((scores_PM - scores_PM.max(1, keepdims=True)) / beta_from_samples(scores_PM, kl))
    weights_PM /= weights_PM.sum(1, keepdims=True)
    equal_PM = np.full_like(weights_PM, 1.0 / weights_PM.shape[1])
    wins = {name: exact_win_rate(procedures.from_name(name), weights_PM, equal_PM, rewards_PM) for name in names}
    return Tilted(wins, float(np.abs(u_PM - own_PM).mean()))
