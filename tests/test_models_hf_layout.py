"""Folders laid out as the published ones are, weights left out: every preset's config.json, index and shapes, read as they stand."""

import functools
import json
import struct

import jax
import pytest

from infalign_jax.models import hf, presets, transformer

pytest.importorskip("safetensors")

_GEMMA3 = {"factor": 8.0, "rope_type": "linear"}
_LLAMA3 = {
    "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
_QWEN = {
    "hidden_act": "silu", "max_window_layers": 28, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "use_sliding_window": False, "attention_dropout": 0.0,
}  # fmt: skip
# What the published config.json files of a family say in their own words, besides the sizes.
_FAMILIES = {
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "attention_bias": False,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "float32", "vocab_size": 256000,
    },
    "gemma3_1b": {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262144,
    },
    # Of the larger ones the text model's part; it leaves out what is the default of the family.
    "gemma3": {"model_type": "gemma3_text", "rope_scaling": _GEMMA3, "sliding_window": 1024},
    "llama3": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "hidden_act": "silu",
        "mlp_bias": False, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, **_LLAMA3},
        "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 128256,
    },
    "qwen25": {**_QWEN, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "sliding_window": 131072},
    "qwen3": {
        **_QWEN, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False,
        "rope_scaling": None, "sliding_window": None, "vocab_size": 151936,
    },
}  # fmt: skip
_SMALL_LLAMA = {"tie_word_embeddings": True, "rope_scaling": {"factor": 32.0, **_LLAMA3}}
_SMALL_QWEN, _LARGE_QWEN = (
    {"tie_word_embeddings": tied, "vocab_size": v} for tied, v in ((True, 151936), (False, 152064))
)
_DIFFERENT = {
    "gemma2_27b": {"query_pre_attn_scalar": 144}, "gemma3_27b": {"query_pre_attn_scalar": 168},
    "llama3_1b": _SMALL_LLAMA, "llama3_3b": _SMALL_LLAMA,
    **{f"qwen25_{size}": _SMALL_QWEN for size in ("0_5b", "1_5b", "3b")}, "qwen25_7b": _LARGE_QWEN,
    **{f"qwen25_{size}": _LARGE_QWEN | {"rms_norm_eps": 1e-05} for size in ("14b", "32b", "72b")},
    **{f"qwen3_{size}": {"tie_word_embeddings": True} for size in ("0_6b", "1_7b", "4b")},
    **{f"qwen3_{size}": {"tie_word_embeddings": False} for size in ("8b", "14b", "32b")},
}  # fmt: skip
_LEFT_OUT = {  # sizes that are the default of the family, and so are not in these files
    "gemma3_4b": ("vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    "gemma3_12b": ("vocab_size", "head_dim"), "gemma3_27b": ("vocab_size",),
    **dict.fromkeys(("llama3_8b", "llama3_70b", *(n for n in presets.names() if n.startswith("qwen25"))), ("head_dim",)),
}  # fmt: skip


def published(name):
    """(config.json, {tensor name: shape}) as the model `name` is published."""
    family = next(f for f in ("gemma3_1b", *_FAMILIES) if name.startswith(f))
    c = presets.from_name(name)
    sizes = {
        "vocab_size": c.vocab_size, "num_hidden_layers": c.num_layers, "hidden_size": c.embed_dim,
        "num_attention_heads": c.num_heads, "num_key_value_heads": c.num_kv_heads, "head_dim": c.head_dim,
        "intermediate_size": c.mlp_dim,
    }  # fmt: skip
    for key in _LEFT_OUT.get(name, ()):
        del sizes[key]
    values = sizes | _FAMILIES[family] | _DIFFERENT.get(name, {})
    D, q, kv, H = c.embed_dim, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.head_dim
    layer = {
        "self_attn.q_proj.weight": [q, D], "self_attn.k_proj.weight": [kv, D], "self_attn.v_proj.weight": [kv, D],
        "self_attn.o_proj.weight": [D, q], "mlp.gate_proj.weight": [c.mlp_dim, D], "mlp.up_proj.weight": [c.mlp_dim, D],
        "mlp.down_proj.weight": [D, c.mlp_dim], "input_layernorm.weight": [D], "post_attention_layernorm.weight": [D],
    }  # fmt: skip
    if family.startswith("gemma"):
        layer |= {f"{where}_feedforward_layernorm.weight": [D] for where in ("pre", "post")}
    if family == "qwen25":
        layer |= {f"self_attn.{p}_proj.bias": [q if p == "q" else kv] for p in "qkv"}
    if family in ("qwen3", "gemma3", "gemma3_1b"):
        layer |= {f"self_attn.{p}_norm.weight": [H] for p in "qk"}
    tensors = {"model.embed_tokens.weight": [c.vocab_size, D], "model.norm.weight": [D]}
    tensors |= {f"model.layers.{i}.{part}": shape for i in range(c.num_layers) for part, shape in layer.items()}
    if not values.get("tie_word_embeddings", True):
        tensors["lm_head.weight"] = [c.vocab_size, D]
    if family == "gemma3":  # with the part that sees images beside it
        values = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": values}
        tensors = {f"language_model.{key}": shape for key, shape in tensors.items()}
        tensors |= {
            "vision_tower.vision_model.head.weight": [8, 8],
            "multi_modal_projector.mm_soft_emb_norm.weight": [8],
        }
    return values, tensors


def write(folder, values, tensors, shard_bytes=5_000_000_000):
    """The folder with files of full size that hold nothing but a header: the rest is a hole that takes no room."""
    files, room = [{}], shard_bytes
    for key, shape in sorted(tensors.items()):
        size = 2 * functools.reduce(int.__mul__, shape)
        if files[-1] and size > room:
            files.append({})
            room = shard_bytes
        files[-1][key] = (shape, size)
        room -= size
    index = {}
    for number, file in enumerate(files, 1):
        name, header, end = f"model-{number:05d}-of-{len(files):05d}.safetensors", {"__metadata__": {"format": "pt"}}, 0
        for key, (shape, size) in file.items():
            header[key], index[key], end = (
                {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]},
                name,
                end + size,
            )
        text = json.dumps(header).encode()
        with open(folder / name, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    )
    (folder / "config.json").write_text(json.dumps(values))
    return len(files)


@pytest.mark.parametrize("name", presets.names())
def test_a_published_layout_is_read_by_shape(name, tmp_path):
    preset = presets.from_name(name)
    files = write(tmp_path, *published(name))
    config, shapes = hf.load_shapes(tmp_path, dtype="bfloat16", param_dtype="bfloat16")
    assert config.is_local == preset.is_local and config.replace(pattern=preset.pattern) == preset
    expected = jax.eval_shape(functools.partial(transformer.init, preset), jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)
    assert files > 1 or name not in ("gemma2_2b", "llama3_8b")  # 5.2 and 16 GB of weights


def test_a_missing_file_of_a_published_layout_is_named(tmp_path):
    write(tmp_path, *published("llama3_8b"))
    (tmp_path / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00003-of-00004\.safetensors does not exist"):
        hf.load_shapes(tmp_path)
