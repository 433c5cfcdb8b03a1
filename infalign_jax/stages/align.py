"""Stage `align`: on-policy KL-regularised policy gradient on calibrated, transformed rewards (CTRL, arXiv 2412.19792)."""

import functools
import importlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.core.advantages import leave_one_out
from infalign_jax.core.kl_control import steer_log_beta
from infalign_jax.core.masking import masked_sum
from infalign_jax.core.policy_gradient import regularized_return, surrogate_loss
from infalign_jax.data.batches import make_batches
from infalign_jax.sampling.log_probs import completion_statistics
from infalign_jax.stages import amortize, methods, order
from infalign_jax.stages.calibrate import check_uniform, load_table
from infalign_jax.stages.experiment import (
    Experiment,
    Prompts,
    draw,
    encode_split,
    lets_go,
    load_reference,
    open_experiment,
)
from infalign_jax.stages.policies import begin, describe, export, trained_shardings
from infalign_jax.stages.reward import mean_reward, open_reward
from infalign_jax.stages.scores import score_rewards, score_rule, taken
from infalign_jax.stages.scoring import score_rollouts, show_responses
from infalign_jax.training import checkpoints, workdir
from infalign_jax.training.accumulation import accumulate
from infalign_jax.training.loop import restore_or, train
from infalign_jax.training.mesh import put_batch, replicated
from infalign_jax.training.side_by_side import side_by_side
from infalign_jax.training.state import adam, apply_gradients, constant_then_linear, init_state, state_shardings
from infalign_jax.training.stopwatch import Stopwatch


def regularized_advantages(scores_BR, log_ratios_BR, beta):
    """Leave-one-out advantages of `regularized_return`: the estimator of every method that scores rollouts one by one."""
    return leave_one_out(regularized_return(scores_BR, log_ratios_BR, beta))


def objective(
    model, variables, reference_variables, batch, rule, beta, tails="flat", advantages=regularized_advantages
):
    """The surrogate loss of one batch of on-policy rollouts, and its metrics.

    Args:
      model: `TransformerConfig`.
      variables: those of the policy that train, the only differentiated argument: its parameters, or adapters on those
        of the reference.
      reference_variables: of the reference policy.
      batch: prompt_tokens [B,S], prompt_lengths [B], tokens [B,R,C], mask [B,R,C], rewards [B,R], table [B,K].
      rule: `ScoreRule`.
      beta: score units per nat.
      tails: how rewards beyond the table's extremes are calibrated, as in `calibrate`.
      advantages: `(scores_BR, log_ratios_BR, beta) -> advantages_BR`.
    """
    prompt = batch["prompt_tokens"], batch["prompt_lengths"], batch["tokens"]
    variables = {**reference_variables, **variables}
    log_probs_BRC, reference_log_probs_BRC, kl_BRC, entropy_BRC = completion_statistics(
        model, variables, reference_variables, *prompt, trained=True
    )
    mask_BRC = batch["mask"]
    scores_BR, u_BR = score_rewards(batch["rewards"], batch["table"], rule, tails)
    log_ratios_BR = masked_sum(log_probs_BRC - reference_log_probs_BRC, mask_BRC)
    advantages_BR = advantages(scores_BR, log_ratios_BR, beta)
    loss = rule.loss_scale * surrogate_loss(log_probs_BRC, mask_BRC, advantages_BR)
    return loss, {"loss": loss, **describe_rollouts(batch, scores_BR, u_BR, advantages_BR, kl_BRC, entropy_BRC)}


def describe_rollouts(batch, scores_BR, u_BR, advantages_BR, kl_BRC, entropy_BRC):
    """Metrics of a batch of rollouts, whatever is learned from them; `responses` holds those of each rollout."""
    mask_BRC = batch["mask"]
    return {
        "reward": mean_reward(batch["rewards"]),
        "calibrated": u_BR.mean(),
        "score": scores_BR.mean(),
        "kl": masked_sum(kl_BRC, mask_BRC).mean(),
        "entropy": masked_sum(entropy_BRC, mask_BRC).mean(),
        "length": mask_BRC.sum(-1).mean(),
        "truncated": 1.0 - batch["ended"].mean(),
        "responses": {"calibrated": u_BR, "advantage": advantages_BR},
    }


