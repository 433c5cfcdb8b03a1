"""The responses of `infalign generate`: drawn, scored, calibrated, and one of them chosen."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from infalign_jax.core import procedures
from infalign_jax.data.tokenize import decode_completions, encode_whole
from infalign_jax.generate.calibration import calibrated
from infalign_jax.policy import SLOTS
from infalign_jax.sampling.blockwise import block_sizes, blockwise
from infalign_jax.stages.reward import score
from infalign_jax.training.seeds import key_for


class Selection(NamedTuple):
    """kind: 'standard', 'best_of', 'worst_of' or 'blockwise'; n: responses, or candidates of a block of `block_tokens`;
    value: the scorer of a blockwise one, as `sampling.blockwise` asks it.
    """

    kind: str
    n: int
    block_tokens: int = 0
    value: Callable | None = None


class Drawing(NamedTuple):
    """How responses are drawn, from policy and reference alike; `stop` is '' where no text ends them."""

    max_tokens: int
    temperature: float
    seed: int
    stop: str = ""


def procedure(name, scorer=""):
    """The `Selection` of a name, its scorer still to be opened.

    Raises:
      ValueError: any other name, or blockwise without a scorer, or a scorer without blockwise.
    """
    sizes = block_sizes(name)
    if bool(sizes) != bool(scorer):
        raise ValueError(
            f"--procedure is {name!r} and --scorer {scorer!r}; blockwise(K, M) needs a workdir's prefix_scorer folder, and "
            "the others none"
        )
    if sizes:
        return Selection("blockwise", *sizes)
    kind, _, n = procedures.from_name(name).name.partition("(")
    if kind not in ("standard", "best_of", "worst_of"):
        raise ValueError(f"--procedure is {name!r}; generate knows standard, best_of(N), worst_of(N), blockwise(K, M)")
    return Selection(kind, int(n.rstrip(")") or 1))


def responses(policy, reward, prompts, procedure, calibrator, drawing, first=0):
    """For each prompt what the procedure chooses, and all that it chose from.

    Args:
      policy: `Policy`.
      reward: `f(prompts, completions)`, or None: rewards are None.
      prompts: texts.
      procedure: `Selection`.
      calibrator: `calibration.Calibrator`.
      drawing: `Drawing`.
      first: the place of the first prompt among all; with the seed it fixes the random numbers.

    Returns:
      A dict for each prompt: prompt, completion, reward, calibrated, ended, calibrated_by, candidates (each completion,
      reward, calibrated, ended); of a blockwise procedure also `blocks`: the candidates of each, their values and the
      number of the one that was kept.
    """
    seed = _seed(drawing, first)
    if procedure.kind == "blockwise":
        texts, ended_Bn, blocks = _blockwise(policy, prompts, procedure, drawing, seed)
    else:
        texts, ended_Bn = policy.rollouts(prompts, procedure.n, **_options(drawing), seed=seed)
        blocks = None
    rewards_Bn = _scored(reward, prompts, texts, ended_Bn, calibrator)

    def reference_rewards():
        options = _options(drawing) | {"seed": _seed(drawing, first, 1)}
        drawn = calibrator.reference.rollouts(prompts, calibrator.rollouts, **options)
        return _scored(reward, prompts, *drawn, calibrator)

    u_Bn, sources = calibrated(calibrator, rewards_Bn, prompts, reference_rewards)
    rows, choose = [], {"best_of": np.argmax, "worst_of": np.argmin}.get(procedure.kind, lambda rewards: 0)
    for b, prompt in enumerate(prompts):
        keys = ("completion", "reward", "calibrated", "ended")
        columns = zip(texts[b], rewards_Bn[b].tolist(), u_Bn[b].tolist(), ended_Bn[b].tolist(), strict=True)
        candidates = [dict(zip(keys, values, strict=True)) for values in columns]
        row = {
            "prompt": prompt,
            **candidates[choose(rewards_Bn[b])],
            "calibrated_by": sources[b],
            "candidates": candidates,
        }
        rows.append(row if blocks is None else row | {"blocks": blocks[b]})
    return rows


def _options(drawing):
    stop = (drawing.stop,) if drawing.stop else ()
    return {"max_tokens": drawing.max_tokens, "temperature": drawing.temperature, "stop": stop}


def _seed(drawing, *numbers):
    return int(np.random.SeedSequence([drawing.seed, *numbers]).generate_state(1)[0] >> 1)


def _scored(reward, prompts, texts, ended_Bn, calibrator):
    """Rewards [B, n] of the responses to each prompt."""
    n = len(texts[0])
    if reward is None:
        return np.full((len(prompts), n), None)
    flat = [prompt for prompt in prompts for _ in range(n)], [text for row in texts for text in row]
    how = {"truncated": calibrator.truncated, "penalty": calibrator.penalty}
    return score(reward, *flat, ended_Bn.reshape(-1), **how, where="generate").reshape(len(prompts), n)


def _blockwise(policy, prompts, procedure, drawing, seed):
    """(texts [B][1], ended [B, 1], blocks of each prompt). The first block is what `policy.rollouts` draws."""
    tokenizer = policy.tokenizer
    encoded = encode_whole(tokenizer, prompts, SLOTS)
    decoded = blockwise(
        policy.config, policy.variables, procedure.value, encoded.tokens_NS, encoded.lengths_N, np.arange(len(prompts)),
        key_for(seed, "generate"), candidates=procedure.n, block_tokens=procedure.block_tokens,
        max_tokens=drawing.max_tokens, eos_ids=policy.end_ids, pad_id=tokenizer.pad_id, temperature=drawing.temperature,
    )  # fmt: skip
    texts = [[text] for text in decode_completions(tokenizer, decoded.tokens_BC, decoded.mask_BC)]
    blocks = [[] for _ in prompts]
    for block in decoded.blocks:
        for b in np.flatnonzero(block.live_B):
            found = decode_completions(tokenizer, block.tokens_BKM[b], block.mask_BKM[b])
            values = block.values_BK[b].astype(float).tolist()
            blocks[b].append({"candidates": found, "values": values, "picked": int(block.picked_B[b])})
    return texts, decoded.ended_B[:, None], blocks
