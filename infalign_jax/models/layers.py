"""The Linen modules: a norm, a projection and the transformer layer they make.

Their initialisers give constants only; `transformer.init` adds the noise.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import ones, zeros

from infalign_jax.models import rope
from infalign_jax.models.config import TransformerConfig

_ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True)}


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · w over the last axis (or · (1 + w)), computed in float32."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x):
        initial = zeros if self.config.norm_plus_one else ones
        scale = self.param("scale", initial, (x.shape[-1],), jnp.dtype(self.config.param_dtype)).astype(jnp.float32)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.config.norm_eps)
        y = y * (1.0 + scale) if self.config.norm_plus_one else y * scale
        return y.astype(x.dtype)


class Projection(nn.Module):
    """A linear map of rows: `[T, *inputs]` -> `[T, *outputs]`, with an optional bias and low-rank adapter.

    With `a` and `b` in the 'lora' collection the result is x·W + lora_scale·(x·a)·b (Hu et al. 2021, arXiv 2106.09685).
    """

    config: TransformerConfig
    outputs: tuple[int, ...]
    bias: bool = False

    @nn.compact
    def __call__(self, x):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        inputs = x.shape[1:]
        kernel = self.param("kernel", zeros, (*inputs, *self.outputs), jnp.dtype(config.param_dtype))
        y = jnp.tensordot(x, kernel.astype(dtype), axes=len(inputs))
        if self.bias:
            y += self.param("bias", zeros, self.outputs, jnp.dtype(config.param_dtype)).astype(dtype)
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name).astype(dtype) for name in ("a", "b"))
            y += config.lora_scale * jnp.tensordot(jnp.tensordot(x, a, axes=len(inputs)), b, axes=1)
        return y


class Layer(nn.Module):
    """Attention block and gated feed-forward block, each with a norm before it and a residual around it.

    Tokens are rows of one matrix outside attention: the backward pass of a matmul with two leading axes costs CPUs
    almost twice as much.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BXD, cos_BXh, sin_BXh, attend: Callable, place: Callable = lambda x: x):
        """`attend(q_BXGMH, k_BXGH, v_BXGH) -> (out like q, state)` decides who sees whom; returns (x_BXD, state).

        `place` moves queries, keys and values `[T, heads, H]`, prompts first, to where on a mesh they are attended to.
        """
        config = self.config
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim

        x_TD, cos_Th, sin_Th = (x.reshape(-1, x.shape[-1]) for x in (x_BXD, cos_BXh, sin_BXh))
        y = RMSNorm(config, name="attention_norm")(x_TD)
        q = place(Projection(config, (heads, width), bias=config.attention_bias, name="q")(y))
        k = place(Projection(config, (kv_heads, width), bias=config.attention_bias, name="k")(y))
        v = place(Projection(config, (kv_heads, width), bias=config.attention_bias, name="v")(y))
        if config.qk_norm:
            q, k = RMSNorm(config, name="q_norm")(q), RMSNorm(config, name="k_norm")(k)
        q, k = rope.rotate(q, cos_Th, sin_Th), rope.rotate(k, cos_Th, sin_Th)
        scale = width**-0.5 if config.query_scale is None else config.query_scale
        rows = x_BXD.shape[:2]
        q = (q * scale).reshape(*rows, kv_heads, heads // kv_heads, width)
        k, v = (x.reshape(*rows, kv_heads, width) for x in (k, v))
        out, state = attend(q, k, v)
        out = out.astype(x_BXD.dtype).reshape(-1, heads, width)
        y = Projection(config, (config.embed_dim,), name="o")(out)
        x_TD += RMSNorm(config, name="post_attention_norm")(y) if config.post_norms else y

        y = RMSNorm(config, name="mlp_norm")(x_TD)
        gate = Projection(config, (config.mlp_dim,), name="gate")(y)
        up = Projection(config, (config.mlp_dim,), name="up")(y)
        y = _ACTIVATIONS[config.activation](gate) * up
        y = Projection(config, (config.embed_dim,), name="down")(y)
        x_TD += RMSNorm(config, name="post_mlp_norm")(y) if config.post_norms else y
        return x_TD.reshape(x_BXD.shape), state