def make_step(model, optimizer, *, target_kl, kl_rate, tails="flat", microbatches=1, loss=objective):
    """The jitted step `(state, reference_variables, batch, rule) -> (state, metrics)`; the state is donated.

    Everything between reward and update happens inside it: calibration, transform, leave-one-out advantage, gradient,
    optimiser and the controller of beta. Shardings follow the arguments. With several microbatches the gradient is the
    mean of theirs, the same up to rounding, and activations are kept for one at a time. `kl_rate` is the controller's
    gain, a function of the step; `loss` has the arguments and results of `objective`.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, reference_variables, batch, rule):
        beta = jnp.exp(state.log_beta)

        def loss_fn(variables, batch):
            return loss(model, variables, reference_variables, batch, rule, beta, tails)

        gradients, metrics = accumulate(jax.grad(loss_fn, has_aux=True), state.variables, batch, microbatches)
        log_beta = steer_log_beta(state.log_beta, metrics["kl"], target_kl, kl_rate(state.step))
        state, norm = apply_gradients(state, gradients, optimizer, log_beta)
        return state, {**metrics, "beta": beta, "gradient_norm": norm}

    return step


def controller_rate(section):
    """The gain of beta's controller, `step -> kl_rate` from `kl_warmup` on: it falls with the learning rate.

    A policy that learns more slowly answers to beta later, and a controller that does not wait for it swings.
    """
    falling = constant_then_linear(section.kl_rate, section.steps, section.decay)
    return lambda step: jnp.where(step >= section.kl_warmup, falling(step), 0.0)


def build(config, model, loss=objective):
    """(optimizer, step) of stage align, from a resolved config."""
    section = config.align
    optimizer = adam(constant_then_linear(section.learning_rate, section.steps, section.decay), section.clip_norm)
    step = make_step(
        model,
        optimizer,
        target_kl=section.target_kl * section.kl_margin,
        kl_rate=controller_rate(section),
        tails=config.calibrate.tails,
        microbatches=section.microbatches,
        loss=loss,
    )
    return optimizer, step


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
    runs = [(method, seed) for method in section.methods for seed in section.seeds]

    def one(run):
        method, seed = run
        return _align(inputs, method, seed, method_folder(experiment.workdir, method, seed))

    return dict(zip(runs, side_by_side(one, runs, section.at_once), strict=True))


class Trainer(NamedTuple):
    """What distinguishes one method's training from another's.

    optimizer: optax transformation of what trains.
    beta: KL coefficient to start from, score units per nat.
    begin: `reference variables -> variables that train`, pure.
    shardings: where each of those lies on the mesh.
    advance: `(step, state) -> (state, metrics)`, a function of the step and nothing before it.
    policy: `variables that train -> those of the policy`.
    shown: metrics on the progress bar.
    """

    optimizer: Any
    beta: float
    begin: Callable
    shardings: Any
    advance: Callable
    policy: Callable = lambda variables: variables
    shown: tuple = ("reward", "calibrated", "kl", "beta")


def _open_trainer(inputs, method, seed, watch):
    """The `Trainer` of a method: of a transform and what is close to it here, of other baselines in a file of their own."""
    if module := methods.module(method):
        return importlib.import_module(module).open_trainer(inputs, method, seed, watch)
    experiment, section = inputs.experiment, inputs.experiment.config.align
    rule, beta = score_rule(method, inputs.table_PK, section.target_kl * section.kl_margin)
    rule = jax.device_put(rule, replicated(experiment.mesh))

    def update(step, state, batch, rows):
        return inputs.step(state, inputs.reference, batch, rule)

    advance = on_policy(inputs, method, seed, watch, update)
    begun = functools.partial(begin, experiment, seed=seed)
    return Trainer(inputs.optimizer, beta, begun, trained_shardings(experiment), advance)


def _align(inputs, method, seed, folder):
    """Trains one policy, from the newest checkpoint in `folder` if there is one."""
    started = time.monotonic()
    if (result := workdir.done(folder)) is not None:
        return result
    experiment, config = inputs.experiment, inputs.experiment.config
    section, mesh = config.align, experiment.mesh
    watch, target = Stopwatch(), section.target_kl * section.kl_margin
    trainer = _open_trainer(inputs, method, seed, watch)
    quality = functools.partial(return_at, kl=target) if section.keep_best else None

    def new_state(reference):
        return init_state(trainer.begin(reference), trainer.optimizer, trainer.beta)

    shapes = jax.eval_shape(new_state, inputs.reference)
    shardings = state_shardings(mesh, shapes, trainer.shardings)
    with checkpoints.open_checkpoints(
        folder / "checkpoints", keep=section.keep, keep_best=section.keep_best
    ) as manager:
        initial = functools.partial(jax.jit(new_state, out_shardings=shardings), inputs.reference)
        state = restore_or(initial, checkpoints.abstract(shapes, shardings), manager)
        state, last = train(
            state, trainer.advance, steps=section.steps, title=f"align {method}", folder=folder, manager=manager,
            save_every=section.save_every, shown=trainer.shown,
            watch=watch, quality=quality, **config.log,
        )  # fmt: skip
    trained = trainer.policy(state.variables)
    checkpoints.save_variables(folder / "variables", trained)
    describe(experiment, folder)
    export(experiment, inputs.reference, trained, folder)
    numbers = {"method": method, "seed": seed, "steps": section.steps, "start_beta": trainer.beta, **last}
    return workdir.finish(folder, numbers, started)


def return_at(metrics, kl):
    """Mean score, corrected to the training's KL at the price beta of a nat: what a checkpoint is ranked by."""
    return metrics["score"] - metrics["beta"] * (metrics["kl"] - kl)


