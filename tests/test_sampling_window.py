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
    "growing": TransformerConfig(**_SIZES, num_layers=3, window=20, pattern=("local", "global")),
    "one_token": TransformerConfig(**_SIZES, num_layers=2, window=1, pattern=("global", "local")),
}
_B, _S, _C = 4, 13, 16
_LENGTHS = jnp.array([13, 9, 3, 1])


@functools.cache
def _setup(name):
    config = _CONFIGS[name]
    variables = jax.tree.map(lambda x: 1.5 * x, transformer.init(config, jax.random.key(0)))
    return config, variables, jax.random.randint(jax.random.key(1), (_B, _S), 0, config.vocab_size)


def _sample(name, slots=_S, tokens=_C):
    config, variables, prompts = _setup(name)
    return sampler.sample(
        config, variables, prompts[:, _S - slots :], jnp.minimum(_LENGTHS, slots), jnp.arange(_B), jax.random.key(2),
        rollouts=3, max_tokens=tokens, eos_ids=(1,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "slots", "tokens"),
    [("alternating", 4, _C), ("five_to_one", _S, _C), ("all_local", _S, _C), ("growing", _S, 45)],
)
def test_log_probs_are_those_of_one_pass_over_everything(name, slots, tokens):
    """Prompts shorter and longer than the window in one batch, completions that fill the ring several times.

    Where each layer has a cache of its own it grows with the stretches of 16 tokens, a ring no further than its window.
    """
    config, variables, prompts = _setup(name)
    prompts, lengths, out = prompts[:, _S - slots :], jnp.minimum(_LENGTHS, slots), _sample(name, slots, tokens)
    hidden = jax.jit(transformer.forward_shared, static_argnums=0)(config, variables, prompts, lengths, out.tokens_BRC)
    log_probs = jax.nn.log_softmax(transformer.unembed(config, variables, hidden))
    expected = jnp.take_along_axis(log_probs, out.tokens_BRC[..., None], -1)[..., 0] * out.mask_BRC
    np.testing.assert_allclose(out.log_probs_BRC, expected, atol=5e-5)
    assert out.mask_BRC.sum(-1).max() == tokens  # some rollout outlives every window


def test_tokens_are_those_of_the_full_cache(monkeypatch):
    kept = _sample("alternating")
    monkeypatch.setattr(cache, "_sizes", lambda config, slots, _: [((config.num_layers,), slots)])
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
    prompt_slots, own_slots = (_S, min(max(config.window - 1, 1), _S)), (_C, min(config.window, _C))
    if cache.apart(config):
        assert [x.shape[-1] for x in prompt.keys] == [prompt_slots[is_local] for is_local in config.is_local]
        assert [x.shape[-1] for x in own.keys] == [own_slots[is_local] for is_local in config.is_local]
        return
    layers = [config.num_layers - local, local]
    assert [(x.shape[0], x.shape[-1]) for x in prompt.keys] == list(zip(layers, prompt_slots, strict=True))
    assert [(x.shape[0], x.shape[-1]) for x in own.keys] == list(zip(layers, own_slots, strict=True))
    assert [x.shape[-2] for x in own.values] == list(own_slots)


def _bytes(function):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(function)))


def test_the_cache_of_a_long_prompt_to_gemma_2():
    """8,192 + 512 tokens, 26 layers of which 13 see 4,096: one more than half of the prompt need not be kept there."""
    config = presets.from_name("gemma2_2b")
    token = 2 * 4 * 256 * 2  # bytes: key and value, 4 heads of 256 numbers in bfloat16
    assert _bytes(lambda: cache.empty_prompt_cache(config, 1, 8192)) == token * 13 * (8192 + 4095)
    assert _bytes(lambda: cache.empty_completion_cache(config, 1, 1, 512)) == token * 26 * 512
    assert _bytes(lambda: cache.empty_completion_cache(config, 1, 1, 8192)) == token * 13 * (8192 + 4096)
