"""Measuring a policy on the held-out prompts: rewards of M responses to each, the exact KL, and the weights at a target KL."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from infalign_jax.core.masking import masked_sum
from infalign_jax.sampling.log_probs import completion_statistics
from infalign_jax.stages.experiment import draw
from infalign_jax.stages.scoring import first_completions, score_rollouts
from infalign_jax.training import mesh as meshes
from infalign_jax.training.calls import in_calls

MAX_ALPHA = 1.1  # a policy is extrapolated at most 10 % beyond what was trained


class Measurement(NamedTuple):
    """A policy on the held-out prompts: M responses to each.

    alpha: weight of the trained policy in the interpolation with the reference.
    kl_P: exact KL to the reference, nats per sequence, averaged over the prompt's responses.
    rewards: {'train': [P, M], 'gold': [P, M]}, by judge.
    completions: M texts for each of the first prompts, those that the report shows.
    ended_PM: false where a response was cut at the limit.
    """

    alpha: float
    kl_P: np.ndarray
    rewards: dict
    completions: list
    ended_PM: np.ndarray


class Pooled(NamedTuple):
    """Measurements of the policies of S training seeds, at the same place of their curves."""

    alpha_S: np.ndarray
    kl_SP: np.ndarray
    rewards: dict  # by judge, [S, P, M]
    completions: list  # of the first seed
    ended_SPM: np.ndarray


def pool(measurements):
    """Several seeds' `Measurement`s as one `Pooled`."""
    alpha, kl, rewards, completions, ended = zip(*measurements, strict=True)
    rewards = {judge: np.stack([r[judge] for r in rewards]) for judge in rewards[0]}
    return Pooled(np.array(alpha), np.stack(kl), rewards, completions[0], np.stack(ended))


@functools.partial(jax.jit, static_argnums=0)
def sequence_kl(model, variables, reference_variables, prompt_tokens_BS, prompt_lengths_B, tokens_BRC, mask_BRC):
    """Exact full-vocabulary KL along each sampled response, `[B, R]` nats: its mean is KL(policy || reference)."""
    prompt = prompt_tokens_BS, prompt_lengths_B, tokens_BRC
    _, _, kl_BRC, _ = completion_statistics(model, variables, reference_variables, *prompt)
    return masked_sum(kl_BRC, mask_BRC)


def make_step(experiment, reference_variables, prompts, judges):
    """The step `(variables, purpose, alpha) -> Measurement` on the held-out prompts.

    The random bits depend on `purpose` alone, so measurements of one purpose share them: differences between policies
    (and between interpolation weights) are not drowned by sampling noise.
    """
    config = experiment.config
    P, M, size = len(prompts.texts), config.evaluate.samples, config.evaluate.prompts_per_call

    def one_call(variables, rows, purpose):
        rollouts = draw(experiment, variables, prompts, rows, rollouts=M, purpose=purpose)
        encoded = meshes.put_batch(experiment.mesh, (prompts.tokens_PS[rows], prompts.lengths_P[rows]))
        kl_BM = sequence_kl(
            experiment.model, variables, reference_variables, *encoded, rollouts.tokens_BRC, rollouts.mask_BRC
        )
        distinct = list(dict.fromkeys(judges.values()))  # the training reward may be its own judge
        texts = [prompts.texts[i] for i in rows]
        arrays, ended_BM = score_rollouts(experiment, rollouts, texts, distinct, "evaluate")
        rewards = {name: arrays[distinct.index(judge)] for name, judge in judges.items()}
        completions = first_completions(experiment, rollouts, min(size, config.evaluate.show - rows[0]))
        return completions, (meshes.fetch(kl_BM), rewards, ended_BM)

    def step(variables, purpose, alpha):
        completions = []

        def call(rows):
            shown, arrays = one_call(variables, rows, purpose)
            completions.extend(shown)
            return arrays

        kl_PM, rewards, ended_PM = in_calls(call, P, size)
        rewards = {name: rewards[name] for name in judges}  # in their order
        return Measurement(alpha, kl_PM.mean(1), rewards, completions[:P], ended_PM)

    return step


def at_equal_kl(measure, target_kl, tolerance, known=(), tries=8):
    """Interpolates (at most to MAX_ALPHA) until the measured KL is within `tolerance` of the target.

    KL grows about like a power of alpha, so the search is a secant in logarithms.

    Args:
      measure: `alpha -> Measurement`.
      target_kl: nats per sequence.
      tolerance: relative.
      known: measurements at other alphas > 0, ascending, from which the search goes on.
      tries: further measurements at most.

    Returns:
      The measurement nearest the target.
    """
    made = list(known)
    for _ in range(tries):
        alpha = _next_alpha(made, target_kl)
        made.append(measure(alpha))
        kl = float(made[-1].kl_P.mean())
        if abs(kl / target_kl - 1) <= tolerance or (alpha == MAX_ALPHA and kl < target_kl):
            break
    return min(made, key=lambda m: abs(float(m.kl_P.mean()) - target_kl))


def _next_alpha(made, target_kl):
    """Where the line through the last two measurements, in logarithms, has the target KL."""
    if not made:
        return 1.0
    alphas, kls = np.array([(m.alpha, max(float(m.kl_P.mean()), 1e-9)) for m in made[-2:]]).T
    power = 2.0
    if len(made) > 1:
        power = np.clip(np.diff(np.log(kls)) / np.diff(np.log(alphas)), 0.5, 8.0).item()
    return float(min(alphas[-1] * (target_kl / kls[-1]) ** (1 / power), MAX_ALPHA))
