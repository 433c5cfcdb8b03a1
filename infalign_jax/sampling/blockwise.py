"""Blockwise controlled decoding: of K continuations of M tokens keep the one a prefix scorer likes best, and go on from it.

Mudgal et al. 2023, *Controlled decoding from language models*, arXiv 2310.17022. With M as long as a response it is
best-of-K, with K = 1 it is sampling; in between it needs far fewer draws than best-of-n for the same reward.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from infalign_jax.core import naming
from infalign_jax.sampling.sampler import sample


class Block(NamedTuple):
    """What was drawn and chosen between two choices. Rows that had ended before it hold nothing of meaning.

    tokens_BKM, mask_BKM   the K candidates of each prompt
    values_BK              what the scorer says of each
    picked_B               which one was kept
    live_B                 bool, false where the response had ended before
    """

    tokens_BKM: np.ndarray
    mask_BKM: np.ndarray
    values_BK: np.ndarray
    picked_B: np.ndarray
    live_B: np.ndarray


class Decoded(NamedTuple):
    """A completion of each prompt, host arrays: right-padded tokens, mask and `ended_B` as in `Rollouts`, and the blocks."""

    tokens_BC: np.ndarray
    mask_BC: np.ndarray
    ended_B: np.ndarray
    blocks: tuple


def block_sizes(name):
    """(K, M) of 'blockwise(K, M)', None for the name of any other procedure.

    Raises:
      ValueError: no name, or other arguments.
    """
    head, args = naming.parse(name, "procedure")
    if head != "blockwise":
        return None
    if len(args) != 2 or not all(isinstance(arg, int) and arg >= 1 for arg in args):
        raise ValueError(f"procedure {name!r}: blockwise(K, M) takes two whole numbers of at least 1")
    return tuple(args)


def blockwise(
    config,
    variables,
    value: Callable,
    prompt_tokens_BS,
    prompt_lengths_B,
    row_ids_B,
    key,
    *,
    candidates: int,
    block_tokens: int,
    max_tokens: int,
    eos_ids,
    pad_id: int = 0,
    **options,
) -> Decoded:
    """A completion of up to `max_tokens` tokens of every prompt, chosen block by block.

    value         `f(tokens_BW, lengths_B, blocks_BKM, lengths_BK) -> [B, K]`: how much it likes each of K blocks of
                  `lengths_BK` tokens after the left-padded text so far (prompt included); larger is better, the first of equals
                  is kept. For a trained scorer `heads.reward` with config and variables bound
    candidates    K, blocks drawn at each choice
    block_tokens  M, tokens of a block; the last is shorter where M does not divide `max_tokens`
    options       of `sample`: temperature, top_k, top_p, min_p, cache_dtype

    The other arguments are those of `sample`. The first block is drawn with `key` itself, so that M >= max_tokens draws the
    rollouts that `sample` draws; the random numbers of block j > 0 are a function of (key, j, row id, candidate, slot).
    At each choice the text so far is read once more for all K candidates, (S + C) C / M tokens a prompt in all: that is
    prefill, done in parallel, and all blocks but a shorter last one share one compilation. One process.

    Raises ValueError for what `sample` refuses, K or M below 1, and values that are not finite or of another shape.
    """
    for name, count in (("candidates", candidates), ("block_tokens", block_tokens), ("max_tokens", max_tokens)):
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")
    blocks, (num_prompts, slots) = -(-max_tokens // block_tokens), prompt_tokens_BS.shape
    width = slots + (blocks - 1) * block_tokens
    text_BW = np.pad(np.asarray(prompt_tokens_BS), ((0, 0), (width - slots, 0)), constant_values=pad_id)
    lengths_B, rows = np.asarray(prompt_lengths_B), np.arange(num_prompts)
    tokens_BC = np.full((num_prompts, max_tokens), pad_id, np.int32)
    mask_BC, ended_B, done = np.zeros((num_prompts, max_tokens), np.float32), np.zeros(num_prompts, bool), []
    for first in range(0, max_tokens, block_tokens):
        size = min(block_tokens, max_tokens - first)
        drawn = sample(
            config, variables, text_BW, lengths_B, row_ids_B, key if first == 0 else jax.random.fold_in(key, len(done)),
            rollouts=candidates, max_tokens=size, eos_ids=eos_ids, pad_id=pad_id, **options,
        )  # fmt: skip
        drawn_BKM, drawn_mask_BKM, over_BK = map(np.asarray, (drawn.tokens_BRC, drawn.mask_BRC, drawn.ended_BR))
        values_BK = _values(value, text_BW, lengths_B, drawn_BKM, drawn_mask_BKM)
        best_B, live_B = values_BK.argmax(1), ~ended_B
        block_BM = drawn_BKM[rows, best_B]
        tokens_BC[live_B, first : first + size] = block_BM[live_B]
        mask_BC[live_B, first : first + size] = drawn_mask_BKM[rows, best_B][live_B]
        ended_B = ended_B | over_BK[rows, best_B]
        done.append(Block(drawn_BKM, drawn_mask_BKM, values_BK, best_B, live_B))
        if ended_B.all():
            break
        # A block that did not end is full, so that every response that goes on grows by its size.
        text_BW, lengths_B = np.concatenate([text_BW, block_BM], 1)[:, -width:], np.minimum(lengths_B + size, width)
    return Decoded(tokens_BC, mask_BC, ended_B, tuple(done))


def _values(value, text_BW, lengths_B, blocks_BKM, mask_BKM):
    values_BK = np.asarray(value(text_BW, lengths_B, blocks_BKM, mask_BKM.sum(-1).astype(np.int32)))
    if values_BK.shape != blocks_BKM.shape[:2]:
        raise ValueError(f"the scorer returned shape {values_BK.shape} for blocks of shape {blocks_BKM.shape[:2]}")
    if not np.isfinite(values_BK).all():
        row, candidate = np.argwhere(~np.isfinite(values_BK))[0]
        raise ValueError(f"the scorer says {values_BK[row, candidate]} of candidate {candidate} of prompt {row}")
    return values_BK
