"""Run as a program: the align step and the sampler on one device and on meshes of eight, compared; one with microbatches.

With the word `splash` it is the attention kernel, interpreted, that computes on the mesh, and XLA on the one device.
Prints one JSON object: for each mesh, the largest relative differences from one device, and whether the tokens are the same;
the share of the layers' parameters that a device gathers to draw one token; and how often a lookup moves all of its table.
"""

import json
import sys
import unittest.mock
from types import SimpleNamespace

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from infalign_jax.models import config as model_config
from infalign_jax.models import transformer
from infalign_jax.models.sharding import BATCH, keep_batch_split, logical_axes, look_up
from infalign_jax.sampling import retire
from infalign_jax.sampling.sampler import Rollouts, sample
from infalign_jax.scale.hlo import collectives
from infalign_jax.stages import align
from infalign_jax.stages.scoring import score_rollouts
from infalign_jax.training import mesh as meshes
from infalign_jax.training.distributed import many
from infalign_jax.training.state import init_state, state_shardings

MODEL = model_config.from_dict(
    dict(vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
    | dict(window=4, pattern=("local", "global"), attention_soft_cap=2.0)
)
MESHES = {"data": dict(data=8, fsdp=1, tensor=1), "all": dict(data=2, fsdp=2, tensor=2)}
B, R, S, C, K = 8, 4, 6, 5, 16


HOW = dict(rollouts=R, max_tokens=C, eos_ids=(1,), pad_id=0)


def gathered_a_token(sizes):
    """What a device of a mesh gathers to draw one token, as a share of the layers' parameters."""
    mesh = meshes.make_mesh(sizes, jax.devices())
    shapes = jax.eval_shape(lambda key: transformer.init(MODEL, key), jax.random.key(0))
    layers = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes["params"]["layers"]))
    shardings = meshes.param_shardings(mesh, shapes, logical_axes(shapes))
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    prompts = meshes.put_batch(mesh, (np.ones((B, S), np.int32), np.ones(B, np.int32), np.arange(B, dtype=np.int32)))
    draw = jax.jit(lambda *arguments: sample(MODEL, *arguments, **HOW)).lower(shapes, *prompts, jax.random.key(2))
    found = [c for c in collectives(draw.compile().as_text()) if c.kind == "all-gather" and c.times >= C - 1]
    return sum(c.received * c.times for c in found) / (C - 1) / layers


def tables_moved(sizes):
    """How many collectives of a lookup in an embedding table and its gradient are of all of the table."""
    V, D, X = 4096, 512, 94
    mesh = meshes.make_mesh(sizes, jax.devices())
    place = lambda shape, dtype, *axes: jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, P(*axes)))  # noqa: E731
    table_VD, tokens_BX = place((V, D), np.float32, None, "fsdp"), place((256, X), np.int32, BATCH)

    def loss(table_VD, tokens_BX):
        return (keep_batch_split(look_up(table_VD, tokens_BX), table_VD) ** 2).sum()

    program = jax.jit(jax.grad(loss), out_shardings=table_VD.sharding).lower(table_VD, tokens_BX).compile()
    return sum(c.shape[-2:] == (V, D) for c in collectives(program.as_text()))


def rewards_by_host(mesh, tokens_BRC, mask_BRC):
    """The rewards of the stages: each process is asked for those of its own rows. And how many texts this one was asked for."""
    tokenizer = SimpleNamespace(eos_id=1, decode_batch=lambda rows: [" ".join(map(str, row)) for row in rows])
    sampling = SimpleNamespace(truncated="as_is", penalty=0.0)
    experiment = SimpleNamespace(mesh=mesh, tokenizer=tokenizer, config=SimpleNamespace(sampling=sampling))
    asked = []

    def reward(prompts, completions):
        asked.extend(prompts)
        return [sum(map(int, text.split())) % 17 / 17 for text in completions]

    arrays = dict.fromkeys(Rollouts._fields, mask_BRC) | {"tokens_BRC": tokens_BRC, "mask_BRC": mask_BRC}
    rollouts = Rollouts(**arrays | {"ended_BR": mask_BRC[:, :, 0]})
    (rewards_BR,), _ = score_rollouts(experiment, rollouts, [f"prompt {b}" for b in range(B)], [reward], "here")
    return rewards_BR, len(asked)


