"""Baselines that share stage `align`'s rollouts and step, with a gradient of their own: max@k and BOND."""

import functools

import jax
import numpy as np

from infalign_jax.core import transforms
from infalign_jax.core.advantages import leave_one_out
from infalign_jax.core.best_of_n import n_for_kl
from infalign_jax.core.masking import masked_sum
from infalign_jax.core.max_at_k import max_at_k_advantages
from infalign_jax.sampling.log_probs import completion_log_probs
from infalign_jax.stages import methods
from infalign_jax.stages.align import Trainer, build, make_step, objective, on_policy
from infalign_jax.stages.offline import choose, generator, reference_rollouts
from infalign_jax.stages.policies import begin, trained_shardings
from infalign_jax.stages.scores import ScoreRule, score_rule
from infalign_jax.training.mesh import put_batch, replicated


def open_trainer(inputs, method, seed, watch):
    """The `Trainer` of max_at_k(k) or bond."""
    optimizer, rule, beta, step, extra = _OPENERS[methods.head(method)](inputs, method, seed)
    rule = jax.device_put(rule, replicated(inputs.experiment.mesh))

    def update(number, state, batch, rows):
        return step(state, inputs.reference, {**batch, **extra(number, rows)}, rule)

    advance = on_policy(inputs, method, seed, watch, update)
    begun = functools.partial(begin, inputs.experiment, seed=seed)
    return Trainer(optimizer, beta, begun, trained_shardings(inputs.experiment), advance)


def _open_max_at_k(inputs, method, seed):
    """Raw rewards on one scale, as for 'raw'; its starting beta too, which the controller then moves."""
    config = inputs.experiment.config
    loss = functools.partial(objective, advantages=max_at_k_regularized(methods.argument(method)))
    optimizer, step = build(config, inputs.experiment.model, loss)
    rule, beta = score_rule("raw", inputs.table_PK, config.align.target_kl * config.align.kl_margin)
    return optimizer, rule, beta, step, lambda number, rows: {}


def max_at_k_regularized(k):
    """Advantages `(scores_BR, log_ratios_BR, beta) -> [B, R]` of `E[max of k scores] - beta KL`.

    The price of KL is a mean over single rollouts, and gets their leave-one-out baseline.
    """
    return lambda scores_BR, log_ratios_BR, beta: (
        max_at_k_advantages(scores_BR, k) - leave_one_out(beta * log_ratios_BR)
    )


def _open_bond(inputs, method, seed):
    """Best-of-n of the reference as the target, n from the name or from the target KL; beta = 1 / (n - 1) stays fixed."""
    experiment, config = inputs.experiment, inputs.experiment.config
    section = config.align
    n = methods.argument(method) or n_for_kl(section.target_kl * section.kl_margin)
    beta = 1.0 / (n - 1.0)
    phi_M = transforms.tabulate(transforms.standardize(transforms.log()), inputs.table_PK.shape[1])
    rule = ScoreRule(*(np.asarray(x, np.float32) for x in (phi_M, 0.0, 1.0, 0.0, 1.0)))
    optimizer, _ = build(config, experiment.model)
    step = make_step(
        experiment.model, optimizer, target_kl=section.target_kl, kl_rate=lambda step: 0.0,
        tails=config.calibrate.tails, microbatches=section.microbatches,
        loss=functools.partial(jeffreys, forward_share=config.baselines.bond_forward),
    )  # fmt: skip
    data = reference_rollouts(inputs)

    def best(number, rows):
        index_B1, _ = choose("raft", n, data["rewards"][rows], 1, generator(config.seed, f"bond/{seed}", number))
        tokens_B1C, mask_B1C = (
            np.take_along_axis(data[key][rows], index_B1[..., None], 1) for key in ("tokens", "mask")
        )
        return put_batch(experiment.mesh, {"best_tokens": tokens_B1C, "best_mask": mask_B1C.astype(np.float32)})

    return optimizer, rule, beta, step, best


def jeffreys(model, variables, reference_variables, batch, rule, beta, tails="flat", *, forward_share):
    """BOND (arXiv 2407.14622): `share KL(best-of-n || pi) + (1 - share) KL(pi || best-of-n)`, and metrics.

    The forward part is the negative log-likelihood of best-of-n responses of the reference. The backward part is
    `KL(pi || pi_ref) - (n - 1) E_pi[log u]` up to a constant, u being the quantile that the table estimates: policy
    gradient with the log transform and beta = 1 / (n - 1), divided by beta.

    Args: as `align.objective`, the batch with best_tokens [B,1,C] and best_mask [B,1,C] besides.
    """
    backward, metrics = objective(model, variables, reference_variables, batch, rule, beta, tails)
    variables = {**reference_variables, **variables}
    prompt = batch["prompt_tokens"], batch["prompt_lengths"], batch["best_tokens"]
    log_probs_B1C = completion_log_probs(model, variables, *prompt, trained=True)
    forward = -masked_sum(log_probs_B1C, batch["best_mask"]).mean()
    loss = forward_share * forward + (1.0 - forward_share) * backward / (beta * rule.loss_scale)
    return loss, {**metrics, "loss": loss, "forward": forward}


_OPENERS = {"max_at_k": _open_max_at_k, "bond": _open_bond}
