"""Confidence intervals for a mean over prompts, or over prompts and training seeds, by resampling (host, float64)."""

import functools

import numpy as np


def mean_interval(values, *, seed=0, confidence=0.95, resamples=4000):
    """The mean of `values` and a bootstrap interval for it: (mean, low, high).

    values  [P], one number per prompt: the prompts are the sampling unit; or [S, P], one row per training seed: prompts
            and seeds are both sampling units, crossed (every seed is measured on the same prompts). With S = 1 nothing
            is known about the spread over seeds and the interval is over prompts only.

    confidence, resamples: level of the interval, and how often effects are drawn again for it.

    With row effects a_s (the mean of a seed minus the grand mean) and column effects b_p, a resampled mean is

        mean + c (ā* √(S/(S−1)) + b̄* √(P/(P−1))),

    ā* and b̄* being means of resampled effects. The roots undo the bootstrap's downward bias of the variance, and c is
    the ratio of Student's to the normal quantile at Satterthwaite's degrees of freedom: what three seeds do not know
    about their own spread is in the interval. Interaction of seed and prompt enters both effects, so it counts at most
    twice: the interval errs on the wide side. The same `seed` gives the same interval.

    Raises ValueError for fewer than two prompts, for non-finite values, or if `confidence` is not inside (0, 1).

    Examples:
      >>> mean_interval([1.0, 1.0])
      (1.0, 1.0, 1.0)
    """
    values_SP = np.atleast_2d(np.asarray(values, np.float64))
    if values_SP.ndim != 2 or values_SP.shape[1] < 2 or values_SP.shape[0] < 1:
        raise ValueError(
            f"an interval over prompts needs values [P] or [S, P] with P >= 2, got shape {np.shape(values)}"
        )
    if not np.isfinite(values_SP).all():
        raise ValueError(f"an interval needs finite values, got {values_SP[~np.isfinite(values_SP)][0]}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    mean = values_SP.mean()
    effects = [values_SP.mean(axis) - mean for axis in (0, 1) if values_SP.shape[1 - axis] > 1]
    deviation = sum(_resampled_means(seed, purpose, effect, resamples) for purpose, effect in enumerate(effects))
    tail = (1 - confidence) / 2
    low, high = np.quantile(deviation, [tail, 1 - tail]) * _student_over_normal(effects, tail)
    return float(mean), float(mean + low), float(mean + high)


def _resampled_means(seed, purpose, effect, resamples):
    n = len(effect)
    return _resampled_counts(seed, purpose, n, resamples) @ effect / n * np.sqrt(n / (n - 1))


@functools.lru_cache(maxsize=4)
def _resampled_counts(seed, purpose, n, resamples):
    """How often each of n units is in each resample, `[resamples, n]`: one evaluation asks for the same hundreds of times."""
    return np.random.default_rng([seed, purpose]).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def _student_over_normal(effects, tail):
    from scipy import stats

    variances = np.array([np.var(e, ddof=1) / len(e) for e in effects])
    if variances.sum() == 0:
        return 1.0
    degrees = variances.sum() ** 2 / sum(v**2 / (len(e) - 1) for v, e in zip(variances, effects, strict=True))
    return stats.t.ppf(tail, degrees) / stats.norm.ppf(tail)