def run(sizes, devices, microbatches=1, model=MODEL):
    """Loss, gradients, parameters after five SGD steps, tokens of a rollout, and texts this process scored, on one mesh."""
    mesh = meshes.make_mesh(sizes, devices)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: transformer.init(model, key), jax.random.key(0))
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
    arguments = variables, *prompts, jax.random.key(2)
    rollouts = sample(model, *arguments, **HOW)
    if mesh.shape["fsdp"] == 1 and not many():  # where stages let go of rollouts that have ended
        ends = {**HOW, "eos_ids": tuple(range(16))}
        with unittest.mock.patch.object(retire, "STRETCH", 1):
            retired = retire.sample(model, *arguments, **ends)
        np.testing.assert_array_equal(retired.tokens_BRC, meshes.fetch(sample(model, *arguments, **ends).tokens_BRC))
    on_host = {
        "tokens": rng.integers(3, 64, (B, R, C)).astype(np.int32),
        "mask": (rng.random((B, R, C)) < 0.9).astype(np.float32),
        "ended": np.ones((B, R), np.float32),
        "table": np.sort(rng.normal(size=(B, K)).astype(np.float32), 1),
    }
    batch = {"prompt_tokens": prompts[0], "prompt_lengths": prompts[1], **meshes.put_batch(mesh, on_host)}
    rewards_BR, asked = rewards_by_host(mesh, batch["tokens"], batch["mask"])
    batch["rewards"] = meshes.put_batch(mesh, rewards_BR)
    rule, beta = align.score_rule("exponential(10)", np.sort(rng.normal(size=(64, K)), 1), 0.5)
    rule = jax.device_put(rule, meshes.replicated(mesh))
    optimizer = optax.sgd(0.1, momentum=0.5)  # after one step its momentum is the gradient
    state = init_state(variables, optimizer, beta)
    state = jax.device_put(state, state_shardings(mesh, state, shardings))
    step = align.make_step(
        model, optimizer, target_kl=0.5, kl_rate=lambda step: 0.1 * (step >= 1), microbatches=microbatches
    )
    state, first = step(state, reference, batch, rule)
    gradients = meshes.fetch(state.optimizer)
    for _ in range(4):
        state, _ = step(state, reference, batch, rule)
    return meshes.fetch(first["loss"]), gradients, *meshes.fetch((state.variables, rollouts.tokens_BRC)), asked


def relative(a, b):
    """Largest difference of two trees, relative to the largest entry of each leaf."""
    return max(
        float(np.abs(x - y).max() / (np.abs(y).max() + 1e-12))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def differences(found, expected):
    """A dict of how one `run` differs from another on the same numbers."""
    return {
        "loss": abs(float(found[0] - expected[0])) / abs(float(expected[0])),
        "gradients": relative(found[1], expected[1]),
        "variables": relative(found[2], expected[2]),
        "same_tokens": bool((found[3] == expected[3]).all()),
    }


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    one = run(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    model, names = MODEL, list(MESHES)
    if "splash" in sys.argv:
        model, names = MODEL.replace(attention="splash_interpreted"), ["all"]
    found = {
        name: run(MESHES[name], jax.devices(), microbatches=2 if name == "all" else 1, model=model) for name in names
    }
    report = {name: differences(other, one) for name, other in found.items()}
    moved = {
        "gathered_a_token": gathered_a_token(MESHES["all"]),
        "tables_moved": tables_moved(dict(data=2, fsdp=4, tensor=1)),
    }
    print(json.dumps({"meshes": report, **moved}))
