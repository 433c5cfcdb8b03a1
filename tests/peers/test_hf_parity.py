"""Our transformer against `transformers`' own PyTorch forward pass, on random models of every family."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from infalign_jax.models import heads, hf, hf_save, presets, transformer
from infalign_jax.sampling import sampler
from tests.peers.families import FAMILIES, SIZES, make
from tests.test_models_hf_layout import published

pytestmark = pytest.mark.peers
_S = 40
_LENGTHS = np.array([40, 23, 1])
_TOKENS = np.random.default_rng(0).integers(3, 99, size=(3, _S))
_MASK = np.arange(_S) >= _S - _LENGTHS[:, None]


def _their_logits(model, tokens=_TOKENS, mask=_MASK, head=None):
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            position_ids=torch.tensor(positions),
        )
        logits = out.logits if head is None else head(out.last_hidden_state)
    return logits.float().numpy()


def _our_logits(config, variables):
    hidden = jax.jit(transformer.forward, static_argnums=0)(config, variables, jnp.array(_TOKENS), jnp.array(_LENGTHS))
    return np.asarray(transformer.unembed(config, variables, hidden))


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_greedy_tokens_and_round_trip(name, tmp_path):
    model = make(name, tmp_path / "theirs")
    config, variables = hf.load(tmp_path / "theirs")
    expected = _their_logits(model)
    error = np.abs(_our_logits(config, variables) - expected)[_MASK].max()
    assert error <= 2e-4 * np.abs(expected[_MASK]).max()

    out = sampler.sample(
        config, variables, jnp.array(_TOKENS), jnp.array(_LENGTHS), jnp.arange(3), jax.random.key(0),
        rollouts=1, max_tokens=64, eos_ids=(), temperature=0.0,
    )  # fmt: skip
    tokens, mask = _TOKENS, _MASK
    for _ in range(64):  # by full passes, so that their cache plays no part
        best = _their_logits(model, tokens, mask)[:, -1].argmax(-1)
        tokens = np.concatenate([tokens, best[:, None]], axis=1)
        mask = np.pad(mask, [(0, 0), (0, 1)], constant_values=True)
    np.testing.assert_array_equal(out.tokens_BRC[:, 0], tokens[:, _S:])

    hf_save.save(tmp_path / "ours", config, variables, tmp_path / "theirs")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    for (key, one), (other, two) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert key == other and torch.equal(one, two)
    np.testing.assert_array_equal(_their_logits(again.eval()), expected)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "llama", "qwen2", "qwen3"])
def test_bfloat16_is_bit_exact_in_storage_and_close_in_value(name, tmp_path):
    model = make(name, tmp_path / "theirs", dtype=torch.bfloat16, shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    config, variables = hf.load(tmp_path / "theirs", param_dtype="bfloat16")
    hf_save.save(tmp_path / "ours", config, variables, tmp_path / "theirs", shard_bytes=20_000)
    assert (tmp_path / "ours" / "model.safetensors.index.json").exists()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    for one, two in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    # Loaded anew: model.to(bfloat16) also rounds the rotary frequencies, from_pretrained does not.
    load = functools.partial(transformers.AutoModelForCausalLM.from_pretrained, attn_implementation="eager")
    exact = _their_logits(load(tmp_path / "theirs", dtype=torch.float32).eval())[_MASK]
    scale = np.abs(exact).max()
    full = _our_logits(config, variables)[_MASK]
    half = _our_logits(config.replace(dtype="bfloat16"), variables)[_MASK]
    theirs = _their_logits(again.eval())[_MASK]
    assert np.abs(full - exact).max() <= 2e-4 * scale
    assert np.abs(half - exact).max() <= max(2 * np.abs(theirs - exact).max(), 0.02 * scale)


@pytest.mark.parametrize("name", ["gemma2", "llama", "qwen2", "qwen3"])
def test_classifier_scores_are_our_rewards(name, tmp_path):
    model = make(name, tmp_path, kind="ForSequenceClassification", num_labels=1)
    config, variables = hf.load(tmp_path, reward_head=True)
    rng = np.random.default_rng(1)
    completions, lengths = rng.integers(3, 99, size=(3, 2, 9)), np.array([[9, 4], [1, 7], [5, 5]])
    rewards = jax.jit(heads.reward, static_argnums=0)(
        config, variables, _TOKENS, jnp.array(_LENGTHS), completions, lengths
    )
    for b in range(3):
        for r in range(2):
            row = np.concatenate([_TOKENS[b, _S - _LENGTHS[b] :], completions[b, r, : lengths[b, r]]])
            with torch.no_grad():
                score = model(input_ids=torch.tensor(row[None])).logits.item()
            np.testing.assert_allclose(rewards[b, r], score, rtol=2e-4, atol=2e-4)


def test_sharded_reading_gives_the_same_arrays(tmp_path):
    """Each axis cut over two devices in turn: the pieces make the whole array."""
    if jax.device_count() < 2:
        pytest.skip("needs several devices: XLA_FLAGS=--xla_force_host_platform_device_count=2")
    make("llama", tmp_path, vocab_size=98)
    _, whole = hf.load(tmp_path)
    mesh = jax.make_mesh((2,), ("m",), axis_types=(jax.sharding.AxisType.Auto,))
    from infalign_jax.models.sharding import logical_axes

    for cut in ("embed", "kv_heads", "head_dim", "mlp", "vocab", "layers"):
        shardings = jax.tree.map(
            lambda names, cut=cut: jax.NamedSharding(mesh, jax.P(*["m" if n == cut else None for n in names])),
            logical_axes(whole), is_leaf=lambda x: isinstance(x, tuple),
        )  # fmt: skip
        _, parts = hf.load(tmp_path, shardings=shardings)
        jax.tree.map(np.testing.assert_array_equal, whole, parts)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "mamba"), ("attention_bias", True), ("mlp_bias", True), ("hidden_act", "relu"),
        ("rope_parameters", {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}), ("hidden_size", 64),
        ("num_hidden_layers", 3), ("num_hidden_layers", 5),
    ],
)  # fmt: skip
def test_unsupported_options_and_wrong_tensors_are_named(key, value, tmp_path):
    make("llama", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=r"config\.json|the folder has"):
        hf.load(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        hf.load(tmp_path)
    make("llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors does not exist"):
        hf.load(tmp_path)


def test_the_text_part_of_a_model_that_sees_images(tmp_path):
    """Gemma 3 of 4B and above: read beside its vision tower, saved as the text model alone."""
    _, text = FAMILIES["gemma3"]
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    config = transformers.Gemma3Config(
        text_config={**SIZES, **text}, vision_config=vision, mm_tokens_per_image=1, attn_implementation="eager"
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "theirs")
    config, variables = hf.load(tmp_path / "theirs")
    expected = _their_logits(model.model.language_model, head=model.lm_head)
    assert np.abs(_our_logits(config, variables) - expected)[_MASK].max() <= 2e-4 * np.abs(expected[_MASK]).max()
    hf_save.save(tmp_path / "ours", config, variables, tmp_path / "theirs")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert type(again).__name__ == "Gemma3ForCausalLM"
    np.testing.assert_allclose(_their_logits(again.eval()), expected, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in presets.names() if n not in ("gemma3_4b", "gemma3_12b", "gemma3_27b")])
def test_the_layouts_of_the_default_suite_are_theirs(name):
    """Names and shapes of every tensor of a full-size model, made without memory by `transformers`."""
    values, tensors = published(name)
    config = transformers.AutoConfig.for_model(**values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    theirs = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        theirs.pop("lm_head.weight")
    assert theirs == tensors


_RANDOM = [(family, seed) for family in ("gemma2", "gemma3", "llama", "qwen2", "qwen3") for seed in range(4)]


@pytest.mark.parametrize(("family", "seed"), _RANDOM)
def test_logits_of_random_shapes(family, seed, tmp_path):
    """Sizes, windows, caps, bases and tying drawn at random, odd ones above all; lengths beyond every window."""
    rng = np.random.default_rng([seed, *family.encode()])
    pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    kv, group = pick(1, 1, 2, 3), pick(1, 2, 3, 5)
    sizes = dict(
        num_hidden_layers=int(rng.integers(1, 9)), num_key_value_heads=kv, num_attention_heads=kv * group,
        hidden_size=kv * group * pick(5, 7, 8, 13), head_dim=2 * int(rng.integers(2, 14)), vocab_size=99,
        intermediate_size=int(rng.integers(3, 60)), rms_norm_eps=pick(1e-6, 1e-5), tie_word_embeddings=bool(pick(0, 1)),
    )  # fmt: skip
    rope = {"rope_theta": float(pick(50.0, 10_000.0, 1_000_000.0)), "rope_type": "default"}
    if family == "llama" and seed % 2:
        rope |= dict(rope_type="llama3", factor=float(pick(8, 32)), low_freq_factor=1.0, high_freq_factor=4.0,
                     original_max_position_embeddings=int(pick(16, 64)))  # fmt: skip
    more = {"rope_parameters": rope}
    if family.startswith("gemma"):
        more = dict(query_pre_attn_scalar=int(rng.integers(3, 40)), sliding_window=int(rng.integers(1, 12)))
    if family == "gemma2":
        more |= dict(attn_logit_softcapping=pick(None, 1.5, 50.0), final_logit_softcapping=pick(None, 2.5, 30.0))
    if family == "gemma3":
        full = {"rope_theta": 10_000.0, **pick({"rope_type": "default"}, {"rope_type": "linear", "factor": 3.0})}
        local = {"rope_theta": 100.0, "rope_type": "default"}
        more |= dict(rope_parameters={"sliding_attention": local, "full_attention": full},
                     layer_types=[pick("sliding_attention", "full_attention") for _ in range(sizes["num_hidden_layers"])])  # fmt: skip
    if family.startswith("qwen") and seed % 2:
        more |= dict(use_sliding_window=True, sliding_window=int(rng.integers(2, 12)),
                     max_window_layers=int(rng.integers(0, sizes["num_hidden_layers"])))  # fmt: skip
    model = make(family, tmp_path / "theirs", **sizes, **more)
    config, variables = hf.load(tmp_path / "theirs")
    expected = _their_logits(model)
    assert np.abs(_our_logits(config, variables) - expected)[_MASK].max() <= 2e-4 * np.abs(expected[_MASK]).max()
