"""Is the calibration right? Checks on reference rollouts that were not used to make the table. Host code, float64.

All rewards of a prompt are calibrated against one table, so their u are dependent: a Kolmogorov-Smirnov test of the
pooled u rejects correct tables. What is true without any assumption, ties included, is that table and held-out rewards
of a prompt are exchangeable if policy and reward are those of the table; everything here rests on that and on prompts
being independent.
"""

from typing import NamedTuple

import numpy as np

from infalign_jax.core import bootstrap

ORDERS = 4  # shape components of the test: location, spread, skewness, tails


class Uniformity(NamedTuple):
    """`p_value` of the whole table, corrected for all tests made; `p_by_group`, corrected within the group;
    `mean_u_by_group`, the mean calibrated reward of its held-out rollouts (½ if right): which way it is off."""

    p_value: float
    p_by_group: dict
    mean_u_by_group: dict


class Reliability(NamedTuple):
    """At each of `levels`, the fraction of held-out rollouts at or below that quantile; an interval over prompts."""

    levels: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray


class CalibrationError(NamedTuple):
    """Expected |û − C| with its interval, and the root mean square it comes from."""

    absolute: float
    low: float
    high: float
    root_mean_square: float


def uniformity_test(held_out_rewards, reference_rewards, *, groups=None, seed=0, permutations=200) -> Uniformity:
    """Tests that held-out reference rewards are calibrated by the table: a small p-value says they are not.

    held_out_rewards, reference_rewards: per prompt a row of rewards ([P, R] and [P, K] arrays, or rows of any lengths,
    table entries that do not count left out). groups [P]: names that split the prompts (default: one group "all").

    For each prompt the pooled mid-ranks are mapped by the first ORDERS Legendre polynomials (Neyman's smooth test) and
    summed over the held-out rewards: T_p, whose mean 0 and covariance V_p under exchangeability are exact, ties or not.
    Two questions for each group: does the group drift as a whole, (Σ T_p)ᵀ (Σ V_p)⁺ (Σ T_p) against χ², and do its
    prompts scatter more than they should, as when tables are attached to the wrong prompts: Σ T_pᵀ V_p⁺ T_p against its
    mean and spread over `permutations` random relabellings (from `seed`) of each prompt's rewards. Bonferroni over both,
    and over groups.
    Raises ValueError for different numbers of prompts, an empty row, or a non-finite reward.
    """
    from scipy import stats

    held_out, reference = _rows("held_out_rewards", held_out_rewards), _rows("reference_rewards", reference_rewards)
    _same_prompts(held_out, reference)
    names = np.array(["all"] * len(held_out)) if groups is None else np.asarray(groups)
    if len(names) != len(held_out):
        raise ValueError(f"groups has {len(names)} entries for {len(held_out)} prompts")
    rng = np.random.default_rng(seed)
    parts = [_prompt_statistics(h, r, rng, permutations) for h, r in zip(held_out, reference, strict=True)]
    p_by_group, mean_u = {}, {}
    for name in dict.fromkeys(names.tolist()):
        members = [part for part, mine in zip(parts, names == name, strict=True) if mine]
        sums, covariances, scatter, expected, variance, u = (np.array(x) for x in zip(*members, strict=True))
        total, covariance = sums.sum(0), covariances.sum(0)
        drift = total @ np.linalg.pinv(covariance, hermitian=True) @ total
        rank = np.linalg.matrix_rank(covariance, hermitian=True)
        p_drift = stats.chi2.sf(drift, rank) if rank else 1.0
        spread = np.sqrt(variance.sum())
        p_scatter = stats.norm.sf((scatter.sum() - expected.sum()) / spread) if spread > 0 else 1.0
        p_by_group[name] = float(min(1.0, 2 * min(p_drift, p_scatter)))
        mean_u[name] = float(u.mean())
    return Uniformity(float(min(1.0, len(p_by_group) * min(p_by_group.values()))), p_by_group, mean_u)


def _prompt_statistics(held_out, reference, rng, permutations):
    """T, V, Tᵀ V⁺ T, its mean and variance over relabellings, and the mean calibrated reward of one prompt."""
    pooled = np.concatenate([held_out, reference])
    n, r = len(pooled), len(held_out)
    scores = _legendre((_below(pooled, pooled) + _up_to(pooled, pooled)) / (2 * n))
    scores -= scores.mean(0)
    covariance = r * (n - r) / (n * (n - 1)) * scores.T @ scores
    inverse = np.linalg.pinv(covariance, rcond=1e-9, hermitian=True)
    total = scores[:r].sum(0)
    chosen = rng.permuted(np.tile(np.arange(n), (permutations, 1)), axis=1)[:, :r]
    relabelled = scores[chosen].sum(1)
    null = np.einsum("bi,ij,bj->b", relabelled, inverse, relabelled)
    u = (_below(held_out, reference) + _up_to(held_out, reference)) / (2 * len(reference))
    expected = np.linalg.matrix_rank(covariance, tol=1e-9, hermitian=True)  # trace of V⁺V
    return total, covariance, total @ inverse @ total, expected, null.var(), u.mean()


def _legendre(u):
    return np.stack([np.polynomial.legendre.Legendre.basis(j, [0, 1])(u) for j in range(1, ORDERS + 1)], -1)


