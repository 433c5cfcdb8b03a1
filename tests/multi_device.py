"""Run as a program: the align step and the sampler on one device and on meshes of eight, compared; one with microbatches.

Prints one JSON object: for each mesh, the largest relative differences from one device, and whether the tokens are the same.
"""

import json

import jax
import numpy as np
import optax

from infalign_jax.models import config as model_config
from infalign_jax.models import transformer
from infalign_jax.models.sharding import logical_axes
from infalign_jax.sampling.sampler import sample
from infalign_jax.stages import align
from infalign_jax.training import mesh as meshes
from infalign_jax.training.state import init_state, state_shardings

MODEL = model_config.from_dict(
    dict(vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
)
MESHES = {"data": dict(data=8, fsdp=1, tensor=1), "all": dict(data=2, fsdp=2, tensor=2)}
B, R, S, C, K = 8, 4, 6, 5, 16


def run(sizes, devices, microbatches=1):
    """Loss, gradients, parameters after five SGD steps, and tokens of a rollout, on one mesh."""
    mesh = meshes.make_mesh(sizes, devices)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: transformer.init(MODEL, key), jax.random.key(0))
    shardings = meshes.param_shardings(mesh, shapes, logical_axes(shapes))
    # The same numbers on every mesh, made on the host.
    variables, reference = (
        jax.device_put(jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32), shapes), shardings)
        for _ in range(2)
    )
    lengths_B = rng.integers(1, S + 1, B).astype(np.int32)
    prompts = meshes.put_batch(
        mesh, (rng.integers(3, 64, (B, S)).astype(np.int32), lengths_B, np.arange(B, dtype=np.int32))
    )
    rollouts = sample(MODEL, variables, *prompts, jax.random.key(2), rollouts=R, max_tokens=C, eos_ids=(1,), pad_id=0)
    on_host = {
        "tokens": rng.integers(3, 64, (B, R, C)).astype(np.int32),
        "mask": (rng.random((B, R, C)) < 0.9).astype(np.float32),
        "ended": np.ones((B, R), np.float32),
        "rewards": rng.normal(size=(B, R)).astype(np.float32),
        "table": np.sort(rng.normal(size=(B, K)).astype(np.float32), 1),
    }
    batch = {"prompt_tokens": prompts[0], "prompt_lengths": prompts[1], **meshes.put_batch(mesh, on_host)}
    shaping, beta = align.method_shaping("exponential(10)", np.sort(rng.normal(size=(64, K)), 1), 0.5)
    shaping = jax.device_put(shaping, meshes.replicated(mesh))
    optimizer = optax.sgd(0.1, momentum=0.5)  # after one step its momentum is the gradient
    state = init_state(variables, optimizer, beta)
    state = jax.device_put(state, state_shardings(mesh, state, shardings))
    step = align.make_step(MODEL, optimizer, target_kl=0.5, kl_rate=0.1, kl_warmup=1, microbatches=microbatches)
    state, first = step(state, reference, batch, shaping)
    gradients = meshes.fetch(state.optimizer)
    for _ in range(4):
        state, _ = step(state, reference, batch, shaping)
    return meshes.fetch(first["loss"]), gradients, *meshes.fetch((state.variables, rollouts.tokens_BRC))


def relative(a, b):
    """Largest difference of two trees, relative to the largest entry of each leaf."""
    return max(
        float(np.abs(x - y).max() / (np.abs(y).max() + 1e-12))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    loss, gradients, variables, tokens = run(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    report = {}
    for name, sizes in MESHES.items():
        other = run(sizes, jax.devices(), microbatches=2 if name == "all" else 1)
        report[name] = {
            "loss": abs(float(other[0] - loss)) / abs(float(loss)),
            "gradients": relative(other[1], gradients),
            "variables": relative(other[2], variables),
            "same_tokens": bool((other[3] == tokens).all()),
        }
    print(json.dumps(report))
