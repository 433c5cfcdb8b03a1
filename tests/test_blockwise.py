"""Blockwise controlled decoding against best-of-n, plain sampling and its exact law on enumerable responses."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from infalign_jax.models import config as model_config
from infalign_jax.models import heads, transformer
from infalign_jax.sampling.blockwise import blockwise
from infalign_jax.sampling.sampler import sample

SIZES = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 32}
MODEL = model_config.from_dict({**SIZES, "vocab_size": 5})
VARIABLES = jax.tree.map(lambda x: 0.6 * x, transformer.init(MODEL, jax.random.key(0)))
PROMPTS, LENGTHS = np.array([[0, 3, 4], [2, 3, 2], [0, 0, 4]], np.int32), np.array([2, 3, 1], np.int32)
EOS = 1
SCORER = heads.add_head(MODEL, transformer.init(MODEL, jax.random.key(1)), jax.random.key(2))
VALUE = functools.partial(jax.jit(functools.partial(heads.reward, MODEL)), SCORER)


def decode(value=VALUE, prompts=PROMPTS, lengths=LENGTHS, seed=0, **how):
    how = {"candidates": 4, "block_tokens": 2, "max_tokens": 6, "eos_ids": (EOS,), **how}
    rows = np.arange(len(prompts))
    return blockwise(MODEL, VARIABLES, value, prompts, lengths, rows, jax.random.key(seed), **how)


def rollouts(n, max_tokens=6, **how):
    key = jax.random.key(0)
    return sample(
        MODEL, VARIABLES, PROMPTS, LENGTHS, np.arange(3), key, rollouts=n, max_tokens=max_tokens, eos_ids=(EOS,), **how
    )


@pytest.mark.parametrize("block_tokens", [6, 50])
def test_a_block_as_long_as_a_response_is_best_of_n(block_tokens):
    drawn = rollouts(4)
    rewards = VALUE(PROMPTS, LENGTHS, drawn.tokens_BRC, drawn.mask_BRC.sum(-1).astype(np.int32))
    best = np.asarray(rewards).argmax(1)
    decoded = decode(block_tokens=block_tokens)
    assert len(set(best)) > 1 and len(decoded.blocks) == 1
    np.testing.assert_array_equal(decoded.tokens_BC, np.asarray(drawn.tokens_BRC)[range(3), best])
    np.testing.assert_array_equal(decoded.mask_BC, np.asarray(drawn.mask_BRC)[range(3), best])
    np.testing.assert_array_equal(decoded.ended_B, np.asarray(drawn.ended_BR)[range(3), best])


@functools.cache
def next_token_probabilities(prompt, max_tokens):
    """{tokens so far: probabilities of the next, float64 [5]} of all responses below `max_tokens`, in one pass."""
    keys = [tokens for length in range(max_tokens) for tokens in itertools.product(range(5), repeat=length)]
    texts = [[0] * (max_tokens - 1 - len(tokens)) + [*prompt, *tokens] for tokens in keys]
    lengths = jnp.array([len(prompt) + len(tokens) for tokens in keys])
    hidden = jax.jit(transformer.forward, static_argnums=0)(MODEL, VARIABLES, jnp.array(texts), lengths)[:, -1]
    table = np.exp(np.asarray(transformer.unembed(MODEL, VARIABLES, hidden), np.float64))
    return dict(zip(keys, table / table.sum(1, keepdims=True), strict=True))


def exact_law(prompt, prefer, candidates, max_tokens):
    """{response: probability} where of K draws of one token the one with the largest preference is kept."""
    law, open_ones = {}, {(): 1.0}
    for _ in range(max_tokens):
        grown = {}
        for tokens, chance in open_ones.items():
            p = next_token_probabilities(prompt, max_tokens)[tokens]
            for token in range(5):
                up_to, below = p[prefer <= prefer[token]].sum(), p[prefer < prefer[token]].sum()
                grown[*tokens, token] = chance * (up_to**candidates - below**candidates)
        law |= {tokens: chance for tokens, chance in grown.items() if tokens[-1] == EOS}
        open_ones = {tokens: chance for tokens, chance in grown.items() if tokens[-1] != EOS}
    return law | open_ones


@pytest.mark.parametrize("candidates", [1, 3])
def test_the_law_of_the_responses_is_the_exact_one(candidates):
    """K = 1: plain sampling. K = 3: best-of-3 at every token, by a scorer that looks at the token."""
    prefer, n = np.array([0.3, 0.1, 0.9, -2.0, 0.5]), 4000
    law = exact_law((3, 4), prefer, candidates, 3)
    assert sum(law.values()) == pytest.approx(1.0)

    def value(text, lengths, blocks, block_lengths):
        return prefer[blocks[:, :, 0]]

    prompts = np.tile([[3, 4]], (n, 1)).astype(np.int32)
    found = decode(value, prompts, np.full(n, 2), candidates=candidates, block_tokens=1, max_tokens=3)
    counts = dict.fromkeys(law, 0)
    for row, length in zip(found.tokens_BC.tolist(), found.mask_BC.sum(1).astype(int), strict=True):
        counts[tuple(row[:length])] += 1
    expected, seen = (
        np.array([table[tokens] for tokens in law]) for table in ({t: n * p for t, p in law.items()}, counts)
    )
    rare = expected < 8
    expected, seen = (np.append(x[~rare], x[rare].sum()) for x in (expected, seen))
    assert len(expected) > 10
    assert stats.chisquare(seen, expected).pvalue > 1e-3


def test_the_scorer_reads_the_text_so_far_and_its_choice_stays():
    seen = []

    def value(text, lengths, blocks, block_lengths):
        seen.append((text, lengths, blocks, block_lengths))
        return blocks[:, :, 0] - 10.0 * (blocks == EOS).any(-1)  # rather not the end

    decoded = decode(value)
    assert len(seen) == len(decoded.blocks) == 3
    for j, (text, lengths, blocks, block_lengths) in enumerate(seen):
        block = decoded.blocks[j]
        np.testing.assert_array_equal(blocks, block.tokens_BKM)
        np.testing.assert_array_equal(block_lengths, block.mask_BKM.sum(-1))
        for b in np.flatnonzero(block.live_B):
            prompt = PROMPTS[b, 3 - LENGTHS[b] :].tolist()
            assert text[b, text.shape[1] - lengths[b] :].tolist() == prompt + decoded.tokens_BC[b, : 2 * j].tolist()
            kept = decoded.tokens_BC[b, 2 * j : 2 * j + 2].tolist()
            assert kept == block.tokens_BKM[b, block.picked_B[b]].tolist()
            assert block.values_BK[b, block.picked_B[b]] == block.values_BK[b].max()
    assert (decoded.mask_BC.sum(1)[decoded.ended_B] == (decoded.tokens_BC == EOS).argmax(1)[decoded.ended_B] + 1).all()


def test_what_has_ended_stays_ended_and_a_short_last_block_fills_up():
    decoded = decode(lambda text, lengths, blocks, n: 1.0 * (blocks == EOS).any(-1), max_tokens=5)
    ended = np.flatnonzero(decoded.ended_B)
    assert len(ended) and all(decoded.tokens_BC[b, int(decoded.mask_BC[b].sum()) - 1] == EOS for b in ended)
    assert all((decoded.tokens_BC[b] == EOS).sum() == 1 for b in ended)
    decoded = decode(lambda text, lengths, blocks, n: -1.0 * (blocks == EOS).any(-1), max_tokens=5)
    live = ~decoded.ended_B
    assert live.any() and (decoded.mask_BC[live] == 1).all() and decoded.tokens_BC.shape == (3, 5)


def test_values_are_the_rewards_of_the_prefixes():
    tokens = np.array(list(itertools.product(range(2, 5), repeat=3)), np.int32)[None].repeat(3, 0)
    values = jax.jit(functools.partial(heads.values, MODEL))(SCORER, PROMPTS, LENGTHS, tokens)
    for length in (1, 2, 3):
        rewards = VALUE(PROMPTS, LENGTHS, tokens, np.full(tokens.shape[:2], length))
        np.testing.assert_allclose(values[:, :, length - 1], rewards, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"candidates": 0}, "candidates is 0"),
        ({"block_tokens": 0}, "block_tokens is 0"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"value": lambda *block: np.full((3, 4), np.nan)}, "the scorer says nan of candidate 0 of prompt 0"),
        ({"value": lambda *block: np.zeros((3, 3))}, r"shape \(3, 3\) for blocks of shape \(3, 4\)"),
        ({"temperature": -1.0}, "temperature is -1"),
    ],
)
def test_what_cannot_work_is_refused(how, words):
    with pytest.raises(ValueError, match=words):
        decode(**how)
