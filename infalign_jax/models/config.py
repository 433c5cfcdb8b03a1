"""What a transformer is, as one hashable record: every family is a value of this type, never another network."""

from dataclasses import dataclass, fields, replace

_ACTIVATIONS = ("silu", "gelu_tanh")
_DTYPES = ("float32", "bfloat16")
_LAYER_KINDS = ("global", "local")
_REMAT = ("none", "layer", "dots")
_ATTENTION = ("xla", "splash", "splash_interpreted")
# Fields that say how a model is computed, not which it is; the keys of config.model that every model here takes.
HOW = ("dtype", "param_dtype", "remat", "attention")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies of the global layers are stretched for contexts longer than those first trained on.

    kind: 'linear' divides every frequency by `factor`; 'llama3' divides the slow ones by `factor`, keeps the fast
    ones, and blends in between (the blend is given by the two frequency factors and the original context length).
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self):
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"rope_scaling.kind is {self.kind!r}; legal are 'linear' and 'llama3'")
        if not self.factor > 0:
            raise ValueError(f"rope_scaling.factor is {self.factor}; it must be positive")
        if self.kind == "llama3" and not self.high_frequency_factor > self.low_frequency_factor:
            raise ValueError(
                f"rope_scaling.high_frequency_factor is {self.high_frequency_factor}; it must be above "
                f"low_frequency_factor ({self.low_frequency_factor})"
            )


@dataclass(frozen=True)
class TransformerConfig:
    """A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, gated feed-forward.

    vocab_size .. mlp_dim   sizes: V, L, D, N (query heads), G (key/value heads, divides N), H, F
    activation              of the gate: 'silu' or 'gelu_tanh'
    norm_plus_one           the norms multiply by 1 + w (Gemma) instead of w
    scale_embeddings        token vectors are multiplied by sqrt(D) (Gemma)
    tied_embeddings         the output head is the transposed embedding table
    qk_norm                 RMSNorm on queries and keys, per head, before the rotation
    attention_bias          a bias on the query, key and value projections
    post_norms              a further norm on the output of each attention and each feed-forward block
    window, pattern         layer i is pattern[i % len(pattern)]; a 'local' layer sees the last `window` positions,
                            its own included
    attention_soft_cap      c: attention scores become c·tanh(score / c); None for no cap
    logit_soft_cap          the same on the output logits
    query_scale             multiplies the queries; None means 1/sqrt(H)
    rope_base               of the global layers; `rope_local_base` of the local ones (None: the same, and then the
                            scaling applies to both)
    dtype, param_dtype      of the computation and of the stored parameters; norms, softmax and logits are float32
    remat                   what the backward pass recomputes: 'none', 'dots' (all but matmul results), 'layer' (all)
    attention               of whole sequences: 'xla', or 'splash', the kernel of `models.splash`, on TPUs only
                            ('splash_interpreted' runs it anywhere, slowly, for tests)
    lora_scale              alpha / rank, the factor on the adapters in variables['lora'], if there are any
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    activation: str = "silu"
    norm_eps: float = 1e-6
    norm_plus_one: bool = False
    scale_embeddings: bool = False
    tied_embeddings: bool = True
    qk_norm: bool = False
    attention_bias: bool = False
    post_norms: bool = False
    window: int | None = None
    pattern: tuple[str, ...] = ("global",)
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    query_scale: float | None = None
    rope_base: float = 10_000.0
    rope_local_base: float | None = None
    rope_scaling: RopeScaling | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"
    lora_scale: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "pattern", tuple(self.pattern))
        for name in ("vocab_size", "num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"model.{name} is {value!r}; it must be a positive integer")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"model.num_kv_heads is {self.num_kv_heads}; it must divide num_heads ({self.num_heads})")
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim is {self.head_dim}; rotary positions need an even number")
        for name, legal in (
            ("activation", _ACTIVATIONS),
            ("dtype", _DTYPES),
            ("param_dtype", _DTYPES),
            ("remat", _REMAT),
            ("attention", _ATTENTION),
        ):
            if getattr(self, name) not in legal:
                raise ValueError(f"model.{name} is {getattr(self, name)!r}; legal are {', '.join(map(repr, legal))}")
        if not self.pattern or any(kind not in _LAYER_KINDS for kind in self.pattern):
            raise ValueError(f"model.pattern is {self.pattern!r}; it must be a non-empty tuple of 'global' and 'local'")
        if "local" in self.pattern and (not isinstance(self.window, int) or self.window < 1):
            raise ValueError(f"model.window is {self.window!r}; local layers need a positive integer")
        for name in ("attention_soft_cap", "logit_soft_cap", "query_scale", "rope_base", "rope_local_base", "norm_eps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"model.{name} is {value!r}; it must be positive")

    @property
    def is_local(self) -> tuple[bool, ...]:
        """One flag a layer: does it see only its window?"""
        return tuple(self.pattern[i % len(self.pattern)] == "local" for i in range(self.num_layers))

    def replace(self, **changes) -> "TransformerConfig":
        """A copy with some fields changed, checked again."""
        return replace(self, **changes)


def from_dict(values) -> TransformerConfig:
    """A TransformerConfig from a mapping (for instance a config file's `model` section); unknown keys are refused."""
    legal = {f.name for f in fields(TransformerConfig)}
    values = dict(values)
    for name in values:
        if name not in legal:
            raise ValueError(f"model.{name} is not a known key; legal are {', '.join(sorted(legal))}")
    if values.get("rope_scaling") is not None and not isinstance(values["rope_scaling"], RopeScaling):
        values["rope_scaling"] = RopeScaling(**dict(values["rope_scaling"]))
    return TransformerConfig(**values)
