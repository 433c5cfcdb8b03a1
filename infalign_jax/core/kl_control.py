"""The coefficient beta: where to start it for a target KL, and how to steer it there."""

import jax.numpy as jnp
import numpy as np
from scipy import optimize, special


def starting_beta(scores_PK, kl):
    """Where the beta of scores without a closed form (raw rewards) starts: the fair start that calibrated ones get from theory.

    Up to `log(K) / 2` nats it is `beta_from_samples`. K samples cannot say what a policy further away looks like: their
    tilt ends at `log K`, on one sample, and its beta falls to 0. From there beta goes on as that of a normal score,
    whose optimum spends `var(score) / (2 beta^2)` nats: as `1 / sqrt(kl)`.

    Args:
      scores_PK: float `[P, K]`, finite.
      kl: target in nats per sequence, averaged over prompts, > 0.

    Returns:
      float > 0, in score units per nat.

    Raises:
      ValueError: the scores never vary within a prompt, or have too many ties for `log(K) / 2` nats.

    Examples:
      >>> import numpy as np
      >>> scores = np.random.default_rng(0).normal(size=(200, 64))
      >>> [round(beta(scores, 4.0), 2) for beta in (starting_beta, beta_from_samples)]  # that of the law is 0.35
      [0.27, 0.04]
    """
    within = min(kl, np.log(np.shape(scores_PK)[1]) / 2)
    return beta_from_samples(scores_PK, within) * float(np.sqrt(within / kl))


def beta_from_samples(scores_PK, kl):
    """The beta at which tilting K reference samples per prompt by `exp(score / beta)` spends `kl` nats on average.

    The optimum of `E[score] - beta KL` is `pi_ref exp(score / beta) / Z`; on the K samples of a prompt its weights are
    `w = softmax(score / beta)` and its divergence `log K + sum_k w_k log w_k`.

    Args:
      scores_PK: float `[P, K]`, finite.
      kl: target in nats per sequence, averaged over prompts.

    Returns:
      float > 0, in score units per nat.

    Raises:
      ValueError: the scores never vary within a prompt, or `kl` is more than K samples can express.

    Examples:
      >>> import numpy as np
      >>> scores = np.array([[0.0, 1.0]])
      >>> round(beta_from_samples(scores, 0.1109), 3)  # softmax((0, 1)) is off uniform by this KL
      1.0
    """
    scores_PK = np.asarray(scores_PK, np.float64)
    log_K = np.log(scores_PK.shape[1])

    def mean_kl(log_beta):
        log_w_PK = special.log_softmax(scores_PK * np.exp(-log_beta), axis=1)
        return float(np.mean(log_K + np.sum(np.exp(log_w_PK) * log_w_PK, axis=1)))

    spread = scores_PK.std(axis=1).max()
    if not spread > 0:
        raise ValueError("the reference rewards do not vary within any prompt, so no beta reaches a positive KL")
    low, high = np.log(spread) - 12.0, np.log(spread) + 12.0
    if not mean_kl(high) < kl < mean_kl(low):
        raise ValueError(
            f"a KL of {kl:.3g} nats is out of reach of these scores: {scores_PK.shape[1]} samples span (0, {mean_kl(low):.3g})"
        )
    return float(np.exp(optimize.brentq(lambda x: mean_kl(x) - kl, low, high, xtol=1e-10)))


def steer_log_beta(log_beta, kl, target_kl, rate):
    """One step of the controller `log beta += rate * clip(KL / target - 1, -1/2, 1)`.

    Args:
      log_beta: float32 scalar (kept an array so that the train step never retraces).
      kl: measured KL of this step's rollouts, nats per sequence.
      target_kl: nats per sequence, > 0.
      rate: float >= 0; 0 keeps beta fixed.

    Returns:
      float32 scalar.

    Examples:
      >>> round(float(steer_log_beta(0.0, kl=0.6, target_kl=0.5, rate=0.1)), 3)
      0.02
    """
    return log_beta + rate * jnp.clip(kl / target_kl - 1.0, -0.5, 1.0)
