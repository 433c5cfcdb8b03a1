"""The steps that the stages run, lowered for a mesh of devices that need not exist."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infalign_jax.models import transformer
from infalign_jax.models.sharding import BATCH
from infalign_jax.sampling.sampler import sample
from infalign_jax.scale import work
from infalign_jax.stages import align
from infalign_jax.stages.experiment import Experiment, variable_shardings
from infalign_jax.stages.measure import sequence_kl
from infalign_jax.stages.policies import begin, trained_shardings
from infalign_jax.stages.scores import ScoreRule
from infalign_jax.training import mesh as meshes
from infalign_jax.training.state import init_state, state_shardings


class Step(NamedTuple):
    """A jitted function with the shapes and shardings of its arguments, and the `Work` it has to do."""

    lower: Any
    work: work.Work


def steps(config, model, mesh):
    """{name: `Step`} of `sample` (prefill and decode), `score` (reference log-probs, exact KL) and `align` (update).

    Args:
      config: resolved ConfigDict; batch, lengths and adapters are those of its stage align.
      model: `TransformerConfig` of the policy.
      mesh: of `training.mesh.make_mesh`.
    """
    experiment = Experiment(config, None, None, None, model, mesh)
    place = functools.partial(_place, mesh)
    reference = jax.eval_shape(lambda key: transformer.init(model, key), jax.random.key(0))
    trained = jax.eval_shape(lambda v: begin(experiment, v, 0), reference)
    reference, trained = (
        _with(tree, shardings)
        for tree, shardings in ((reference, variable_shardings(experiment)), (trained, trained_shardings(experiment)))
    )
    policy = {**reference, **trained}
    sizes = work.Sizes(
        config.align.prompts_per_step, config.align.rollouts, config.data.prompt_tokens, config.data.response_tokens,
        config.align.microbatches, {axis: mesh.shape[axis] for axis in meshes.AXES},
    )  # fmt: skip
    adapters = sum(leaf.size for leaf in jax.tree.leaves(trained)) if config.lora.rank else 0
    B, R, S, C = sizes[:4]
    prompt = place((B, S), jnp.int32), place((B,), jnp.int32)
    tokens, mask = place((B, R, C), jnp.int32), place((B, R, C), jnp.float32)

    def lower_sample():
        options = dict(rollouts=R, max_tokens=C, temperature=config.sampling.temperature, eos_ids=(1,), pad_id=0)
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=meshes.replicated(mesh))
        draw = jax.jit(lambda *arguments: sample(model, *arguments, **options))
        return draw.lower(policy, *prompt, place((B,), jnp.int32), key)

    def lower_score():
        return sequence_kl.lower(model, policy, reference, *prompt, tokens, mask)

    return {
        "sample": Step(lower_sample, work.sampling(model, sizes, adapters)),
        "score": Step(lower_score, work.scoring(model, sizes, adapters)),
        "align": Step(
            lambda: _lower_align(config, experiment, reference, trained, (*prompt, tokens, mask)),
            work.align(model, sizes, adapters),
        ),
    }


def _lower_align(config, experiment, reference, trained, arrays):
    mesh, place = experiment.mesh, functools.partial(_place, experiment.mesh)
    optimizer, step = align.build(config, experiment.model)
    state = jax.eval_shape(lambda v: init_state(v, optimizer, 1.0), trained)
    state = _with(state, state_shardings(mesh, state, jax.tree.map(lambda leaf: leaf.sharding, trained)))
    rows, K = arrays[2].shape[:2], config.calibrate.rollouts
    names = ("prompt_tokens", "prompt_lengths", "tokens", "mask")
    batch = dict(zip(names, arrays, strict=True)) | {
        "rewards": place(rows, jnp.float32),
        "ended": place(rows, jnp.float32),
        "table": place((rows[0], K), jnp.float32),
    }
    everywhere = meshes.replicated(mesh)
    shapes = ((2 * K + 1,), (), (), (), ())
    rule = ScoreRule(*(jax.ShapeDtypeStruct(s, jnp.float32, sharding=everywhere) for s in shapes))
    return step.lower(state, reference, batch, rule)


def _with(tree, shardings):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _place(mesh, shape, dtype):
    """A batch array as `training.mesh.put_batch` would lay it out."""
    sharding = jax.NamedSharding(mesh, meshes.spec(("batch",) + (None,) * (len(shape) - 1), shape, mesh))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def batch_ways(mesh):
    """Over how many chips the prompts are split."""
    return mesh.shape[BATCH[0]] * mesh.shape[BATCH[1]]
