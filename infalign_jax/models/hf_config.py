"""A Hugging Face config.json read as a TransformerConfig; what we cannot honour is refused by name."""

import functools

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
    "is_causal": (True, None),
}
_WHOLE = (
    "vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "sliding_window", "sliding_window_pattern", "_sliding_window_pattern",
)  # fmt: skip
_REAL = (
    "rms_norm_eps", "rope_theta", "rope_local_base_freq", "query_pre_attn_scalar", "attn_logit_softcapping",
    "final_logit_softcapping",
)  # fmt: skip
_KINDS = {"full_attention": "global", "sliding_attention": "local"}


def text_config(values: dict) -> dict:
    """The language model's part of a config.json: itself, or `text_config` of a model that also sees images."""
    return _get(values, "text_config", dict) if values.get("model_type") == "gemma3" else values


def _get(values, key, kind):
    """values[key], checked: a dict, a positive int or a positive float. ValueError names the key."""
    value, words = values.get(key), {dict: "an object", int: "a positive whole number", float: "a positive number"}
    legal = (int, float) if kind is float else kind
    if not isinstance(value, legal) or isinstance(value, bool) or (kind is not dict and not 0 < value < float("inf")):
        raise ValueError(f"config.json has {key} = {value!r}; it must be {words[kind]}")
    return kind(value)


def from_hf(values: dict, **changes) -> TransformerConfig:
    """The TransformerConfig of a parsed config.json of Gemma 2 / 3, Llama, Qwen 2.5 / 3; `changes` replace fields.

    Raises ValueError for another model_type and for every option that would change the result and is not supported.
    """
    values = text_config(values)
    family = values.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise ValueError(f"config.json has model_type {family!r}; supported are {', '.join(_FAMILIES)}")
    constants, defaults = _FAMILIES[family]
    # null stands for the family's default, except of a soft cap, where it stands for none.
    given = {key: value for key, value in values.items() if value is not None or key.endswith("_softcapping")}
    values = {**defaults, **given}
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    for place in (values, rope, *(rope.values() if isinstance(rope, dict) else ())):
        for key, legal in _UNSUPPORTED.items():
            if isinstance(place, dict) and place.get(key) not in legal:
                raise ValueError(f"config.json has {key} = {place[key]!r}, which is not supported for {family}")
    required = ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    for keys, kind in ((_WHOLE, int), (_REAL, float)):
        for key in keys:
            if key in required or values.get(key) is not None:
                _get(values, key, kind)
    activation = values.get("hidden_activation") or values.get("hidden_act") or "gelu_pytorch_tanh"
    if family.startswith("gemma") and activation == "gelu":
        activation = "gelu_pytorch_tanh"  # early Gemma files say gelu and mean this
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
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
        window=_get(values, "sliding_window", int) if "local" in kinds else None,
        attention_soft_cap=values.get("attn_logit_softcapping"),
        logit_soft_cap=values.get("final_logit_softcapping"),
    )
    if "query_pre_attn_scalar" in values:
        fields["query_scale"] = values["query_pre_attn_scalar"] ** -0.5
    return TransformerConfig(**{**fields, **_rope(family, values), **constants, **changes})


def _layer_kinds(values):
    """('local' | 'global', ...) for each layer, or ('global',) when all are."""
    layers = range(values["num_hidden_layers"])
    period = values.get("sliding_window_pattern") or values.get("_sliding_window_pattern") or values.get("period")
    if values.get("layer_types"):
        types = values["layer_types"]
        if not isinstance(types, list) or not all(isinstance(kind, str) for kind in types):
            raise ValueError(f"config.json has layer_types = {types!r}; it must be a list of names")
        if unknown := sorted(set(types) - set(_KINDS)):
            raise ValueError(f"config.json has layer_types {unknown}; supported are {', '.join(_KINDS)}")
        if len(types) != len(layers):
            raise ValueError(f"config.json has layer_types = {types!r}; it must list the {len(layers)} layers")
        kinds = tuple(_KINDS[kind] for kind in types)
    elif period:
        kinds = tuple("global" if (i + 1) % period == 0 else "local" for i in layers)
    elif values.get("use_sliding_window"):
        first = values.get("max_window_layers", 28)  # the default of these families' configs
        if not isinstance(first, int):
            raise ValueError(f"config.json has max_window_layers = {first!r}; it must be a whole number")
        kinds = tuple("local" if i >= first else "global" for i in layers)
    else:
        kinds = ("global",)
    return kinds if "local" in kinds else ("global",)


def _rope(family, values):
    """Rotary fields, from either spelling: rope_parameters, or rope_theta with rope_scaling."""
    for key in ("rope_parameters", "rope_scaling"):
        if values.get(key):
            _get(values, key, dict)
    new = values.get("rope_parameters") or {}
    full, local = (_get(new, k, dict) if k in new else {} for k in ("full_attention", "sliding_attention"))
    full = full or new
    scaling = full or values.get("rope_scaling") or {}
    base = full if "rope_theta" in full else {"rope_theta": values.get("rope_theta") or 10_000.0}
    fields = dict(rope_base=_get(base, "rope_theta", float))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    number = functools.partial(_get, scaling, kind=float)
    if kind == "linear":
        fields["rope_scaling"] = RopeScaling("linear", number("factor"))
    elif kind == "llama3":
        factors = number("factor"), number("low_freq_factor"), number("high_freq_factor")
        fields["rope_scaling"] = RopeScaling("llama3", *factors, _get(scaling, "original_max_position_embeddings", int))
    elif kind != "default":
        raise ValueError(f"config.json has rope type {kind!r}; supported are default, linear and llama3")
    if family == "gemma3_text":
        if local.get("rope_type", "default") != "default":
            raise ValueError(
                f"config.json has rope type {local['rope_type']!r} for sliding layers; supported is default"
            )
        base = local if "rope_theta" in local else {"rope_theta": values.get("rope_local_base_freq", 10_000.0)}
        fields["rope_local_base"] = _get(base, "rope_theta", float)
    return fields
