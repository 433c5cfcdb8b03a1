"""Baseline `ppo`: proximal policy optimisation of the raw reward, with a value model and generalised advantages.

What the paper calls its baseline (arXiv 2412.19792): the reward on its own scale, divided by one global standard deviation,
the KL to the reference inside the reward of each token, and a beta controller for the target KL as every method has.
"""

import functools

import jax
import jax.numpy as jnp

from infalign_jax.core.kl_control import steer_log_beta
from infalign_jax.core.masking import masked_sum
from infalign_jax.core.ppo import clipped_policy_loss, generalized_advantages, token_rewards, value_loss, whiten
from infalign_jax.models import heads, transformer
from infalign_jax.sampling.log_probs import completion_log_probs, completion_statistics
from infalign_jax.stages.align import Trainer, controller_rate, describe_rollouts, on_policy
from infalign_jax.stages.policies import begin, trained_shardings
from infalign_jax.stages.reward import reward_shapes
from infalign_jax.stages.scores import score_rewards, score_rule
from infalign_jax.training.mesh import replicated
from infalign_jax.training.seeds import key_for
from infalign_jax.training.state import adam, apply_gradients, constant_then_linear


def open_trainer(inputs, method, seed, watch):
    """The `Trainer` of PPO: policy and value model, two trunks that both begin as the reference."""
    experiment, config = inputs.experiment, inputs.experiment.config
    section, updates = config.align, config.baselines.ppo_epochs * config.baselines.ppo_minibatches
    rule, beta = score_rule("raw", inputs.table_PK, section.target_kl * section.kl_margin)
    rule = jax.device_put(rule, replicated(experiment.mesh))
    schedule = constant_then_linear(section.learning_rate, section.steps * updates, section.decay)
    optimizer = adam(schedule, section.clip_norm)
    step = make_step(experiment.model, optimizer, section, config.baselines, config.calibrate.tails)

    def both(reference):
        critic = heads.add_head(experiment.model, begin_critic(reference), key_for(config.seed, f"align/{seed}/critic"))
        return {"policy": begin(experiment, reference, seed), "critic": critic}

    def update(number, state, batch, rows):
        return step(state, inputs.reference, batch, rule)

    def policy(variables):
        return variables["policy"]

    shardings = {"policy": trained_shardings(experiment), "critic": reward_shapes(experiment)[1]}
    advance = on_policy(inputs, method, seed, watch, update, policy)
    return Trainer(optimizer, beta, both, shardings, advance, policy, ("reward", "kl", "beta", "value_error"))


def begin_critic(reference):
    """A trunk of the value model's own: the train step gives its state's buffers away."""
    return jax.tree.map(jnp.copy, {"params": reference["params"]})


def values_before(model, variables, prompt_tokens_BS, prompt_lengths_B, tokens_BRC):
    """Values `[B, R, C]`, float32: the value head on the state BEFORE each token, from which it is drawn."""
    hidden_BRCD = transformer.forward_shared(model, variables, prompt_tokens_BS, prompt_lengths_B, tokens_BRC)
    return heads.scalar(variables, hidden_BRCD)


def make_step(model, optimizer, section, baselines, tails):
    """The jitted step `(state, reference_variables, batch, rule) -> (state, metrics)`; the state is donated.

    One batch of rollouts gives `ppo_epochs` passes over `ppo_minibatches` parts of its prompts, an update each; together
    they count as one step. `section` is config.align, `baselines` config.baselines.
    """

    rate = controller_rate(section)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, reference_variables, batch, rule):
        beta = jnp.exp(state.log_beta)
        data, metrics = prepare(
            model, state.variables, reference_variables, batch, rule, beta, baselines.ppo_decay, tails
        )

        def update(carry, part):
            gradients, told = jax.grad(loss, argnums=1, has_aux=True)(
                model, carry.variables, reference_variables, part, baselines.ppo_clip
            )
            carry, norm = apply_gradients(carry, gradients, optimizer)
            return carry, {**told, "gradient_norm": norm}

        after, told = jax.lax.scan(update, state, repeat(data, baselines.ppo_epochs, baselines.ppo_minibatches))
        target = section.target_kl * section.kl_margin
        log_beta = steer_log_beta(state.log_beta, metrics["kl"], target, rate(state.step))
        told = jax.tree.map(jnp.mean, told)
        return after._replace(step=state.step + 1, log_beta=log_beta), {**metrics, **told, "beta": beta}

    return step


def repeat(data, epochs, minibatches):
    """Arrays `[B, ...]` as `[epochs * minibatches, B / minibatches, ...]`, each device taking a share of every part."""

    def split(x):
        parts = jnp.moveaxis(x.reshape(x.shape[0] // minibatches, minibatches, *x.shape[1:]), 1, 0)
        return jnp.concatenate([parts] * epochs)

    return jax.tree.map(split, data)


def prepare(model, variables, reference_variables, batch, rule, beta, decay, tails):
    """What the updates of one step share: the rollouts, their log-probabilities when drawn, advantages, value targets."""
    prompt = batch["prompt_tokens"], batch["prompt_lengths"], batch["tokens"]
    policy, mask_BRC = {**reference_variables, **variables["policy"]}, batch["mask"]
    log_probs_BRC, reference_log_probs_BRC, kl_BRC, entropy_BRC = completion_statistics(
        model, policy, reference_variables, *prompt
    )
    scores_BR, u_BR = score_rewards(batch["rewards"], batch["table"], rule, tails)
    rewards_BRC = token_rewards(scores_BR, log_probs_BRC - reference_log_probs_BRC, mask_BRC, beta)
    values_BRC = values_before(model, variables["critic"], *prompt)
    advantages_BRC, targets_BRC = generalized_advantages(rewards_BRC, values_BRC, mask_BRC, discount=1.0, decay=decay)
    names = ("prompt_tokens", "prompt_lengths", "tokens", "mask")
    made = {"old": log_probs_BRC, "advantages": whiten(advantages_BRC, mask_BRC), "targets": targets_BRC}
    per_response_BR = masked_sum(made["advantages"], mask_BRC) / mask_BRC.sum(-1)
    told = describe_rollouts(batch, scores_BR, u_BR, per_response_BR, kl_BRC, entropy_BRC)
    return {**{name: batch[name] for name in names}, **made}, told


def loss(model, variables, reference_variables, data, clip):
    """Clipped policy loss plus value loss of one minibatch: they share no parameter, so no weight stands between them."""
    prompt = data["prompt_tokens"], data["prompt_lengths"], data["tokens"]
    policy = {**reference_variables, **variables["policy"]}
    log_probs_BRC = completion_log_probs(model, policy, *prompt, trained=True)
    values_BRC = values_before(model, variables["critic"], *prompt)
    policy_part = clipped_policy_loss(log_probs_BRC, data["old"], data["advantages"], data["mask"], clip)
    value_part = value_loss(values_BRC, data["targets"], data["mask"])
    return policy_part + value_part, {"loss": policy_part, "value_error": value_part}
