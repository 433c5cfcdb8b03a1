"""Inference-time win rates: exact for finite outcomes, unbiased with intervals from samples.

W(π ≻ π_ref) = E[1{r(y) > r(z)} + ½ 1{r(y) = r(z)}], y and z being what an inference-time procedure (best-of-N, ...)
returns for the policy and for the reference (InfAlign, arXiv 2412.19792). A procedure acts on the cumulative
distribution of rewards by a distortion g and on m samples by the weights of their ranks. Host code, float64.
"""

from typing import NamedTuple

import numpy as np

from infalign_jax.core import bootstrap
from infalign_jax.core.checks import check_finite


class Estimate(NamedTuple):
    """A mean with its interval: `value`, `low`, `high`, and what was averaged, `per_prompt` [P] or [S, P]."""

    value: float
    low: float
    high: float
    per_prompt: np.ndarray


def exact_win_rate(procedure, policy_probs, reference_probs, rewards):
    """The win rate of a known policy over finitely many outcomes, ties ½ (no sampling, no gradient).

    policy_probs, reference_probs [..., V] sum to 1 over the outcomes and `rewards` [..., V] scores them; leading axes
    broadcast, and a batch is a batch of prompts. With levels k of equal reward and B_k, A_k the mass of policy and
    reference at or below level k,

        W = Σ_k [g(B_k) − g(B_{k−1})] · ½ [g(A_k) + g(A_{k−1})],

    which follows from a level's mass after the procedure, g(B_k) − g(B_{k−1}). An objective (`average_of`) gives the
    weighted mean of its parts' win rates. Returns float64 [...] in [0, 1].
    Raises ValueError for negative or non-finite probabilities, sums off 1 by more than 1e-5, non-finite rewards, and a
    procedure whose law is no distortion.

    Examples:
      >>> from infalign_jax.core import procedures
      >>> float(exact_win_rate(procedures.best_of(2), [0.0, 1.0], [0.5, 0.5], [0.0, 1.0]))  # 1/4 + 3/4 * 1/2
      0.625
    """
    policy, reference = _probabilities("policy_probs", policy_probs), _probabilities("reference_probs", reference_probs)
    policy, reference, rewards = np.broadcast_arrays(policy, reference, check_finite("rewards", rewards))
    order = np.argsort(rewards, axis=-1, kind="stable")
    rewards, policy, reference = (np.take_along_axis(x, order, -1) for x in (rewards, policy, reference))
    level_ends = np.concatenate([rewards[..., 1:] > rewards[..., :-1], np.ones_like(rewards[..., :1], bool)], -1)
    policy, reference = _level_masses(policy, level_ends), _level_masses(reference, level_ends)

    def win(part):
        if part.distortion is None:
            raise ValueError(f"{part.name} has no distortion, so its win rate over finite outcomes has no closed form")
        (policy_below, policy_up_to), (below, up_to) = (
            [part.distortion(x) for x in pair] for pair in (policy, reference)
        )
        return np.sum((policy_up_to - policy_below) * (up_to + below) / 2, axis=-1, where=level_ends)

    return sum(weight * win(part) for weight, part in procedure.parts)


def _level_masses(probs, level_ends):
    """The mass below and up to each level; only the entries where `level_ends` mean anything."""
    cumulative = np.minimum(np.cumsum(probs, -1), 1.0)
    cumulative[..., -1] = 1.0
    up_to = np.where(level_ends, cumulative, 0.0)
    below = np.maximum.accumulate(np.concatenate([np.zeros_like(up_to[..., :1]), up_to[..., :-1]], -1), -1)
    return below, up_to


def win_rate_per_prompt(procedure, policy_rewards, reference_rewards):
    """The unbiased win rate of each prompt, from m and l independent samples of its policy and its reference.

    policy_rewards [..., m], reference_rewards [..., l] -> float64 [...] in [0, 1], leading axes broadcasting. With w_j
    the probability that the j-th smallest sample is the one returned when the procedure runs on a random subset,

        W = Σ_ij w_i w_j (1{r_i > r_j} + ½ 1{r_i = r_j}):

    the average of the win over all pairs of subsets, hence unbiased, with the least variance the samples allow. An
    objective (`average_of`) gives the weighted mean of its parts' win rates. `rewind_and_repeat` looks at calibrated
    rewards, here the ranks among reference_rewards: consistent, as its threshold is estimated, but not unbiased.
    Raises ValueError for non-finite rewards, and (from the procedure) for fewer samples than one selection needs.
    """
    policy, reference = (
        check_finite("policy_rewards", policy_rewards),
        check_finite("reference_rewards", reference_rewards),
    )
    if policy.ndim < 1 or reference.ndim < 1:
        raise ValueError(f"rewards need a sample axis, got shapes {policy.shape} and {reference.shape}")
    # The last axis: parts of the procedure, one unless it is an average of several.
    policy_weights, reference_weights = (_weights(procedure, x.shape[-1]) for x in (policy, reference))
    share_L = np.array([weight for weight, _ in procedure.parts])

    def one_prompt(policy_M, reference_M):
        policy_M, reference_M = np.sort(policy_M), np.sort(reference_M)
        beaten_ML = np.pad(np.cumsum(reference_weights(reference_M, reference_M), 0), ((1, 0), (0, 0)))
        below_ML, up_to_ML = (beaten_ML[np.searchsorted(reference_M, policy_M, side)] for side in ("left", "right"))
        return np.sum(policy_weights(policy_M, reference_M) * (below_ML + up_to_ML) / 2, 0) @ share_L

    return np.vectorize(one_prompt, signature="(m),(l)->()", otypes=[np.float64])(policy, reference)


