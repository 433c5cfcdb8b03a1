"""The transformer against itself computed another way: unshared, cached, permuted, differentiated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infalign_jax.models import cache as caches
from infalign_jax.models import heads, sharding, transformer
from infalign_jax.models.config import RopeScaling, TransformerConfig, from_dict

_SIZES = dict(vocab_size=29, num_layers=3, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=20)
_CONFIGS = {
    "plain": TransformerConfig(**_SIZES),
    "gemma2": TransformerConfig(
        **_SIZES, window=4, pattern=("local", "global"), attention_soft_cap=2.0, logit_soft_cap=3.0, post_norms=True,
        norm_plus_one=True, scale_embeddings=True, activation="gelu_tanh", query_scale=0.3, remat="layer",
    ),
    "gemma3": TransformerConfig(
        **_SIZES | {"num_kv_heads": 1}, window=3, pattern=("local", "local", "global"), qk_norm=True, post_norms=True,
        rope_local_base=100.0, rope_scaling=RopeScaling("linear", 8.0), remat="dots",
    ),
    "qwen": TransformerConfig(**_SIZES, attention_bias=True, tied_embeddings=False),
    "llama3": TransformerConfig(
        **_SIZES | {"num_kv_heads": 1}, rope_base=500.0, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8),
        tied_embeddings=False, remat="layer",
    ),
    "qwen3": TransformerConfig(**_SIZES | {"num_kv_heads": 4}, qk_norm=True),
}  # fmt: skip
_CONFIGS["deep"] = _CONFIGS["gemma3"].replace(num_layers=6)  # its caches lie in stacks, those of three layers do not
_LENGTHS = jnp.array([7, 3, 1])
# Compiled once for each config and shape, by all the tests together.
_forward, _forward_shared, _completion_states, _prefill, _reward, _unembed = (
    jax.jit(function, static_argnums=0)
    for function in (
        transformer.forward, transformer.forward_shared, transformer.completion_states, transformer.prefill,
        heads.reward, transformer.unembed,
    )
)  # fmt: skip
_B, _R, _S, _C = 3, 2, 7, 6


@functools.cache
def _setup(name):
    """A config, variables with every parameter away from its initial constant, prompts and completions."""
    config = _CONFIGS[name]
    variables = transformer.init(config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    prompts = jax.random.randint(jax.random.key(2), (_B, _S), 0, config.vocab_size)
    completions = jax.random.randint(jax.random.key(3), (_B, _R, _C), 0, config.vocab_size)
    return config, jax.tree.unflatten(tree, leaves), prompts, completions


def _unshared(config, variables, prompts, completions):
    """Each rollout on its own: prompt and completion in one left-padded row, so that only `forward` is used."""
    rows = jnp.concatenate([jnp.repeat(prompts, _R, axis=0), completions.reshape(_B * _R, _C)], axis=1)
    hidden = _forward(config, variables, rows, jnp.repeat(_LENGTHS, _R) + _C)
    return hidden.reshape(_B, _R, _S + _C, -1)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "qwen", "llama3", "qwen3"])
def test_shared_prompt_gives_values_and_gradients_of_separate_rows(name):
    config, variables, prompts, completions = _setup(name)
    weights = jax.random.normal(jax.random.key(4), (_B, _R, _C, config.vocab_size))

    def loss(variables, shared):
        if shared:
            hidden = _forward_shared(config, variables, prompts, _LENGTHS, completions)
        else:
            hidden = _unshared(config, variables, prompts, completions)[:, :, _S - 1 : -1]
        return jnp.sum(weights * jax.nn.log_softmax(_unembed(config, variables, hidden)))

    (one, one_grad), (two, two_grad) = (
        jax.jit(jax.value_and_grad(loss), static_argnums=1)(variables, s) for s in (1, 0)
    )
    np.testing.assert_allclose(one, two, rtol=1e-5)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(two_grad))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), one_grad, two_grad)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(two_grad))


@pytest.mark.parametrize("name", ["gemma2", "deep", "gemma3", "qwen"])
def test_cached_decoding_and_states_at_tokens_equal_the_full_pass(name):
    config, variables, prompts, completions = _setup(name)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5 * config.num_layers)  # rounding adds up over layers
    full = _unshared(config, variables, prompts, completions)
    states = _completion_states(config, variables, prompts, _LENGTHS, completions)
    close(states, full[:, :, _S:])

    hidden, prompt_cache = _prefill(config, variables, prompts, _LENGTHS)
    close(hidden, full[:, 0, _S - 1])
    cache = caches.empty_completion_cache(config, _B, _R, _C)
    decode = jax.jit(functools.partial(transformer.decode, config), static_argnames="slots")
    for step in range(_C):
        slots = 4 if step < 4 else None
        tokens = completions[:, :, step]
        hidden, cache = decode(variables, tokens, jnp.int32(step), _LENGTHS, prompt_cache, cache, slots=slots)
        close(hidden, full[:, :, _S + step])


@pytest.mark.parametrize("name", ["gemma2", "qwen"])
def test_padding_influences_nothing(name):
    config, variables, prompts, completions = _setup(name)
    padded = jnp.arange(_S) < _S - _LENGTHS[:, None]
    other = jnp.where(padded, (prompts + 5) % config.vocab_size, prompts)
    same = functools.partial(np.testing.assert_array_equal)
    passes = [_forward_shared(config, variables, p, _LENGTHS, completions) for p in (prompts, other)]
    same(*passes)
    same(*[_prefill(config, variables, p, _LENGTHS)[0] for p in (prompts, other)])
    full = [_forward(config, variables, p, _LENGTHS) for p in (prompts, other)]
    same(*[jnp.where(padded[..., None], 0, x) for x in full])

    # Wider padding moves a prompt to other slots, and nothing else.
    wide = jnp.pad(prompts, [(0, 0), (4, 0)], constant_values=2)
    np.testing.assert_allclose(_forward_shared(config, variables, wide, _LENGTHS, completions), passes[0], atol=2e-5)


@pytest.mark.parametrize("name", ["plain", "gemma3"])
def test_gradients_show_who_sees_whom(name):
    """d hidden[t] / d token-vector[s] is zero exactly where s is later, or beyond what the windows can carry."""
    config, variables, _, _ = _setup(name)
    config = config.replace(pattern=("global",)) if name == "plain" else config.replace(pattern=("local",))
    length = 12
    tokens = jnp.arange(length)[None]

    def hidden(table):
        tree = {"params": {**variables["params"], "embed": {"embedding": table}}}
        return _forward(config, tree, tokens, jnp.array([length]))[0].sum(axis=-1)

    jacobian = jax.jacobian(hidden)(variables["params"]["embed"]["embedding"])[:, :length]
    influence = np.abs(np.asarray(jacobian)).sum(axis=-1) > 0
    distance = np.arange(length)[:, None] - np.arange(length)
    reach = length if name == "plain" else config.num_layers * (config.window - 1)
    np.testing.assert_array_equal(influence, (distance >= 0) & (distance <= reach))


def test_grouped_query_attention_equals_repeated_heads():
    config, variables, prompts, _ = _setup("plain")
    repeat = config.num_heads // config.num_kv_heads
    layers = dict(variables["params"]["layers"])
    for name in ("k", "v"):
        layers[name] = {"kernel": jnp.repeat(layers[name]["kernel"], repeat, axis=2)}
    full = {"params": {**variables["params"], "layers": layers}}
    np.testing.assert_allclose(
        _forward(config.replace(num_kv_heads=config.num_heads), full, prompts, _LENGTHS),
        _forward(config, variables, prompts, _LENGTHS),
        atol=2e-5,
    )


def test_reward_reads_the_last_token_and_shares_the_prompt():
    config, _, prompts, completions = _setup("gemma2")
    variables = heads.init(config, jax.random.key(5))
    lengths = jnp.array([[6, 1], [2, 4], [3, 5]])
    reward = functools.partial(_reward, config)
    rewards = reward(variables, prompts, _LENGTHS, completions, lengths)
    head = variables["params"]["reward_head"]
    for b in range(_B):
        for r in range(_R):
            row = jnp.concatenate([prompts[b, _S - _LENGTHS[b] :], completions[b, r, : lengths[b, r]]])[None]
            last = _forward(config, variables, row, jnp.array([row.shape[1]]))[0, -1]
            np.testing.assert_allclose(rewards[b, r], last @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)
    after = jnp.arange(_C) >= lengths[..., None]
    np.testing.assert_array_equal(
        rewards, reward(variables, prompts, _LENGTHS, jnp.where(after, 3, completions), lengths)
    )
    assert np.isnan(reward(variables, prompts, _LENGTHS, completions, lengths.at[1, 0].set(0))[1, 0])


def test_adapters_add_a_low_rank_matrix_to_the_kernel():
    config, variables, prompts, _ = _setup("plain")
    config = config.replace(lora_scale=0.5)
    a = jax.random.normal(jax.random.key(6), (3, 16, 2))
    b = jax.random.normal(jax.random.key(7), (3, 2, 4, 6))
    adapted = {**variables, "lora": {"layers": {"q": {"a": a, "b": b}}}}
    layers = dict(variables["params"]["layers"])
    layers["q"] = {"kernel": layers["q"]["kernel"] + 0.5 * jnp.einsum("ldr,lrnh->ldnh", a, b)}
    merged = {"params": {**variables["params"], "layers": layers}}
    hidden = _forward(config, adapted, prompts, _LENGTHS)
    np.testing.assert_allclose(hidden, _forward(config, merged, prompts, _LENGTHS), atol=1e-4)
    assert float(jnp.abs(hidden - _forward(config, variables, prompts, _LENGTHS)).max()) > 0.1
    axes = sharding.logical_axes(adapted)
    assert axes["lora"]["layers"]["q"] == {
        "a": ("layers", "embed", "lora"),
        "b": ("layers", "lora", "heads", "head_dim"),
    }


def test_bfloat16_stays_near_float32():
    config, variables, prompts, _ = _setup("gemma2")
    full = _forward(config, variables, prompts, _LENGTHS)
    half = _forward(config.replace(dtype="bfloat16"), variables, prompts, _LENGTHS)
    assert half.dtype == jnp.bfloat16
    real = np.arange(_S) >= _S - np.asarray(_LENGTHS)[:, None]
    error = np.abs(np.asarray(half, np.float32) - np.asarray(full))[real]
    assert 0 < error.max() < 0.05 * np.abs(full).max()


@pytest.mark.parametrize("name", _CONFIGS)
def test_every_parameter_has_axis_names(name):
    config = _CONFIGS[name]
    shapes = jax.eval_shape(functools.partial(heads.init, config), jax.random.key(0))
    axes = sharding.logical_axes(shapes)
    flat = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    sizes = {
        "layers": config.num_layers, "vocab": config.vocab_size, "embed": config.embed_dim, "heads": config.num_heads,
        "kv_heads": config.num_kv_heads, "head_dim": config.head_dim, "norm": config.head_dim, "mlp": config.mlp_dim,
    }  # fmt: skip
    for names, leaf in zip(flat, jax.tree.leaves(shapes), strict=True):
        assert tuple(sizes[n] for n in names) == leaf.shape
    with pytest.raises(ValueError, match="no axis names for parameter strange"):
        sharding.logical_axes({"params": {"strange": jnp.zeros(3)}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads is 3; it must divide"),
        ({"head_dim": 5}, "head_dim is 5"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"activation": "relu"}, "'silu', 'gelu_tanh'"),
        ({"pattern": ("local",)}, "window is None"),
        ({"pattern": ("strided",)}, "pattern is"),
        ({"logit_soft_cap": 0.0}, "logit_soft_cap is 0.0"),
        ({"rope_scaling": {"kind": "yarn", "factor": 2.0}}, "rope_scaling.kind is 'yarn'"),
        ({"rope_scaling": {"kind": "linear", "factor": 0.0}}, "rope_scaling.factor"),
        ({"layers": 3}, "model.layers is not a known key"),
    ],
)
def test_bad_configs_are_refused_with_the_key(change, message):
    with pytest.raises(ValueError, match=message):
        from_dict({**_SIZES, **change})
