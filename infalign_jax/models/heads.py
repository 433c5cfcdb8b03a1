"""Heads on the transformer, beside the trunk's own parameters: a scalar reward, and the quantiles of a prompt's rewards."""

import jax
import jax.numpy as jnp

from infalign_jax.core.quantiles import monotone_quantiles
from infalign_jax.models import transformer


def init(config, key):
    """Fresh variables of a reward model: a fresh trunk and a head."""
    trunk_key, head_key = jax.random.split(key)
    return add_head(config, transformer.init(config, trunk_key), head_key)


def add_head(config, variables, key, bias=0.0):
    """The same trunk with a fresh head, so that a reward model can start from a trained policy."""
    dtype = jnp.dtype(config.param_dtype)
    kernel = jax.random.normal(key, (config.embed_dim,), dtype) * config.embed_dim**-0.5
    head = {"kernel": kernel, "bias": jnp.asarray(bias, dtype)}
    return {**variables, "params": {**variables["params"], "reward_head": head}}


def reward(config, variables, prompt_tokens_BS, prompt_lengths_B, completion_tokens_BRC, completion_lengths_BR):
    """Rewards `[B, R]`, float32 and unbounded: a linear function of the hidden state AT each completion's last token.

    Lengths are those of the completions, EOS included when drawn, in 1..C. The two responses of a preference pair are
    R = 2 rollouts of one prompt, which is then computed once. A length of 0 gives NaN: an empty completion has no
    last token. Differentiable in `variables`.
    """
    hidden_BRCD = transformer.completion_states(
        config, variables, prompt_tokens_BS, prompt_lengths_B, completion_tokens_BRC
    )
    last_BR11 = jnp.maximum(completion_lengths_BR - 1, 0)[:, :, None, None]
    hidden_BRD = jnp.take_along_axis(hidden_BRCD, last_BR11, axis=2)[:, :, 0]
    return jnp.where(completion_lengths_BR > 0, scalar(variables, hidden_BRD), jnp.nan)


def values(config, variables, prompt_tokens_BS, prompt_lengths_B, completion_tokens_BRC):
    """The scalar `[B, R, C]`, float32, of the same head AT every completion token: `reward` of each prefix.

    What a prefix scorer says of responses that are not finished. Differentiable in `variables`.
    """
    prompt = prompt_tokens_BS, prompt_lengths_B
    return scalar(variables, transformer.completion_states(config, variables, *prompt, completion_tokens_BRC))


def scalar(variables, hidden):
    """The scalar head on hidden states `[..., D]`: float32 `[...]`, a linear function, computed in float32."""
    head = jax.tree.map(lambda x: x.astype(jnp.float32), variables["params"]["reward_head"])
    return hidden.astype(jnp.float32) @ head["kernel"] + head["bias"]


def score(config, variables, tokens_BT, lengths_B):
    """Rewards `[B]`, float32, of left-padded whole texts: the head on the hidden state AT each text's last token."""
    return scalar(variables, transformer.forward(config, variables, tokens_BT, lengths_B)[:, -1])


def add_quantile_head(config, variables, quantiles_M, scale):
    """The same trunk with a quantile head that begins by saying `quantiles_M` (ascending, reward units) of every prompt.

    scale: reward units, positive; the unit in which the head works. It and the middle quantile, its origin, are kept
    beside the head's parameters and are not trained.
    """
    dtype = jnp.dtype(config.param_dtype)
    quantiles_M = jnp.asarray(quantiles_M, jnp.float32)
    middle = quantiles_M.shape[0] // 2
    steps = jnp.maximum(jnp.diff(quantiles_M) / scale, 1e-4)
    raw = jnp.insert(jnp.log(jnp.expm1(steps)), middle, 0.0)  # softplus of these are the steps
    head = {
        "kernel": jnp.zeros((config.embed_dim, raw.shape[0] + 2), dtype),
        "bias": jnp.concatenate([jnp.zeros(2), raw]).astype(dtype),
        "location": quantiles_M[middle],
        "scale": jnp.asarray(scale, jnp.float32),
    }
    return {**variables, "params": {**variables["params"], "quantile_head": head}}


def quantiles(config, variables, prompt_tokens_BS, prompt_lengths_B):
    """Quantiles `[B, M]` of each prompt's rewards, float32, ascending, in reward units.

    A linear function of the hidden state at the prompt's last token gives a shift a, a log scale b and a shape:
    location + scale · (a + e^b · monotone(shape)). Prompts differ in the scale of their rewards first of all, by orders
    of magnitude, and this way one number says so. Differentiable in `variables`, except location and scale.
    """
    hidden_BSD = transformer.forward(config, variables, prompt_tokens_BS, prompt_lengths_B)
    head = jax.tree.map(lambda x: x.astype(jnp.float32), variables["params"]["quantile_head"])
    location, scale = (jax.lax.stop_gradient(head[name]) for name in ("location", "scale"))
    out_BX = hidden_BSD[:, -1].astype(jnp.float32) @ head["kernel"] + head["bias"]
    shift_B1, log_scale_B1, shape_BM = out_BX[:, :1], out_BX[:, 1:2], out_BX[:, 2:]
    return monotone_quantiles(shape_BM, location + scale * shift_B1, scale * jnp.exp(log_scale_B1))
