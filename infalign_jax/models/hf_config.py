"""A Hugging Face config.json read as a TransformerConfig; what we cannot honour is refused by name."""

from infalign_jax.models.config import RopeScaling, TransformerConfig

_GEMMA = dict(norm_plus_one=True, scale_embeddings=True, post_norms=True)
_GEMMA_DEFAULTS = dict(head_dim=256, tie_word_embeddings=True, query_pre_attn_scalar=256, sliding_window=4096)

# model_type -> what the family always has, and the values of keys that its config.json may leave out.
_FAMILIES = {
    "gemma2": (_GEMMA, _GEMMA_DEFAULTS | dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0, period=2)),
    "gemma3_text": (
        _GEMMA | dict(qk_norm=True),
        _GEMMA_DEFAULTS
        | dict(vocab_size=262_208, num_attention_heads=8, num_key_value_heads=4, rope_theta=1_000_000.0, period=6),
    ),
    "llama": ({}, {}),
    "qwen2": (dict(attention_bias=True), {}),
    "qwen3": (dict(qk_norm=True), dict(head_dim=128)),
}
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# Keys that change the network and that we have no counterpart for, with the values that switch them off.
_UNSUPPORTED = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_bidirectional_attention": (False, None),
    "quantization_config": (None,),
    "partial_rotary_factor": (1.0, None),
    "attention_chunk_size": (None,),
}
_NEEDED = ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
_WHOLE = (
    *_NEEDED, "num_key_value_heads", "head_dim", "sliding_window", "sliding_window_pattern", "_sliding_window_pattern",
    "max_window_layers",
)  # fmt: skip
_REAL = ("rms_norm_eps", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "rope_theta")
_KINDS = {"full_attention": "global", "sliding_attention": "local"}


def text_config(values: dict) -> dict:
    """The language model's part of a config.json: itself, or `text_config` of a model that also sees images."""
    if values.get("model_type") != "gemma3":
        return values
    if not isinstance(values.get("text_config"), dict):
        raise ValueError("config.json has model_type 'gemma3' and no object text_config")
    return values["text_config"]


def from_hf(values: dict, **changes) -> TransformerConfig:
    """The TransformerConfig of a parsed config.json of Gemma 2 / 3, Llama, Qwen 2.5 / 3; `changes` replace fields.

    Raises ValueError for another model_type and for every option that would change the result and is not supported.
    """
    values = text_config(values)
    family = values.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise ValueError(f"config.json has model_type {family!r}; supported are {', '.join(_FAMILIES)}")
    constants, defaults = _FAMILIES[family]
    values = {**defaults, **{key: value for key, value in values.items() if value is not None or key not in defaults}}
    _check_numbers(values)
    for key, legal in _UNSUPPORTED.items():
        if values.get(key) not in legal:
            raise ValueError(f"config.json has {key} = {values[key]!r}, which is not supported for {family}")
    activation = values.get("hidden_activation") or values.get("hidden_act") or "gelu_pytorch_tanh"
    if family.startswith("gemma") and activation == "gelu":
        activation = "gelu_pytorch_tanh"  # early Gemma files say gelu and mean this
    if activation not in _ACTIVATIONS:
        raise ValueError(f"config.json has activation {activation!r}; supported are {', '.join(_ACTIVATIONS)}")
    heads = values["num_attention_heads"]
    kinds = _layer_kinds(values)
    fields = dict(
        vocab_size=values["vocab_size"],
        num_layers=values["num_hidden_layers"],
        embed_dim=values["hidden_size"],
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or values["hidden_size"] // heads,
        mlp_dim=values["intermediate_size"],
        activation=_ACTIVATIONS[activation],
        norm_eps=values.get("rms_norm_eps", 1e-6),
        tied_embeddings=bool(values.get("tie_word_embeddings", False)),
        pattern=kinds,
        window=values["sliding_window"] if "local" in kinds else None,
        attention_soft_cap=values.get("attn_logit_softcapping"),
        logit_soft_cap=values.get("final_logit_softcapping"),
    )
    if "query_pre_attn_scalar" in values:
        fields["query_scale"] = values["query_pre_attn_scalar"] ** -0.5
    return TransformerConfig(**{**fields, **_rope(family, values), **constants, **changes})


def _check_numbers(values):
    """Refuses values of another type than the arithmetic below takes; their ranges are for `TransformerConfig` to judge."""
    for key in _WHOLE:
        value = values.get(key)
        if value is None and key not in _NEEDED:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"config.json has {key} = {value!r}; it must be a positive whole number")
    for key in _REAL:
        value = values.get(key)
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < float("inf")):
            raise ValueError(f"config.json has {key} = {value!r}; it must be a positive number")
    kinds = values.get("layer_types")
    if kinds is not None and not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        raise ValueError(f"config.json has layer_types = {kinds!r}; it must be a list of names")


def _layer_kinds(values):
    """('local' | 'global', ...) for each layer, or ('global',) when all are."""
    layers = range(values["num_hidden_layers"])
    period = values.get("sliding_window_pattern") or values.get("_sliding_window_pattern") or values.get("period")
    if values.get("layer_types"):
        unknown = set(values["layer_types"]) - set(_KINDS)
        if unknown:
            raise ValueError(f"config.json has layer_types {sorted(unknown)}; supported are {', '.join(_KINDS)}")
        kinds = tuple(_KINDS[kind] for kind in values["layer_types"])
    elif period:
        kinds = tuple("global" if (i + 1) % period == 0 else "local" for i in layers)
    elif values.get("use_sliding_window"):
        kinds = tuple("local" if i >= values["max_window_layers"] else "global" for i in layers)
    else:
        kinds = ("global",)
    return kinds if "local" in kinds else ("global",)


def _rope(family, values):
    """Rotary fields, from either spelling: rope_parameters, or rope_theta with rope_scaling."""
    new = values.get("rope_parameters") or {}
    full = new.get("full_attention", new)
    scaling = full or values.get("rope_scaling") or {}
    fields = dict(rope_base=float(full.get("rope_theta", values.get("rope_theta") or 10_000.0)))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        fields["rope_scaling"] = RopeScaling("linear", float(scaling["factor"]))
    elif kind == "llama3":
        fields["rope_scaling"] = RopeScaling(
            "llama3",
            float(scaling["factor"]),
            float(scaling["low_freq_factor"]),
            float(scaling["high_freq_factor"]),
            int(scaling["original_max_position_embeddings"]),
        )
    elif kind != "default":
        raise ValueError(f"config.json has rope type {kind!r}; supported are default, linear and llama3")
    if family == "gemma3_text":
        local = new.get("sliding_attention", {})
        if local.get("rope_type", "default") != "default":
            raise ValueError(
                f"config.json has rope type {local['rope_type']!r} for sliding layers; supported is default"
            )
        fields["rope_local_base"] = float(local.get("rope_theta", values.get("rope_local_base_freq", 10_000.0)))
    return fields
