"""The sampler against exact distributions and against teacher forcing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from infalign_jax.models import transformer
from infalign_jax.models.config import TransformerConfig
from infalign_jax.sampling import categorical, log_probs, logits, sampler

_CONFIG = TransformerConfig(
    vocab_size=11, num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=16, remat="layer",
    window=5, pattern=("local", "global"), logit_soft_cap=4.0,
)  # fmt: skip
_PROMPTS = jax.random.randint(jax.random.key(2), (3, 5), 0, 11)
_LENGTHS = jnp.array([5, 2, 1])
_EOS = 3


@functools.cache
def _variables():
    variables = transformer.init(_CONFIG, jax.random.key(0))
    return jax.tree.map(lambda x: 1.5 * x, variables)


@jax.jit
def _teacher(variables, prompts, lengths, tokens):
    hidden = transformer.forward_shared(_CONFIG, variables, prompts, lengths, tokens)
    return transformer.unembed(_CONFIG, variables, hidden)


def _sample(key=jax.random.key(7), prompts=_PROMPTS, lengths=_LENGTHS, ids=(4, 9, 2), **options):  # noqa: B008
    options = {"rollouts": 6, "max_tokens": 18, "eos_ids": (_EOS,), "pad_id": 0} | options
    return sampler.sample(_CONFIG, _variables(), prompts, lengths, jnp.array(ids), key, **options)


def _teacher_forced(out, prompts=_PROMPTS, lengths=_LENGTHS):
    return _teacher(_variables(), prompts, lengths, out.tokens_BRC)


def _chi_square(counts, probabilities):
    """p-value of observed counts, cells of small expectation pooled; impossible cells must be empty."""
    expected = probabilities / probabilities.sum() * counts.sum()
    assert counts[expected == 0].sum() == 0
    big = expected >= 5
    observed = np.append(counts[big], counts[~big].sum())
    expected = np.append(expected[big], expected[~big].sum())
    keep = expected > 0
    return stats.chisquare(observed[keep], expected[keep]).pvalue


@pytest.mark.parametrize("vocab_size", [2, 37, 1000])
def test_two_level_draws_follow_the_softmax(vocab_size):
    row = 2.0 * jax.random.normal(jax.random.key(0), (vocab_size,))
    row = row.at[:: 3 if vocab_size > 2 else 5].add(-jnp.inf) if vocab_size > 2 else row
    uniforms = jax.random.uniform(jax.random.key(1), (200_000, 2))
    tokens, drawn = jax.jit(jax.vmap(categorical.draw, in_axes=(None, 0)))(row, uniforms)
    assert _chi_square(np.bincount(tokens, minlength=vocab_size), np.asarray(jax.nn.softmax(row), np.float64)) > 1e-3
    np.testing.assert_allclose(drawn, jax.nn.log_softmax(row)[tokens], atol=1e-5)


def test_draws_never_pick_what_has_no_probability():
    row = jnp.full((100,), -jnp.inf).at[jnp.array([17, 83])].set(jnp.array([0.0, -30.0]))
    ends = jnp.array([[a, b] for a in (0.0, 1 - 2**-24) for b in (0.0, 1 - 2**-24)])
    tokens, _ = categorical.draw(jnp.broadcast_to(row, (4, 100)), ends)
    assert set(np.asarray(tokens)) <= {17, 83}


def test_first_two_tokens_have_the_exact_joint_distribution():
    """Frequencies of the 121 two-token beginnings of one prompt against products of the model's own softmax."""
    out = _sample(prompts=_PROMPTS[1:2], lengths=_LENGTHS[1:2], ids=(1,), rollouts=10_000, max_tokens=2, eos_ids=())
    pairs = np.asarray(out.tokens_BRC[0])
    counts = np.bincount(pairs[:, 0] * 11 + pairs[:, 1], minlength=121)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(11), jnp.arange(11), indexing="ij"), -1).reshape(1, 121, 2)
    hidden = transformer.forward_shared(_CONFIG, _variables(), _PROMPTS[1:2], _LENGTHS[1:2], grid)
    exact = log_probs.token_log_probs(_CONFIG, _variables(), hidden, grid).sum(-1)[0]
    np.testing.assert_allclose(np.exp(exact).sum(), 1.0, rtol=1e-5)
    assert _chi_square(counts, np.exp(np.asarray(exact, np.float64))) > 1e-3


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}, {"min_p": 0.2, "temperature": 1.5}, {"temperature": 0.0}],
    ids=str,
)
def test_log_probs_are_those_of_teacher_forcing(options):
    out = _sample(**options)
    mask = np.asarray(out.mask_BRC)
    teacher = _teacher_forced(out)
    pick = lambda x: np.take_along_axis(np.asarray(x), np.asarray(out.tokens_BRC)[..., None], -1)[..., 0]  # noqa: E731
    np.testing.assert_allclose(out.log_probs_BRC, mask * pick(jax.nn.log_softmax(teacher)), rtol=1e-5, atol=2e-5)
    if options.get("temperature") == 0.0:
        best = np.asarray(teacher.max(-1))
        np.testing.assert_allclose(mask * pick(teacher), mask * best, atol=1e-5)
        np.testing.assert_array_equal(out.sampling_log_probs_BRC, 0)
    else:
        filtered = jax.nn.log_softmax(logits.filter_logits(teacher, **options))
        expected = np.where(mask > 0, pick(filtered), 0)
        np.testing.assert_allclose(out.sampling_log_probs_BRC, expected, atol=5e-5)


