"""Stage `align`: on-policy KL-regularised policy gradient on calibrated, transformed rewards (CTRL, arXiv 2412.19792)."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.core import optimal, transforms
from infalign_jax.core.advantages import group_standardize
from infalign_jax.core.calibration import calibrate
from infalign_jax.core.kl_control import beta_from_samples, steer_log_beta
from infalign_jax.core.masking import masked_sum
from infalign_jax.core.policy_gradient import policy_gradient_loss, regularized_return
from infalign_jax.data.batches import make_batches
from infalign_jax.models import transformer
from infalign_jax.sampling.log_probs import token_statistics
from infalign_jax.stages import amortize, order
from infalign_jax.stages.calibrate import check_uniform, load_table
from infalign_jax.stages.experiment import (
    Experiment,
    Prompts,
    draw,
    encode_split,
    load_reference,
    open_experiment,
)
from infalign_jax.stages.policies import begin, describe, export, trained_shardings
from infalign_jax.stages.reward import mean_reward, open_reward
from infalign_jax.stages.scoring import score_rollouts
from infalign_jax.training import checkpoints, workdir
from infalign_jax.training.accumulation import accumulate
from infalign_jax.training.loop import restore_or, train
from infalign_jax.training.mesh import put_batch, replicated
from infalign_jax.training.state import adam, apply_gradients, constant_then_linear, init_state, state_shardings
from infalign_jax.training.stopwatch import Stopwatch

UNCALIBRATED = ("raw", "raw_group_std")


class Shaping(NamedTuple):
    """How a method turns rewards into scores. All of it is data, so that one compiled step serves every method.

    phi_M: float32, the transform at the 2K + 1 values a rank among K can take, equally spaced in [0, 1]; between them,
      where fitted tails put u, it is interpolated.
    raw: 1.0 scores with `reward / reward_scale` instead of `phi(u)`.
    reward_scale: reward units; the standard deviation of all reference rewards.
    group_std: 1.0 divides each prompt's centred scores by their standard deviation (GRPO).
    loss_scale: multiplies the loss; 1 / max(beta, 1) keeps a large starting beta from blowing up the gradient.
    """

    phi_M: jax.Array
    raw: jax.Array
    reward_scale: jax.Array
    group_std: jax.Array
    loss_scale: jax.Array


def shape_rewards(rewards_BR, reference_rewards_BK, shaping, tails):
    """Calibrate, transform: rewards to (scores_BR, u_BR), inside jit."""
    u_BR = calibrate(rewards_BR, reference_rewards_BK, is_sorted=True, tails=tails)
    phi_BR = jnp.interp(u_BR, jnp.linspace(0.0, 1.0, shaping.phi_M.shape[0]), shaping.phi_M)
    scores_BR = jnp.where(shaping.raw > 0, rewards_BR / shaping.reward_scale, phi_BR)
    return jnp.where(shaping.group_std > 0, group_standardize(scores_BR), scores_BR), u_BR


def objective(model, variables, reference_variables, batch, shaping, beta, tails="flat"):
    """The surrogate loss of one batch of on-policy rollouts, and its metrics.

    Args:
      model: `TransformerConfig`.
      variables: those of the policy that train, the only differentiated argument: its parameters, or adapters on those
        of the reference.
      reference_variables: of the reference policy.
      batch: prompt_tokens [B,S], prompt_lengths [B], tokens [B,R,C], mask [B,R,C], rewards [B,R], table [B,K].
      shaping: `Shaping`.
      beta: score units per nat.
      tails: how rewards beyond the table's extremes are calibrated, as in `calibrate`.
    """
    prompt = batch["prompt_tokens"], batch["prompt_lengths"], batch["tokens"]
    variables = {**reference_variables, **variables}
    hidden_BRCD = transformer.forward_shared(model, variables, *prompt)
    reference_BRCD = jax.lax.stop_gradient(transformer.forward_shared(model, reference_variables, *prompt))
    log_probs_BRC, reference_log_probs_BRC, kl_BRC, entropy_BRC = token_statistics(
        model, variables, reference_variables, hidden_BRCD, reference_BRCD, batch["tokens"]
    )
    mask_BRC = batch["mask"]
    scores_BR, u_BR = shape_rewards(batch["rewards"], batch["table"], shaping, tails)
    log_ratios_BR = masked_sum(log_probs_BRC - reference_log_probs_BRC, mask_BRC)
    returns_BR = regularized_return(scores_BR, log_ratios_BR, beta)
    loss = shaping.loss_scale * policy_gradient_loss(log_probs_BRC, mask_BRC, returns_BR)
    return loss, {
        "loss": loss,
        "reward": mean_reward(batch["rewards"]),
        "calibrated": u_BR.mean(),
        "score": scores_BR.mean(),
        "kl": masked_sum(kl_BRC, mask_BRC).mean(),
        "entropy": masked_sum(entropy_BRC, mask_BRC).mean(),
        "length": mask_BRC.sum(-1).mean(),
        "truncated": 1.0 - batch["ended"].mean(),
    }


def make_step(model, optimizer, *, target_kl, kl_rate, kl_warmup, tails="flat", microbatches=1):
    """The jitted step `(state, reference_variables, batch, shaping) -> (state, metrics)`; the state is donated.

    Everything between reward and update happens inside it: calibration, transform, leave-one-out advantage, gradient,
    optimiser and the controller of beta. Shardings follow the arguments. With several microbatches the gradient is the
    mean of theirs, the same up to rounding, and activations are kept for one at a time.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, reference_variables, batch, shaping):
        beta = jnp.exp(state.log_beta)

        def loss_fn(variables, batch):
            return objective(model, variables, reference_variables, batch, shaping, beta, tails)

        gradients, metrics = accumulate(jax.grad(loss_fn, has_aux=True), state.variables, batch, microbatches)
        rate = jnp.where(state.step >= kl_warmup, kl_rate, 0.0)
        log_beta = steer_log_beta(state.log_beta, metrics["kl"], target_kl, rate)
        state, norm = apply_gradients(state, gradients, optimizer, log_beta)
        return state, {**metrics, "beta": beta, "gradient_norm": norm}

    return step


