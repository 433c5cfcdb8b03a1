"""The machine itself: one large float32 matmul, in the way of nobody. Its FLOP/s is the limit of the same minutes."""

import jax
import jax.numpy as jnp

SIZE, REPEATS = 2048, 8
FLOPS = REPEATS * 2 * SIZE**3


def versions():
    return {"jax": jax.__version__}


def build(benchmark, shape):
    matrix = jnp.ones((SIZE, SIZE)) / SIZE
    matmul = jax.jit(lambda x: x @ matrix)

    def work():
        x = matrix
        for _ in range(REPEATS):
            x = matmul(x)
        x.block_until_ready()

    return work