def test_mask_ends_with_eos_and_pads_follow():
    out = _sample(pad_id=6, max_tokens=12, rollouts=16)
    tokens, mask, ended = (np.asarray(x) for x in (out.tokens_BRC, out.mask_BRC, out.ended_BR))
    assert ended.any() and not ended.all()
    for row, live, end in zip(tokens.reshape(-1, 12), mask.reshape(-1, 12), ended.reshape(-1), strict=True):
        length = int(live.sum())
        np.testing.assert_array_equal(live, np.arange(12) < length)
        assert (row[: length - 1] != _EOS).all() and (row[length - 1] == _EOS) == end
        assert (row[length:] == 6).all() and (end or length == 12)


def test_early_exit_gives_what_the_full_loop_gives():
    """With every token an end mark all rollouts stop at once, in slot 0, and the rest is padding."""
    out = _sample(eos_ids=tuple(range(11)), max_tokens=40)
    np.testing.assert_array_equal(out.mask_BRC.sum(-1), 1)
    assert out.ended_BR.all() and (out.tokens_BRC[:, :, 1:] == 0).all()
    np.testing.assert_array_equal(out.tokens_BRC[:, :, 0], _sample(eos_ids=(), max_tokens=1).tokens_BRC[:, :, 0])


def test_a_rollout_does_not_depend_on_its_batch():
    whole = _sample(rollouts=6)
    alone = _sample(rollouts=2, prompts=_PROMPTS[jnp.array([2, 1])], lengths=_LENGTHS[jnp.array([2, 1])], ids=(2, 9))
    np.testing.assert_array_equal(alone.tokens_BRC, whole.tokens_BRC[jnp.array([2, 1]), :2])
    assert (_sample(key=jax.random.key(8)).tokens_BRC != whole.tokens_BRC).any()
    assert (_sample(ids=(5, 9, 2)).tokens_BRC[0] != whole.tokens_BRC[0]).any()
    assert len(np.unique(np.asarray(whole.tokens_BRC[0]), axis=0)) == 6  # rollouts of a prompt differ


def test_decode_blocks_change_nothing(monkeypatch):
    out = _sample(max_tokens=33)
    assert sampler.block_ends(33) == [16, 32, 33] and len(sampler.block_ends(1000)) <= 8
    monkeypatch.setattr(sampler, "block_ends", lambda n: [n])
    sampler._sample.clear_cache()
    np.testing.assert_array_equal(out.tokens_BRC, _sample(max_tokens=33).tokens_BRC)
    sampler._sample.clear_cache()


def test_one_compilation_for_one_set_of_shapes():
    sampler._sample.clear_cache()
    _sample()
    _sample(key=jax.random.key(9), ids=(1, 2, 3))
    assert sampler._sample._cache_size() == 1


def test_filters_against_sorting_by_hand():
    rng = np.random.default_rng(0)
    for _ in range(20):
        row = rng.normal(size=13).astype(np.float32) * 2
        probabilities = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        order = np.argsort(-probabilities)
        kept = lambda x: set(np.flatnonzero(np.isfinite(x)))  # noqa: E731
        assert kept(logits.keep_top_k(row, 4)) == set(order[:4])
        number = int(np.searchsorted(np.cumsum(probabilities[order]), 0.7)) + 1
        assert kept(logits.keep_top_p(row, 0.7)) == set(order[:number])
        assert kept(logits.keep_min_p(row, 0.3)) == set(np.flatnonzero(probabilities >= 0.3 * probabilities.max()))
    np.testing.assert_allclose(logits.filter_logits(row, temperature=0.5, top_k=99, top_p=1.0, min_p=0.0), 2 * row)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"rollouts": 0}, "rollouts is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"eos_ids": (11,)}, "eos_ids is"),
        ({"pad_id": -1}, "pad_id is"),
        ({"lengths": jnp.array([5, 0, 1])}, r"prompt_lengths\[1\] is 0"),
        ({"lengths": jnp.array([5, 1, 6])}, r"prompt_lengths\[2\] is 6"),
        ({"lengths": jnp.array([5, 1])}, r"must be \[B, S\] and \[B\]"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _sample(**options)
