"""The Linen modules: a norm, a projection and the transformer layer they make."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import normal, variance_scaling, zeros

from infalign_jax.models import rope
from infalign_jax.models.config import TransformerConfig

_ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True)}


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · w over the last axis (or · (1 + w)), computed in float32."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x):
        initial = zeros if self.config.norm_plus_one else nn.initializers.ones
        scale = self.param("scale", initial, (x.shape[-1],), jnp.dtype(self.config.param_dtype)).astype(jnp.float32)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.config.norm_eps)
        y = y * (1.0 + scale) if self.config.norm_plus_one else y * scale
        return y.astype(x.dtype)


class Projection(nn.Module):
    """A linear map from the trailing `inputs` axes of x to `outputs`, with an optional bias and low-rank adapter.

    With `a` and `b` in the 'lora' collection the result is x·W + lora_scale·(x·a)·b (Hu et al. 2021, arXiv 2106.09685).
    """

    config: TransformerConfig
    outputs: tuple[int, ...]
    inputs: int = 1
    bias: bool = False
    depth_scale: float = 1.0

    @nn.compact
    def __call__(self, x):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        shape = (*x.shape[x.ndim - self.inputs :], *self.outputs)
        initial = variance_scaling(
            self.depth_scale,
            "fan_in",
            "truncated_normal",
            in_axis=tuple(range(self.inputs)),
            out_axis=tuple(range(self.inputs, len(shape))),
        )
        kernel = self.param("kernel", initial, shape, jnp.dtype(config.param_dtype))
        y = jnp.tensordot(x, kernel.astype(dtype), axes=self.inputs)
        if self.bias:
            y += self.param("bias", zeros, self.outputs, jnp.dtype(config.param_dtype)).astype(dtype)
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name).astype(dtype) for name in ("a", "b"))
            y += config.lora_scale * jnp.tensordot(jnp.tensordot(x, a, axes=self.inputs), b, axes=1)
        return y


class Layer(nn.Module):
    """Attention block and gated feed-forward block, each with a norm before it and a residual around it."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BXD, cos_BXh, sin_BXh, attend: Callable):
        """`attend(q_BXGMH, k_BXGH, v_BXGH) -> (out like q, state)` decides who sees whom; returns (x_BXD, state)."""
        config = self.config
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
        depth_scale = 1.0 / (2 * config.num_layers)  # keeps the residual stream's variance independent of depth

        y = RMSNorm(config, name="attention_norm")(x_BXD)
        q = Projection(config, (heads, width), bias=config.attention_bias, name="q")(y)
        k = Projection(config, (kv_heads, width), bias=config.attention_bias, name="k")(y)
        v = Projection(config, (kv_heads, width), bias=config.attention_bias, name="v")(y)
        if config.qk_norm:
            q, k = RMSNorm(config, name="q_norm")(q), RMSNorm(config, name="k_norm")(k)
        q, k = rope.rotate(q, cos_BXh, sin_BXh), rope.rotate(k, cos_BXh, sin_BXh)
        scale = width**-0.5 if config.query_scale is None else config.query_scale
        q = (q * scale).reshape(*q.shape[:2], kv_heads, heads // kv_heads, width)
        out, state = attend(q, k, v)
        out = out.astype(x_BXD.dtype).reshape(*x_BXD.shape[:2], heads, width)
        y = Projection(config, (config.embed_dim,), inputs=2, depth_scale=depth_scale, name="o")(out)
        x_BXD += RMSNorm(config, name="post_attention_norm")(y) if config.post_norms else y

        y = RMSNorm(config, name="mlp_norm")(x_BXD)
        gate = Projection(config, (config.mlp_dim,), name="gate")(y)
        up = Projection(config, (config.mlp_dim,), name="up")(y)
        y = _ACTIVATIONS[config.activation](gate) * up
        y = Projection(config, (config.embed_dim,), depth_scale=depth_scale, name="down")(y)
        x_BXD += RMSNorm(config, name="post_mlp_norm")(y) if config.post_norms else y
        return x_BXD, state


def embedding_initializer(config):
    """Normal of deviation 1/sqrt(D), so that a unit-norm hidden state meets logits of unit variance."""
    return normal(config.embed_dim**-0.5)
