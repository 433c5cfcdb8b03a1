"""Texts to fixed-shape token arrays: prompts left-padded, responses right-padded with their EOS.

Letters: N rows, S prompt slots, C response slots.
"""

from typing import NamedTuple

import numpy as np
from absl import logging

from infalign_jax.data.dataset import require_count

ON_LONG = ("error", "truncate_left", "drop")
SLOTS = 64  # whole texts are padded to a multiple of it, so that few lengths are compiled


class EncodedPrompts(NamedTuple):
    """`tokens_NS` left-padded int32, `lengths_N` int32 with BOS, `kept_N` which of the texts the rows are."""

    tokens_NS: np.ndarray
    lengths_N: np.ndarray
    kept_N: np.ndarray


class EncodedPairs(NamedTuple):
    """Prompts as in `EncodedPrompts`. `response_tokens_NC` right-padded int32, `mask_NC` float32: 1 on real tokens."""

    prompt_tokens_NS: np.ndarray
    prompt_lengths_N: np.ndarray
    response_tokens_NC: np.ndarray
    mask_NC: np.ndarray
    kept_N: np.ndarray


def encode_prompts(tokenizer, texts, max_tokens, on_long="error", *, tell=True):
    """Prompts as left-padded tokens, each beginning with BOS where the tokeniser has one.

    Args:
      tokenizer: a `Tokenizer`.
      texts: n prompts.
      max_tokens: S, the slots of a prompt, BOS included.
      on_long: what to do with a longer prompt: 'error', 'truncate_left' (BOS and the last tokens stay) or 'drop' (the
        row is left out, see `kept_N`). The last two say aloud how many prompts they touched, unless `tell` is False (a
        reward model reads the same prompts at every step).

    Returns:
      `EncodedPrompts`.

    Raises:
      ValueError: a prompt is longer than S under 'error' (names its index, length and the limit), a prompt without a
        token, an unknown `on_long`, nothing left after dropping.
    """
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    max_tokens = require_count("max prompt tokens", max_tokens, len(bos) + 1)
    if on_long not in ON_LONG:
        raise ValueError(f"on_long is {on_long!r}; it is one of {', '.join(ON_LONG)}")
    rows = tokenizer.encode_batch(list(texts))
    rows = [
        ids if bos and ids[:1] == bos else bos + ids for ids in rows
    ]  # a chat template may have written its own BOS
    for index, row in enumerate(rows):
        if not row:
            raise ValueError(f"prompt {index} is empty; a prompt needs at least one token")
    long = [index for index, row in enumerate(rows) if len(row) > max_tokens]
    if long and on_long == "error":
        raise ValueError(
            f"prompt {long[0]} has {len(rows[long[0]])} tokens, the limit is {max_tokens} ({len(long)} of {len(rows)} "
            f"prompts are too long); raise config.data.prompt_tokens, or choose 'truncate_left' or 'drop' (long_prompts)"
        )
    kept = np.arange(len(rows))
    if long and on_long == "truncate_left":
        if tell:
            logging.warning("%d of %d prompts were cut to their last %d tokens", len(long), len(rows), max_tokens)
        for index in long:
            rows[index] = bos + rows[index][len(rows[index]) - max_tokens + len(bos) :]
    elif long:
        if tell:
            logging.warning("%d of %d prompts were dropped: longer than %d tokens", len(long), len(rows), max_tokens)
        kept = np.delete(kept, long)
        if not len(kept):
            raise ValueError(
                f"every one of the {len(rows)} prompts is longer than {max_tokens} tokens; nothing is left"
            )
    tokens_NS = np.full((len(kept), max_tokens), tokenizer.pad_id, np.int32)
    for position, index in enumerate(kept):
        tokens_NS[position, max_tokens - len(rows[index]) :] = rows[index]
    lengths_N = np.array([len(rows[index]) for index in kept], np.int32)
    return EncodedPrompts(tokens_NS, lengths_N, kept)


def encode_whole(tokenizer, texts, multiple=SLOTS):
    """`encode_prompts` with the slots that the longest needs, a multiple of `multiple`: nothing is cut, few shapes compiled."""
    longest = 1 + max(map(len, tokenizer.encode_batch(list(texts))))  # BOS may come in front
    return encode_prompts(tokenizer, texts, round_up(longest, multiple))


def round_up(length, multiple):
    """The smallest multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


def encode_responses(tokenizer, texts, max_tokens, *, tell=True):
    """Responses as right-padded tokens [n, C] and mask [n, C], each ending in EOS.

    A response that does not fit with its EOS is cut at C tokens and gets none, as a sampled one would; the count is
    said aloud unless `tell` is False (a reward model reads sampled responses at every step, whose cuts are counted
    where they are sampled).
    """
    max_tokens = require_count("max response tokens", max_tokens, 1)
    rows = [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(list(texts))]
    cut = sum(len(row) > max_tokens for row in rows)
    if cut and tell:
        logging.warning("%d of %d responses were cut at %d tokens and have no EOS", cut, len(rows), max_tokens)
    tokens_NC = np.full((len(rows), max_tokens), tokenizer.pad_id, np.int32)
    mask_NC = np.zeros((len(rows), max_tokens), np.float32)
    for index, row in enumerate(rows):
        row = row[:max_tokens]
        tokens_NC[index, : len(row)] = row
        mask_NC[index, : len(row)] = 1.0
    return tokens_NC, mask_NC


def encode_pairs(tokenizer, prompts, responses, max_prompt, max_response, on_long="error"):
    """(prompt, response) pairs as `EncodedPairs`; prompts by `encode_prompts`, responses by `encode_responses`.

    Rows whose prompt is dropped are absent from every array; `kept_N` names the others. To keep chosen and rejected
    responses aligned, encode both with the same prompts. Raises ValueError for lists of different length.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts and {len(responses)} responses; the counts must be equal")
    encoded = encode_prompts(tokenizer, prompts, max_prompt, on_long)
    tokens_NC, mask_NC = encode_responses(tokenizer, [responses[index] for index in encoded.kept_N], max_response)
    return EncodedPairs(encoded.tokens_NS, encoded.lengths_N, tokens_NC, mask_NC, encoded.kept_N)


def decode_completions(tokenizer, tokens_NC, mask_NC):
    """The text of each completion: its masked-in tokens up to the first EOS. A list of n strings."""
    tokens_NC, lengths_N = np.asarray(tokens_NC), np.asarray(mask_NC).astype(bool).sum(1)
    rows = [tokens_NC[index, :length].tolist() for index, length in enumerate(lengths_N)]
    return tokenizer.decode_batch(
        [row[: row.index(tokenizer.eos_id)] if tokenizer.eos_id in row else row for row in rows]
    )