def build(config, model):
    """(optimizer, step) of stage align, from a resolved config."""
    section = config.align
    optimizer = adam(constant_then_linear(section.learning_rate, section.steps, section.decay), section.clip_norm)
    step = make_step(
        model,
        optimizer,
        target_kl=section.target_kl * section.kl_margin,
        kl_rate=section.kl_rate,
        kl_warmup=section.kl_warmup,
        tails=config.calibrate.tails,
        microbatches=section.microbatches,
    )
    return optimizer, step


def method_shaping(method, table_PK, target_kl):
    """The `Shaping` of a method, and the beta it starts from.

    Calibrated methods start from the closed form of their transform for a table of K rollouts; uncalibrated ones from
    the beta that spends the target KL on the table's own rewards.

    Raises:
      ValueError: unknown method.
    """
    K = table_PK.shape[1]
    if method in UNCALIBRATED:
        scores_PK = table_PK / table_PK.std()
        if method == "raw_group_std":
            scores_PK = np.asarray(group_standardize(jnp.asarray(scores_PK)))
        phi_M, beta = np.zeros(2 * K + 1), beta_from_samples(scores_PK, target_kl)
    else:
        phi, beta = optimal.resolve(method, kl=target_kl, calibration_samples=K)
        phi_M = transforms.tabulate(phi, K)
    raw = method in UNCALIBRATED
    values = (phi_M, raw, table_PK.std() if raw else 1.0, method == "raw_group_std", 1.0 / max(beta, 1.0))
    return Shaping(*(np.asarray(value, np.float32) for value in values)), beta


class Inputs(NamedTuple):
    """What every run of a stage shares, whatever its method and seed."""

    experiment: Experiment
    prompts: Prompts
    table_PK: np.ndarray
    reward: Callable
    reference: Any
    optimizer: Any
    step: Callable


