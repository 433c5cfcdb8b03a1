"""Loss and gradient of the output head at a vocabulary of 262,144, 16 x 128 tokens, D = 256: temporaries and time.

Beside our own log-probs that form all logits at once (one chunk). Temporaries are what XLA says of the compiled program.
"""

import functools

import jax
import jax.numpy as jnp

from benchmarks.clock import in_turn
from benchmarks.race import machine
from benchmarks.side_ours import model
from infalign_jax.models import transformer
from infalign_jax.sampling.log_probs import token_log_probs

B, T, V = 16, 128, 262_144
TIMED_T = 32  # the time of all logits at once is measured on fewer tokens: at 128 they would fill the machine's memory


def gradient(config, chunk):
    def loss(variables, hidden, targets):
        return token_log_probs(config, variables, hidden, targets, chunk=chunk, trained=True).mean()

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def main():
    config = model(vocab=V, layers=1)
    variables = transformer.init(config, jax.random.key(0))
    result = {"machine": machine(), "temporaries_mib": {}}
    for name, chunk in (("in chunks", None), ("all logits", T)):
        shapes = jax.ShapeDtypeStruct((B, T, config.embed_dim), jnp.float32), jax.ShapeDtypeStruct((B, T), jnp.int32)
        temporaries = gradient(config, chunk).lower(variables, *shapes).compile().memory_analysis().temp_size_in_bytes
        result["temporaries_mib"][name] = temporaries / 2**20
        print(f"| {name} | {temporaries / 2**20:,.0f} MiB of temporaries at {B} x {T} tokens |")
    hidden = jax.random.normal(jax.random.key(1), (B, TIMED_T, config.embed_dim))
    targets = jax.random.randint(jax.random.key(2), (B, TIMED_T), 0, V)

    def work(step):
        jax.block_until_ready(step(variables, hidden, targets))

    steps = {"in chunks": gradient(config, None), "all logits": gradient(config, TIMED_T)}
    seconds = in_turn({name: functools.partial(work, step) for name, step in steps.items()}, rounds=5)
    result["seconds"], result["ratio"] = seconds, seconds["in chunks"] / seconds["all logits"]
    print(f"in chunks it takes {result['ratio']:.2f} times the time of all logits at {B} x {TIMED_T} tokens")
    return result