def _weights(procedure, samples):
    """`(ascending rewards [M], ascending reference rewards) -> [M, L]`: with which probability each part returns each."""
    by_rank = [None if part.value_weights else part.rank_weights(samples) for _, part in procedure.parts]

    def weights(rewards_M, reference_M):
        u_M = sum(np.searchsorted(reference_M, rewards_M, side) for side in ("left", "right")) / (2 * len(reference_M))
        return np.stack(
            [
                w_M if w_M is not None else part.value_weights(u_M)
                for w_M, (_, part) in zip(by_rank, procedure.parts, strict=True)
            ],
            -1,
        )

    return weights


def estimate_win_rate(
    procedure, policy_rewards_PM, reference_rewards_PM, *, seed=0, confidence=0.95, resamples=4000
) -> Estimate:
    """The mean over prompts of `win_rate_per_prompt`, with a bootstrap interval over prompts (arXiv 2412.19792).

    policy_rewards_PM and reference_rewards_PM hold the rewards of independent samples for the same prompts, in the same
    order; the numbers of samples may differ. With a leading axis [S, P, M] of training seeds (on either side or both)
    the interval, at the level `confidence` and from so many `resamples`, is over prompts *and* seeds
    (`bootstrap.mean_interval`). Every number lies in [0, 1]; the same `seed` gives the same interval.
    Raises ValueError for other shapes, one prompt only, non-finite rewards, or fewer samples than the procedure draws.

    Examples:
      >>> from infalign_jax.core import procedures
      >>> estimate_win_rate(procedures.standard(), [[1.0, 3.0], [1.0, 3.0]], [[2.0, 0.0], [2.0, 0.0]]).value
      0.75
    """
    _check_prompts(policy=policy_rewards_PM, reference=reference_rewards_PM)
    per_prompt = win_rate_per_prompt(procedure, policy_rewards_PM, reference_rewards_PM)
    value, low, high = bootstrap.mean_interval(per_prompt, seed=seed, confidence=confidence, resamples=resamples)
    return Estimate(value, max(low, 0.0), min(high, 1.0), per_prompt)


def paired_difference(
    procedure,
    policy_rewards_PM,
    baseline_rewards_PM,
    reference_rewards_PM,
    *,
    seed=0,
    confidence=0.95,
    resamples=4000,
) -> Estimate:
    """Win rate of a policy minus win rate of a baseline, both against the same reference samples, prompt by prompt.

    procedure, policy_rewards_PM, reference_rewards_PM, confidence, resamples, seeds and errors as in `estimate_win_rate`;
    baseline_rewards_PM without a seed axis is compared with every seed. What the two share (the difficulty of a prompt,
    the luck of the reference samples) cancels, so an interval above 0 is the claim "better on such prompts". Numbers lie
    in [−1, 1].
    """
    _check_prompts(policy=policy_rewards_PM, baseline=baseline_rewards_PM, reference=reference_rewards_PM)
    policy = win_rate_per_prompt(procedure, policy_rewards_PM, reference_rewards_PM)
    baseline = win_rate_per_prompt(procedure, baseline_rewards_PM, reference_rewards_PM)
    per_prompt = policy - baseline
    value, low, high = bootstrap.mean_interval(per_prompt, seed=seed, confidence=confidence, resamples=resamples)
    return Estimate(value, max(low, -1.0), min(high, 1.0), per_prompt)


def _check_prompts(**rewards):
    shapes = {name: np.shape(values) for name, values in rewards.items()}
    told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    if any(len(shape) not in (2, 3) for shape in shapes.values()):
        raise ValueError(f"rewards must be [P, M], or [S, P, M] for several training seeds, got {told}")
    if len({shape[-2] for shape in shapes.values()}) > 1:
        raise ValueError(f"all rewards must be for the same prompts (second axis from the end), got {told}")
    if len({shape[0] for shape in shapes.values() if len(shape) == 3}) > 1:
        raise ValueError(f"all rewards must be for the same training seeds (first of three axes), got {told}")


def _probabilities(name, probs):
    probs = check_finite(name, probs)
    if probs.ndim < 1 or (probs < 0).any():
        raise ValueError(f"{name} must be probabilities [..., V], got shape {probs.shape} and minimum {probs.min()}")
    total = probs.sum(-1, keepdims=True)
    if (abs(total - 1) > 1e-5).any():
        raise ValueError(f"{name} must sum to 1 over the last axis, got {total.flat[np.argmax(abs(total - 1))]}")
    return probs / total
