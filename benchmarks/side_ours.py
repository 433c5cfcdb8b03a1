"""infalign_jax: `sampling.sampler.sample` and the jitted step of stage align, as a run uses them.

Its settings are the fastest on CPUs: the backward pass recomputes all but matmul results, and a step takes its prompts in
MICROBATCHES parts, which both mean less memory to go through and no other gradient; a group of prompts is drawn for each core.
"""

import os
import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import shapes
from infalign_jax.models import transformer
from infalign_jax.models.config import TransformerConfig
from infalign_jax.sampling.sampler import sample
from infalign_jax.stages import align
from infalign_jax.stages.groups import in_groups
from infalign_jax.stages.scores import score_rule
from infalign_jax.training.state import adam, init_state

REFERENCE_ROLLOUTS, MICROBATCHES = 64, 4


def versions():
    return {name: version(name) for name in ("jax", "flax", "numpy")}


def model(remat="dots", **changes):
    m = {**shapes.MODEL, **changes}
    return TransformerConfig(
        vocab_size=m["vocab"], num_layers=m["layers"], embed_dim=m["embed"], num_heads=m["heads"],
        num_kv_heads=m["kv_heads"], head_dim=m["head_dim"], mlp_dim=m["mlp"], remat=remat,
    )  # fmt: skip


def padded_prompts(shape):
    prompts = shapes.prompts(shape)
    tokens_BS = np.zeros((shape.prompts, shape.slots), np.int32)
    for row, prompt in zip(tokens_BS, prompts, strict=True):
        row[-len(prompt) :] = prompt
    return tokens_BS, np.array([len(prompt) for prompt in prompts], np.int32)


def build(benchmark, shape):
    return {"rollout": rollout, "update": update, "rl_step": rl_step}[benchmark](shape)


def drawing(config, shape):
    """`f(variables, seed) -> Rollouts`, done."""
    tokens_BS, lengths_B = padded_prompts(shape)
    rows = np.arange(shape.prompts)

    def draw(variables, seed):
        def draw_group(*arrays):
            return sample(
                config, variables, *arrays, jax.random.key(seed),
                rollouts=shape.rollouts, max_tokens=shape.tokens, eos_ids=(),
            )  # fmt: skip

        return in_groups(draw_group, os.cpu_count(), tokens_BS, lengths_B, rows)

    return draw


def rollout(shape):
    config = model()
    variables, draw = transformer.init(config, jax.random.key(0)), drawing(config, shape)
    seeds = iter(range(1 << 30))

    def work():
        draw(variables, next(seeds))

    return work


def stepping(config, shape):
    """(first state, `f(state, rewards_BR, tokens_BRC, mask_BRC) -> (state, metrics)`, done) of a real method of align."""
    tokens_BS, lengths_B = padded_prompts(shape)
    reference = transformer.init(config, jax.random.key(0))
    table_BK = np.sort(np.random.default_rng(0).normal(60, 2, (shape.prompts, REFERENCE_ROLLOUTS)), 1)
    table_BK = table_BK.astype(np.float32)
    rule, beta = score_rule("exponential(10)", table_BK, 1.0)
    optimizer = adam(shapes.LEARNING_RATE, 1.0)
    step = align.make_step(config, optimizer, target_kl=1.0, kl_rate=lambda step: 0.1, microbatches=MICROBATCHES)
    fixed = {"prompt_tokens": tokens_BS, "prompt_lengths": lengths_B, "table": table_BK}
    ended_BR = np.zeros((shape.prompts, shape.rollouts), np.float32)

    def advance(state, rewards_BR, tokens_BRC, mask_BRC):
        batch = {**fixed, "rewards": rewards_BR, "tokens": tokens_BRC, "mask": mask_BRC, "ended": ended_BR}
        return jax.block_until_ready(step(state, reference, batch, rule))

    return init_state(jax.tree.map(jnp.copy, reference), optimizer, beta), advance


def update(shape):
    state, advance = stepping(model(), shape)
    rewards_BR = np.random.default_rng(1).normal(60, 2, (shape.prompts, shape.rollouts)).astype(np.float32)
    tokens_BRC = np.array(shapes.completions(shape), np.int32).reshape(*rewards_BR.shape, shape.tokens)
    mask_BRC, held = np.ones(tokens_BRC.shape, np.float32), [state]

    def work():
        held[0], _ = advance(held[0], rewards_BR, tokens_BRC, mask_BRC)

    return work


def rl_step(shape):
    config = model()
    state, advance = stepping(config, shape)
    draw, held = drawing(config, shape), [state]

    def work():
        marks = [time.perf_counter()]
        rollouts = draw(held[0].variables, int(held[0].step))
        marks.append(time.perf_counter())
        texts = [shapes.text(tokens) for row in np.asarray(rollouts.tokens_BRC).tolist() for tokens in row]
        rewards_BR = np.array([shapes.reward(text) for text in texts], np.float32)
        rewards_BR = rewards_BR.reshape(shape.prompts, shape.rollouts)
        marks.append(time.perf_counter())
        held[0], metrics = advance(held[0], rewards_BR, rollouts.tokens_BRC, rollouts.mask_BRC)
        assert np.isfinite(metrics["loss"])
        marks.append(time.perf_counter())
        return {"phases": dict(zip(("rollout", "reward", "update"), np.diff(marks).tolist(), strict=True))}

    return work