def on_policy(inputs, method, seed, watch, update, policy=lambda variables: variables):
    """The work of one global step, `(step, state) -> (state, metrics)`: rollouts of the policy, their rewards, an update.

    Args:
      inputs: `Inputs`.
      method, seed: the run; random bits depend on the seed, the same for every method.
      watch: `Stopwatch`.
      update: `(step, state, batch, rows) -> (state, metrics)`; the batch is that of `objective`, rows are its prompts.
      policy: `variables that train -> those of the policy`.
    """
    experiment, prompts = inputs.experiment, inputs.prompts
    config, section = experiment.config, experiment.config.align
    purpose, folder = f"align/{seed}", method_folder(experiment.workdir, method, seed)
    batches = make_batches(len(prompts.texts), section.prompts_per_step, config.seed, purpose)

    def advance(step, state):
        rows = batches(step)
        variables = {**inputs.reference, **policy(state.variables)}
        queued = not lets_go(experiment)  # behind the update before; else the host looks at them as they are drawn

        def updated():
            jax.block_until_ready(state.step)
            watch.lap(step - 1, "update")

        if not queued:
            updated()
        rollouts = draw(experiment, variables, prompts, rows, rollouts=section.rollouts, purpose=purpose, step=step)
        if queued:
            updated()
        jax.block_until_ready(rollouts.tokens_BRC)
        watch.lap(step, "rollout")
        texts = [prompts.texts[i] for i in rows]
        (rewards_BR,), ended_BR = score_rollouts(
            experiment, rollouts, texts, [inputs.reward], f"align {method}, seed {seed}, step {step}"
        )
        watch.lap(step, "reward")
        table_BK = inputs.table_PK[rows]
        on_host = {
            "prompt_tokens": prompts.tokens_PS[rows],
            "prompt_lengths": prompts.lengths_P[rows],
            "rewards": taken(method, rewards_BR, table_BK),
            "ended": ended_BR.astype(np.float32),
            "table": taken(method, table_BK, table_BK),
        }
        batch = {"tokens": rollouts.tokens_BRC, "mask": rollouts.mask_BRC, **put_batch(experiment.mesh, on_host)}
        state, metrics = update(step, state, batch, rows)
        responses = metrics.pop("responses")
        if section.show_every and step % section.show_every == 0:
            show_responses(experiment, folder, f"align {method}", step, texts, rollouts, rewards_BR, responses)
        return state, metrics

    return advance


def method_folder(root, method, seed):
    """The folder of a method's run with one training seed."""
    return root / order.align_folder(method, seed)
