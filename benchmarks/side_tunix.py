"""Tunix: its vanilla sampler and its GRPO learner, on its Llama 3 of the same size.

Its settings are the fastest that do the same work: no top-p sorting, a cache of exactly prompt + completion, no
log-probabilities from the sampler, one iteration a batch (so no pass for old log-probs), one micro-batch.
"""

from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

from benchmarks import shapes


def versions():
    return {name: version(name) for name in ("google-tunix", "jax", "flax", "numpy")}


class Words:
    """The tokenizer: words are numbers. The end is outside the vocabulary, so that every completion has full length."""

    encode = staticmethod(lambda text, **_: [int(word) for word in text.split()])
    decode = staticmethod(lambda ids, **_: shapes.text(ids))
    bos_id = staticmethod(lambda: 0)  # Tunix adds none
    eos_id = staticmethod(lambda: shapes.MODEL["vocab"])
    pad_id = staticmethod(lambda: shapes.PAD)


def model(seed):
    m = shapes.MODEL
    config = llama.ModelConfig(
        num_layers=m["layers"], vocab_size=m["vocab"], embed_dim=m["embed"], hidden_dim=m["mlp"], num_heads=m["heads"],
        head_dim=m["head_dim"], num_kv_heads=m["kv_heads"], rope_theta=10_000, norm_eps=1e-6, weight_tying=True,
    )  # fmt: skip
    return llama.Llama3(config, rngs=nnx.Rngs(seed))


def learner(shape):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    with mesh:
        policy, reference = model(0), model(0)
    for leaf in jax.tree.leaves(nnx.state(policy)):
        assert leaf.dtype == jnp.float32, leaf.dtype
    cluster = rl_cluster.RLCluster(
        actor=policy, reference=reference, tokenizer=Words(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(shapes.LEARNING_RATE)),
                eval_every_n_steps=1 << 30,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=shape.tokens, max_prompt_length=shape.slots,
                kv_cache_size=shape.slots + shape.tokens, temperature=1.0, top_p=1.0, top_k=None,
            ),
        ),
    )  # fmt: skip
    config = grpo_learner.GRPOConfig(num_generations=shape.rollouts, num_iterations=1, beta=shapes.KL_WEIGHT)

    def rewards(prompts, completions, **_):
        return [shapes.reward(text) for text in completions]

    grpo = grpo_learner.GRPOLearner(rl_cluster=cluster, algo_config=config, reward_fns=rewards)
    grpo._rollout_micro_batch_size = grpo._compute_logps_micro_batch_size = shape.prompts
    return cluster, grpo


def build(benchmark, shape):
    cluster, grpo = learner(shape)
    repeated = [shapes.text(p) for p in shapes.prompts(shape) for _ in range(shape.rollouts)]

    def trained(example):
        cluster.update_actor([example], None)
        jax.block_until_ready(nnx.state(cluster.actor_trainer.model))

    def rollout():
        drawn = cluster.generate(list(repeated))
        assert len(drawn.tokens) == shape.sequences and all(len(t) == shape.tokens for t in drawn.tokens)

    def rl_step():
        trained(grpo._generate_and_compute_advantage({"prompts": list(repeated)}))

    prompt_ids = np.zeros((shape.sequences, shape.slots), np.int32)
    for row, words in zip(prompt_ids, repeated, strict=True):
        tokens = Words.encode(words)
        row[-len(tokens) :] = tokens
    completion_ids = jnp.array(shapes.completions(shape), jnp.int32)
    advantages = jnp.array(np.random.default_rng(1).normal(size=shape.sequences), jnp.float32)

    def update():
        tokens = jnp.array(prompt_ids), completion_ids
        reference = cluster.get_ref_per_token_logps(*tokens, pad_id=shapes.PAD, eos_id=Words.eos_id())
        trained(
            grpo_learner.TrainExample(
                prompt_ids=tokens[0], prompt_mask=tokens[0] != shapes.PAD, completion_ids=completion_ids,
                completion_mask=completion_ids != shapes.PAD, advantages=advantages,
                ref_per_token_logps=reference, old_per_token_logps=None,
            )
        )  # fmt: skip

    return {"rollout": rollout, "update": update, "rl_step": rl_step}[benchmark]
