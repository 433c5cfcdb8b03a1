"""Rollouts to rewards: each process decodes and scores what its own devices have drawn, and all get the whole.

Some are shown to the people who wait.
"""

import numpy as np

from infalign_jax.data.tokenize import decode_completions
from infalign_jax.reporting import samples
from infalign_jax.stages.experiment import draw
from infalign_jax.stages.reward import score
from infalign_jax.training import mesh as meshes
from infalign_jax.training.calls import in_calls
from infalign_jax.training.distributed import is_first, many

KEPT_PROMPTS = 2  # of a batch whose responses are kept


def score_rollouts(experiment, rollouts, prompt_texts, rewards, where):
    """Rewards of rollouts, checked, with cut responses treated as the config says.

    A reward that runs on the mesh (a model of ours; it says so by an attribute `on_mesh`) is computed by all processes
    together. Any other is called by each process with the rollouts of its own rows alone, so that slow rewards take as
    many times less as there are hosts.

    Args:
      experiment: an `Experiment`.
      rollouts: `Rollouts` of B prompts.
      prompt_texts: B strings.
      rewards: functions as from `open_reward`.
      where: words for errors.

    Returns:
      A list of float32 [B, R], one for each of `rewards`, and ended_BR, bool; the same on every process.

    Raises:
      ValueError: as `score`; where another process raised it, that it did.
    """
    B, R, _ = rollouts.tokens_BRC.shape
    ended_BR = meshes.fetch(rollouts.ended_BR)
    own = _decode(experiment, rollouts, prompt_texts)
    sampling, arrays = experiment.config.sampling, []
    for reward in rewards:
        on_mesh = many() and getattr(reward, "on_mesh", False)
        rows, prompts, completions = _decode_all(experiment, rollouts, prompt_texts) if on_mesh else own
        error, found = None, np.zeros(0, np.float32)
        try:
            if prompts:  # a process whose devices only repeat others' rows has none of its own
                found = score(
                    reward, prompts, completions, ended_BR[rows].reshape(-1), truncated=sampling.truncated,
                    penalty=sampling.penalty, where=where,
                )  # fmt: skip
        except ValueError as raised:
            if not many() or on_mesh:
                raise
            error, found = raised, np.full(len(prompts), np.nan, np.float32)
        found_BR = found.reshape(len(rows), R)
        arrays.append(found_BR if on_mesh else meshes.join_rows(rows, found_BR, B))
        if error is not None:
            raise error
        if np.isnan(arrays[-1]).any():
            raise ValueError(f"{where}: another process could not score its rollouts, and has said why")
    return arrays, ended_BR


def scored_rollouts(experiment, variables, reward, prompts, rollouts, size, purpose):
    """New responses to all of some `Prompts`, drawn and scored `size` prompts at once.

    Args:
      experiment: an `Experiment`.
      variables: of the policy.
      reward: as from `open_reward`.
      prompts: `Prompts`.
      rollouts: R, responses to each.
      size: prompts at once.
      purpose: what the random bits depend on, and words for errors.

    Returns:
      tokens [P,R,C], mask [P,R,C] bool and rewards [P,R], on the host of every process.
    """

    def call(rows):
        drawn = draw(experiment, variables, prompts, rows, rollouts=rollouts, purpose=purpose)
        (rewards_BR,), _ = score_rollouts(experiment, drawn, [prompts.texts[i] for i in rows], [reward], purpose)
        tokens_BRC, mask_BRC = meshes.fetch((drawn.tokens_BRC, drawn.mask_BRC))
        return tokens_BRC, mask_BRC.astype(bool), rewards_BR

    return in_calls(call, len(prompts.texts), size)


def first_completions(experiment, rollouts, count):
    """The R completions of each of the first `count` prompts, as lists of texts; the same on every process."""
    R = rollouts.tokens_BRC.shape[1]
    if count <= 0:
        return []
    texts = _texts(experiment, *(x[:count] for x in meshes.fetch((rollouts.tokens_BRC, rollouts.mask_BRC))))
    return [texts[i : i + R] for i in range(0, len(texts), R)]


def show_responses(experiment, folder, title, step, prompt_texts, rollouts, rewards_BR, responses):
    """Prints the responses to the first prompt of a batch, and keeps those to the first two: `reporting.samples`.

    Args:
      experiment: an `Experiment`.
      folder: the policy's.
      title: the policy's, for the terminal.
      step: number of updates behind it.
      prompt_texts: B strings.
      rollouts: `Rollouts` of B prompts.
      rewards_BR: their rewards, on the host.
      responses: `calibrated` and `advantage`, each `[B, R]`, on the devices.
    """
    count = min(KEPT_PROMPTS, len(prompt_texts))
    completions = first_completions(experiment, rollouts, count)
    numbers = {"reward": rewards_BR, **meshes.fetch(responses)}
    rows = [
        {"prompt": prompt_texts[b], "response": text, **{name: float(x[b, r]) for name, x in numbers.items()}}
        for b in range(count)
        for r, text in enumerate(completions[b])
    ]
    if is_first():
        samples.add(folder, step, rows)
        samples.show(f"{title}, step {step}", rows[: rewards_BR.shape[1]])


def _decode(experiment, rollouts, prompt_texts):
    """(rows, prompts, completions) of the rows that this process answers for; the last two are flat, `[rows * R]`."""
    rows, arrays = meshes.own_rows(experiment.mesh, (rollouts.tokens_BRC, rollouts.mask_BRC))
    return rows, _repeat(prompt_texts, rows, rollouts), _texts(experiment, *arrays)


def _decode_all(experiment, rollouts, prompt_texts):
    rows, arrays = np.arange(len(prompt_texts)), meshes.fetch((rollouts.tokens_BRC, rollouts.mask_BRC))
    return rows, _repeat(prompt_texts, rows, rollouts), _texts(experiment, *arrays)


def _repeat(prompt_texts, rows, rollouts):
    return [prompt_texts[row] for row in rows for _ in range(rollouts.tokens_BRC.shape[1])]


def _texts(experiment, tokens_BRC, mask_BRC):
    C = tokens_BRC.shape[-1]
    return decode_completions(experiment.tokenizer, tokens_BRC.reshape(-1, C), mask_BRC.reshape(-1, C))
