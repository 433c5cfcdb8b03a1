"""Published models as data: what their config.json files say, in our words. A family is a dict, a size a line."""

from infalign_jax.models.config import RopeScaling, TransformerConfig

_GEMMA2 = dict(
    vocab_size=256_000, activation="gelu_tanh", norm_plus_one=True, scale_embeddings=True, post_norms=True,
    window=4096, pattern=("local", "global"), attention_soft_cap=50.0, logit_soft_cap=30.0, query_scale=256**-0.5,
)  # fmt: skip
_GEMMA3 = dict(
    vocab_size=262_208, activation="gelu_tanh", norm_plus_one=True, scale_embeddings=True, post_norms=True,
    qk_norm=True, window=1024, pattern=("local",) * 5 + ("global",), query_scale=256**-0.5, rope_base=1_000_000.0,
    rope_local_base=10_000.0, rope_scaling=RopeScaling("linear", 8.0),
)  # fmt: skip
_LLAMA3 = dict(vocab_size=128_256, norm_eps=1e-5, rope_base=500_000.0, rope_scaling=RopeScaling("llama3", 8.0))
_LLAMA3_SMALL = _LLAMA3 | {"rope_scaling": RopeScaling("llama3", 32.0)}
_QWEN25 = dict(vocab_size=152_064, attention_bias=True, rope_base=1_000_000.0, tied_embeddings=False)
_QWEN25_SMALL = _QWEN25 | {"vocab_size": 151_936, "tied_embeddings": True}
_QWEN3 = dict(vocab_size=151_936, qk_norm=True, rope_base=1_000_000.0, tied_embeddings=False)
_QWEN3_SMALL = _QWEN3 | {"tied_embeddings": True}
_UNTIED = {"tied_embeddings": False}

# name -> (family, layers, D, query heads, key/value heads, head width, feed-forward width, exceptions)
_MODELS = {
    "gemma2_2b": (_GEMMA2, 26, 2304, 8, 4, 256, 9216, {}),
    "gemma2_9b": (_GEMMA2, 42, 3584, 16, 8, 256, 14336, {}),
    "gemma2_27b": (_GEMMA2, 46, 4608, 32, 16, 128, 36864, {"query_scale": 144**-0.5}),
    "gemma3_1b": (_GEMMA3, 26, 1152, 4, 1, 256, 6912, {"vocab_size": 262_144, "window": 512, "rope_scaling": None}),
    "gemma3_4b": (_GEMMA3, 34, 2560, 8, 4, 256, 10240, {}),
    "gemma3_12b": (_GEMMA3, 48, 3840, 16, 8, 256, 15360, {}),
    "gemma3_27b": (_GEMMA3, 62, 5376, 32, 16, 128, 21504, {"query_scale": 168**-0.5}),
    "llama3_1b": (_LLAMA3_SMALL, 16, 2048, 32, 8, 64, 8192, {}),
    "llama3_3b": (_LLAMA3_SMALL, 28, 3072, 24, 8, 128, 8192, {}),
    "llama3_8b": (_LLAMA3, 32, 4096, 32, 8, 128, 14336, _UNTIED),
    "llama3_70b": (_LLAMA3, 80, 8192, 64, 8, 128, 28672, _UNTIED),
    "qwen25_0_5b": (_QWEN25_SMALL, 24, 896, 14, 2, 64, 4864, {}),
    "qwen25_1_5b": (_QWEN25_SMALL, 28, 1536, 12, 2, 128, 8960, {}),
    "qwen25_3b": (_QWEN25_SMALL, 36, 2048, 16, 2, 128, 11008, {}),
    "qwen25_7b": (_QWEN25, 28, 3584, 28, 4, 128, 18944, {}),
    "qwen25_14b": (_QWEN25, 48, 5120, 40, 8, 128, 13824, {"norm_eps": 1e-5}),
    "qwen25_32b": (_QWEN25, 64, 5120, 40, 8, 128, 27648, {"norm_eps": 1e-5}),
    "qwen25_72b": (_QWEN25, 80, 8192, 64, 8, 128, 29568, {"norm_eps": 1e-5}),
    "qwen3_0_6b": (_QWEN3_SMALL, 28, 1024, 16, 8, 128, 3072, {}),
    "qwen3_1_7b": (_QWEN3_SMALL, 28, 2048, 16, 8, 128, 6144, {}),
    "qwen3_4b": (_QWEN3_SMALL, 36, 2560, 32, 8, 128, 9728, {}),
    "qwen3_8b": (_QWEN3, 36, 4096, 32, 8, 128, 12288, {}),
    "qwen3_14b": (_QWEN3, 40, 5120, 40, 8, 128, 17408, {}),
    "qwen3_32b": (_QWEN3, 64, 5120, 64, 8, 128, 25600, {}),
}


def names() -> list[str]:
    """Every preset there is."""
    return list(_MODELS)


def from_name(name: str, **changes) -> TransformerConfig:
    """The published architecture `name`, computing and storing in bfloat16, with any field changed by keyword.

    Raises ValueError for an unknown name.
    """
    if name not in _MODELS:
        raise ValueError(f"model preset is {name!r}; legal are {', '.join(_MODELS)}")
    family, layers, width, heads, kv_heads, head_dim, mlp, exceptions = _MODELS[name]
    sizes = dict(
        num_layers=layers, embed_dim=width, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, mlp_dim=mlp
    )
    half = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    return TransformerConfig(**{**family, **sizes, **half, **exceptions, **changes})
