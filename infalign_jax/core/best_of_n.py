"""The best-of-n policy as a target: which responses it would return, its KL, and the n of a KL."""

import numpy as np
from scipy import optimize

from infalign_jax.core.checks import check_finite


def best_of_n_kl(n):
    """KL of the best-of-n policy to the reference, `log n - (n - 1) / n` nats, for rewards without ties; n >= 1 is real.

    Examples:
      >>> round(best_of_n_kl(4), 4)
      0.6363
    """
    return float(np.log(n) - (n - 1) / n)


def n_for_kl(kl):
    """The real n > 1 whose best-of-n policy, of density `n u^(n-1)`, spends `kl` nats.

    Raises:
      ValueError: `kl` is not in (0, 30).

    Examples:
      >>> round(n_for_kl(best_of_n_kl(4)), 6)
      4.0
    """
    if not 0 < kl < 30:
        raise ValueError(f"best-of-n with a KL of {kl} nats is out of reach; it must lie in (0, 30)")
    return float(np.exp(optimize.brentq(lambda x: best_of_n_kl(np.exp(x)) - kl, 0.0, 40.0, xtol=1e-12)))


def best_of_n_weights(rewards_PK, n):
    """Probabilities with which best-of-n returns each of K responses, when it draws from these K with replacement.

        w_k = (U_k^n - L_k^n) / (number of responses tied with k)

    U_k and L_k being the shares of responses whose reward is at most, and below, that of k. For n real it is the policy
    of density `n u^(n-1)`; a negative n is worst-of-|n|.

    Args:
      rewards_PK: float `[P, K]`, finite.
      n: |n| >= 1.

    Returns:
      float64 `[P, K]`, each row summing to 1.

    Raises:
      ValueError: |n| < 1, or a reward is not finite.

    Examples:
      >>> best_of_n_weights([[1.0, 2.0]], 2).tolist()  # two draws with replacement: 1/4 miss the better one
      [[0.25, 0.75]]
    """
    if not abs(n) >= 1:
        raise ValueError(f"best-of-n needs n of at least 1, got {n}")
    rewards_PK = np.sign(n) * check_finite("rewards", rewards_PK)
    ranked_PK = np.sort(rewards_PK, axis=1)
    places = [
        np.stack([np.searchsorted(row, own, side) for row, own in zip(ranked_PK, rewards_PK, strict=True)])
        for side in ("left", "right")
    ]
    below_PK, up_to_PK = places
    K = rewards_PK.shape[1]
    return ((up_to_PK / K) ** abs(n) - (below_PK / K) ** abs(n)) / (up_to_PK - below_PK)
