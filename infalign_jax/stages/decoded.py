"""Deployed by blockwise decoding, which chooses before a response is whole: rewards of what it returns, for win rates."""

import functools

import jax
import numpy as np

from infalign_jax.models import heads, hf
from infalign_jax.sampling.blockwise import blockwise
from infalign_jax.sampling.sampler import Rollouts
from infalign_jax.stages.prefix_scorer import FOLDER
from infalign_jax.stages.reward import reward_shapes
from infalign_jax.stages.scoring import score_rollouts
from infalign_jax.training import checkpoints
from infalign_jax.training.calls import in_calls
from infalign_jax.training.seeds import key_for

_score = jax.jit(heads.reward, static_argnums=0)


def open_scorer(experiment):
    """What `sampling.blockwise` asks: the head that stage `prefix-scorer` left in the workdir, on the reference trunk."""
    folder = experiment.workdir / FOLDER / "variables"
    variables = checkpoints.load_variables(folder, checkpoints.abstract(*reward_shapes(experiment)))
    return functools.partial(_score, experiment.model, variables)


def rewards(experiment, variables, prompts, judges, scorer, candidates, block_tokens, purpose):
    """Rewards of responses decoded by blockwise(K, M), D to each prompt: D K is `config.evaluate.samples`, or D is 1.

    Args:
      experiment: an `Experiment`.
      variables: of the policy.
      prompts: `Prompts`.
      judges: {name: reward}.
      scorer: of `open_scorer`.
      candidates, block_tokens: K and M.
      purpose: what the random bits depend on.

    Returns:
      {judge: float32 [P, D]}; two policies' win rate after the procedure is that of standard sampling from these.
    """
    config, tokenizer = experiment.config, experiment.tokenizer
    distinct = list(dict.fromkeys(judges.values()))  # the training reward may be its own judge
    D, C = max(config.evaluate.samples // candidates, 1), config.data.response_tokens
    key = key_for(config.seed, purpose)

    def call(rows):
        decoded = blockwise(
            experiment.model, variables, scorer, np.repeat(prompts.tokens_PS[rows], D, 0),
            np.repeat(prompts.lengths_P[rows], D), (rows[:, None] * D + np.arange(D)).ravel(), key,
            candidates=candidates, block_tokens=block_tokens, max_tokens=C, temperature=config.sampling.temperature,
            eos_ids=hf.end_ids(config.model.path, tokenizer.eos_id), pad_id=tokenizer.pad_id,
        )  # fmt: skip
        tokens_BDC, mask_BDC = (x.reshape(len(rows), D, C) for x in (decoded.tokens_BC, decoded.mask_BC))
        drawn = Rollouts(tokens_BDC, mask_BDC, None, None, decoded.ended_B.reshape(len(rows), D))
        texts = [prompts.texts[i] for i in rows]
        return tuple(score_rollouts(experiment, drawn, texts, distinct, "blockwise decoding")[0])

    arrays = in_calls(call, len(prompts.texts), config.evaluate.prompts_per_call)
    return {name: arrays[distinct.index(judge)] for name, judge in judges.items()}
