"""A scalar reward head on the transformer: variables['params']['reward_head'] beside the trunk's own parameters."""

import jax
import jax.numpy as jnp

from infalign_jax.models import transformer


def init(config, key):
    """Fresh variables of a reward model: a fresh trunk and a head."""
    trunk_key, head_key = jax.random.split(key)
    return add_head(config, transformer.init(config, trunk_key), head_key)


def add_head(config, variables, key):
    """The same trunk with a fresh head, so that a reward model can start from a trained policy."""
    dtype = jnp.dtype(config.param_dtype)
    kernel = jax.random.normal(key, (config.embed_dim,), dtype) * config.embed_dim**-0.5
    head = {"kernel": kernel, "bias": jnp.zeros((), dtype)}
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
    hidden_BRD = jnp.take_along_axis(hidden_BRCD, last_BR11, axis=2)[:, :, 0].astype(jnp.float32)
    head = jax.tree.map(lambda x: x.astype(jnp.float32), variables["params"]["reward_head"])
    rewards_BR = hidden_BRD @ head["kernel"] + head["bias"]
    return jnp.where(completion_lengths_BR > 0, rewards_BR, jnp.nan)