def run(config):
    """Aligns one policy per method and training seed; skips those that are done. Returns each one's numbers."""
    experiment, section = open_experiment(config), config.align
    table = load_table(config, experiment.workdir / "calibrate")
    check_uniform(table, config.calibrate.mismatch)
    optimizer, step = build(config, experiment.model)
    prompts, predicted = encode_split(experiment, "train"), config.calibrate.source == "amortized"
    inputs = Inputs(
        experiment,
        prompts,
        amortize.predicted_table(experiment, prompts) if predicted else table.rewards_PK,
        open_reward(experiment, config.reward, experiment.workdir / "reward_model"),
        load_reference(experiment),
        optimizer,
        step,
    )
    return {
        (method, seed): _align(inputs, method, seed, method_folder(experiment.workdir, method, seed))
        for method in section.methods
        for seed in section.seeds
    }


def _align(inputs, method, seed, folder):
    """Trains one policy, from the newest checkpoint in `folder` if there is one."""
    started = time.monotonic()
    if (result := workdir.done(folder)) is not None:
        return result
    experiment, config = inputs.experiment, inputs.experiment.config
    section, mesh = config.align, experiment.mesh
    shaping, beta = method_shaping(method, inputs.table_PK, section.target_kl * section.kl_margin)
    watch, target = Stopwatch(), section.target_kl * section.kl_margin
    quality = functools.partial(return_at, kl=target) if section.keep_best else None
    advance = _advance(inputs, jax.device_put(shaping, replicated(mesh)), seed, f"align {method}, seed {seed}", watch)

    def new_state(reference):
        return init_state(begin(experiment, reference, seed), inputs.optimizer, beta)

    shapes = jax.eval_shape(new_state, inputs.reference)
    shardings = state_shardings(mesh, shapes, trained_shardings(experiment))
    with checkpoints.open_checkpoints(folder / "checkpoints", keep=section.keep, keep_best=section.keep_best) as manager:
        initial = functools.partial(jax.jit(new_state, out_shardings=shardings), inputs.reference)
        state = restore_or(initial, checkpoints.abstract(shapes, shardings), manager)
        state, last = train(
            state, advance, steps=section.steps, title=f"align {method}", folder=folder, manager=manager,
            save_every=section.save_every, shown=("reward", "calibrated", "kl", "beta"),
            watch=watch, quality=quality, **config.log,
        )  # fmt: skip
    checkpoints.save_variables(folder / "variables", state.variables)
    describe(experiment, folder)
    export(experiment, inputs.reference, state.variables, folder)
    numbers = {"method": method, "seed": seed, "steps": section.steps, "start_beta": beta, **last}
    return workdir.finish(folder, numbers, started)


def return_at(metrics, kl):
    """Mean score, corrected to the training's KL at the price beta of a nat: what a checkpoint is ranked by."""
    return metrics["score"] - metrics["beta"] * (metrics["kl"] - kl)


def _advance(inputs, shaping, seed, where, watch):
    """The work of one global step: `(step, state) -> (state, metrics)`, a function of the step and nothing before it."""
    experiment, prompts = inputs.experiment, inputs.prompts
    config, section = experiment.config, experiment.config.align
    purpose = f"align/{seed}"
    batches = make_batches(len(prompts.texts), section.prompts_per_step, config.seed, purpose)

    def advance(step, state):
        rows = batches(step)
        policy = {**inputs.reference, **state.variables}
        rollouts = draw(experiment, policy, prompts, rows, rollouts=section.rollouts, purpose=purpose, step=step)
        jax.block_until_ready(state.step)  # the rollouts are queued behind the update before
        watch.lap(step - 1, "update")
        jax.block_until_ready(rollouts.tokens_BRC)
        watch.lap(step, "rollout")
        texts = [prompts.texts[i] for i in rows]
        (rewards_BR,), ended_BR = score_rollouts(
            experiment, rollouts, texts, [inputs.reward], f"{where}, step {step}"
        )
        watch.lap(step, "reward")
        on_host = {
            "prompt_tokens": prompts.tokens_PS[rows],
            "prompt_lengths": prompts.lengths_P[rows],
            "rewards": rewards_BR,
            "ended": ended_BR.astype(np.float32),
            "table": inputs.table_PK[rows],
        }
        batch = {"tokens": rollouts.tokens_BRC, "mask": rollouts.mask_BRC, **put_batch(experiment.mesh, on_host)}
        return inputs.step(state, inputs.reference, batch, shaping)

    return advance


def method_folder(root, method, seed):
    """The folder of a method's run with one training seed."""
    return root / order.align_folder(method, seed)