def reliability_curve(held_out_rewards, reference_rewards, *, levels=None, confidence=0.95) -> Reliability:
    """How often held-out rewards lie at or below each level of their calibrated reward: the diagonal if it is right.

    With b table rewards below and e equal to it, a held-out reward counts clip((q (K + 1) − b)/(e + 1), 0, 1) at level
    q: the chance that its place among the K + 1 rewards, ties broken at random, is at or below q. Its mean is exactly q
    for every K and any ties, so the curve has no bias that a reader must know about. Intervals are Student's over
    prompts, at the level `confidence`. levels: in (0, 1), default 0.05 … 0.95. held_out_rewards, reference_rewards and
    errors as in `uniformity_test`; two prompts at least.
    """
    from scipy import stats

    held_out, reference = _rows("held_out_rewards", held_out_rewards), _rows("reference_rewards", reference_rewards)
    _same_prompts(held_out, reference)
    if len(held_out) < 2:
        raise ValueError(f"an interval over prompts needs at least two prompts, got {len(held_out)}")
    levels = np.linspace(0.05, 0.95, 19) if levels is None else np.asarray(levels, np.float64)

    def one_prompt(held, table):
        below, up_to = _below(held, table)[:, None], _up_to(held, table)[:, None]
        return np.clip((levels * (len(table) + 1) - below) / (up_to - below + 1), 0, 1).mean(0)

    counts_PM = np.array([one_prompt(h, t) for h, t in zip(held_out, reference, strict=True)])
    observed = counts_PM.mean(0)
    half = stats.t.ppf((1 + confidence) / 2, len(counts_PM) - 1) * counts_PM.std(0, ddof=1) / np.sqrt(len(counts_PM))
    return Reliability(levels, observed, np.clip(observed - half, 0, 1), np.clip(observed + half, 0, 1))


def calibration_error(u, held_out_rewards, *, seed=0, confidence=0.95) -> CalibrationError:
    """The expected error of any calibration (ranks, tails, a network), from held-out reference rewards.

    u: the calibrated values of `held_out_rewards`, [P, R] or rows, computed without looking at these rewards; R >= 3.
    With h_j = 1{r_j < r_i} + ½ 1{r_j = r_i}, an unbiased draw of C(r_i), the mean over i and j ≠ l (both ≠ i) of
    (u_i − h_j)(u_i − h_l) is an unbiased estimate of E (û − C)². Its bootstrap interval over prompts, at the level
    `confidence` and from `seed`, is that of the root mean square. The expected absolute error is the fraction
    √(2/π)·(π/8)·√6 ≈ 0.767 of it: exact in the limit of large K for ranks among K rollouts (error normal with variance
    C (1 − C)/K, so that E|û − C| = 0.313/√K), and an approximation for other calibrations. Raises ValueError for mismatched rows or fewer than three rewards in one.
    """
    calibrated, held_out = _rows("u", u), _rows("held_out_rewards", held_out_rewards)
    _same_prompts(calibrated, held_out)

    def squared(u_R, rewards_R):
        if len(u_R) != len(rewards_R) or len(u_R) < 3:
            raise ValueError(
                f"each prompt needs one u per held-out reward, three at least: {len(u_R)}, {len(rewards_R)}"
            )
        apart = rewards_R[:, None] - rewards_R[None, :]
        misses = u_R[:, None] - (apart > 0) - 0.5 * (apart == 0)
        misses[np.diag_indices_from(misses)] = 0
        pairs = (len(u_R) - 1) * (len(u_R) - 2)
        return np.mean((misses.sum(1) ** 2 - (misses**2).sum(1)) / pairs)

    squares = [squared(u_R, rewards_R) for u_R, rewards_R in zip(calibrated, held_out, strict=True)]
    mean, low, high = bootstrap.mean_interval(squares, seed=seed, confidence=confidence)
    root, low, high = (float(np.sqrt(max(x, 0.0))) for x in (mean, low, high))
    ratio = np.sqrt(2 / np.pi) * np.pi / 8 * np.sqrt(6)
    return CalibrationError(ratio * root, ratio * low, ratio * high, root)


def rollouts_needed(error, confidence=None):
    """The rollouts K per prompt that make ranks accurate enough; a whole number.

    Without `confidence`: expected |Ĉ − C| ≤ error, K = (√(π/32) / error)² ≈ (0.313/error)², the mean being over a
    table and a reference response. With it: |Ĉ − C| ≤ error with at least that probability. Both take the error as
    normal with variance C (1 − C)/K, C uniform. Raises ValueError unless 0 < error < ½ and 0 < confidence < 1.

    Examples:
      >>> rollouts_needed(0.05)
      40
    """
    if not 0 < error < 0.5:
        raise ValueError(f"error must lie between 0 and 0.5 (in units of u), got {error}")
    if confidence is None:
        return int(np.ceil(np.pi / 32 / error**2))
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    from scipy import optimize, special

    nodes, weights = np.polynomial.legendre.leggauss(200)
    spread = np.sqrt((1 - nodes**2) / 4)

    def shortfall(log_k):
        return weights @ special.erf(error * np.exp(log_k / 2) / (spread * np.sqrt(2))) / 2 - confidence

    return int(np.ceil(np.exp(optimize.brentq(shortfall, -20, 60)) - 1e-9))


def _below(values, table):
    return np.searchsorted(np.sort(table), values, "left")


def _up_to(values, table):
    return np.searchsorted(np.sort(table), values, "right")


def _rows(name, values):
    rows = [np.asarray(row, np.float64).reshape(-1) for row in values]
    for p, row in enumerate(rows):
        if not len(row) or not np.isfinite(row).all():
            bad = "no value" if not len(row) else row[~np.isfinite(row)][0]
            raise ValueError(f"{name} of prompt {p} has {bad}; every prompt needs finite values")
    if not rows:
        raise ValueError(f"{name} has no prompt")
    return rows


def _same_prompts(first, second):
    if len(first) != len(second):
        raise ValueError(f"both arguments must be of the same prompts, got {len(first)} and {len(second)} rows")
