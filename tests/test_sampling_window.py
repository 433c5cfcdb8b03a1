"""Layers with a sliding window keep only their window while decoding: what they forget is what they could not see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infalign_jax.models import cache, presets, transformer
from infalign_jax.models.config import TransformerConfig
from infalign_jax.sampling import sampler

_SIZES = dict(vocab_size=23, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=20)
_CONFIGS = {
    "alternating": TransformerConfig(
        **_SIZES, num_layers=5, window=6, pattern=("local", "global"), attention_soft_cap=2.0, post_norms=True
    ),
    "five_to_one": TransformerConfig(
        **_SIZES, num_layers=8, window=4, pattern=("local",) * 5 + ("global",), qk_norm=True, rope_local_base=100.0
    ),
    "all_local": TransformerConfig(**_SIZES, num_layers=2, window=3, pattern=("local",)),
    "one_token": TransformerConfig(**_SIZES, num_layers=2, window=1, pattern=("global", "local")),
}
_B, _S, _C = 4, 13, 16
_LENGTHS = jnp.array([13, 9, 3, 1])


@functools.cache
def _setup(name):
    config = _CONFIGS[name]
    variables = jax.tree.map(lambda x: 1.5 * x, transformer.init(config, jax.random.key(0)))
    return config, variables, jax.random.randint(jax.random.key(1), (_B, _S), 0, config.vocab_size)


def _sample(name, slots=_S):
    config, variables, prompts = _setup(name)
    return sampler.sample(
        config, variables, prompts[:, _S - slots :], jnp.minimum(_LENGTHS, slots), jnp.arange(_B), jax.random.key(2),
        rollouts=3, max_tokens=_C, eos_ids=(1,),
    )  # fmt: skip


@pytest.mark.parametrize(("name", "slots"), [("alternating", 4), ("five_to_one", _S), ("all_local", _S)])
def test_log_probs_are_those_of_one_pass_over_everything(name, slots):
    """Prompts shorter and longer than the window in one batch, completions that fill the ring several times."""
    config, variables, prompts = _setup(name)
    prompts, lengths, out = prompts[:, _S - slots :], jnp.minimum(_LENGTHS, slots), _sample(name, slots)
    hidden = jax.jit(transformer.forward_shared, static_argnums=0)(config, variables, prompts, lengths, out.tokens_BRC)
    log_probs = jax.nn.log_softmax(transformer.unembed(config, variables, hidden))
    expected = jnp.take_along_axis(log_probs, out.tokens_BRC[..., None], -1)[..., 0] * out.mask_BRC
    np.testing.assert_allclose(out.log_probs_BRC, expected, atol=5e-5)
    assert out.mask_BRC.sum(-1).max() == _C  # some rollout outlives every window


def test_tokens_are_those_of_the_full_cache(monkeypatch):
    kept = _sample("alternating")
    monkeypatch.setattr(cache, "_sizes", lambda config, slots, _: [(config.num_layers, slots)])
    sampler._sample.clear_cache()
    full = _sample("alternating")
    sampler._sample.clear_cache()
    np.testing.assert_array_equal(kept.tokens_BRC, full.tokens_BRC)
    np.testing.assert_allclose(kept.log_probs_BRC, full.log_probs_BRC, atol=2e-5)


@pytest.mark.parametrize("name", _CONFIGS)
def test_no_layer_keeps_more_than_it_can_see(name):
    config = _CONFIGS[name]
    local = sum(config.is_local)
    prompt, own = cache.empty_prompt_cache(config, 2, _S), cache.empty_completion_cache(config, 2, 3, _C)
    stacks = [(config.num_layers - local, _S, _C), (local, max(config.window - 1, 1), config.window)]
    stacks = [stack for stack in stacks if stack[0]]
    assert [(x.shape[0], x.shape[-1]) for x in prompt.keys] == [(layers, s) for layers, s, _ in stacks]
    assert [(x.shape[0], x.shape[-1]) for x in own.keys] == [(layers, c) for layers, _, c in stacks]
    assert [x.shape[-2] for x in own.values] == [c for _, _, c in stacks]


def _bytes(function):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(function)))


def test_the_cache_of_a_long_prompt_to_gemma_2():
    """8,192 + 512 tokens, 26 layers of which 13 see 4,096: one more than half of the prompt need not be kept there."""
    config = presets.from_name("gemma2_2b")
    token = 2 * 4 * 256 * 2  # bytes: key and value, 4 heads of 256 numbers in bfloat16
    assert _bytes(lambda: cache.empty_prompt_cache(config, 1, 8192)) == token * 13 * (8192 + 4095)
    assert _bytes(lambda: cache.empty_completion_cache(config, 1, 1, 512)) == token * 26 * 512
    assert _bytes(lambda: cache.empty_completion_cache(config, 1, 1, 8192)) == token * 13 * (8192 + 4096)
