"""Baselines trained on the reference policy's own rollouts, without sampling from the policy: DPO, IPO, BoNBoN, RAFT.

The rollouts are those of the calibration table, drawn again with their tokens: no method sees other responses.
"""

import functools
import math
import zlib

import jax
import numpy as np
from scipy import special

from infalign_jax.core import optimal
from infalign_jax.core.best_of_n import best_of_n_weights, n_for_kl
from infalign_jax.core.calibration import calibrate
from infalign_jax.core.kl_control import starting_beta
from infalign_jax.core.masking import masked_sum
from infalign_jax.core.preference_losses import bonbon_loss, dpo_loss, ipo_loss
from infalign_jax.data.batches import make_batches
from infalign_jax.sampling.log_probs import completion_statistics
from infalign_jax.stages import methods
from infalign_jax.stages.align import Trainer
from infalign_jax.stages.calibrate import read_arrays, write_arrays
from infalign_jax.stages.policies import begin, trained_shardings
from infalign_jax.stages.reward import mean_reward
from infalign_jax.stages.scoring import scored_rollouts
from infalign_jax.training import workdir
from infalign_jax.training.accumulation import accumulate
from infalign_jax.training.mesh import put_batch
from infalign_jax.training.state import adam, apply_gradients, constant_then_linear

FILE, NAMES = "rollouts.npz", ("tokens", "mask", "rewards")
SHOWN = ("loss", "margin", "calibrated", "kl")


def open_trainer(inputs, method, seed, watch):
    """The `Trainer` of an offline method: minibatches of pairs (for RAFT of single responses) of reference rollouts."""
    experiment, section = inputs.experiment, inputs.experiment.config.align
    data, kind = reference_rollouts(inputs), methods.head(method)
    number = strength(method, inputs.table_PK, section.target_kl * section.kl_margin)
    optimizer = adam(constant_then_linear(section.learning_rate, section.steps, section.decay), section.clip_norm)
    loss = functools.partial(offline_loss, experiment.model, kind, number, experiment.config.baselines.bonbon_sft)
    update = make_step(loss, optimizer, section.microbatches)
    batches = make_batches(len(inputs.prompts.texts), section.prompts_per_step, experiment.config.seed, f"align/{seed}")

    def advance(step, state):
        rows = batches(step)
        rng = generator(experiment.config.seed, f"offline/{seed}", step)
        index_BR, preferred_BJ = choose(kind, number, data["rewards"][rows], section.rollouts, rng)
        rewards_BR = np.take_along_axis(data["rewards"][rows], index_BR, 1)
        batch = {
            "prompt_tokens": inputs.prompts.tokens_PS[rows],
            "prompt_lengths": inputs.prompts.lengths_P[rows],
            "tokens": np.take_along_axis(data["tokens"][rows], index_BR[..., None], 1),
            "mask": np.take_along_axis(data["mask"][rows], index_BR[..., None], 1).astype(np.float32),
            "rewards": rewards_BR,
            "calibrated": np.asarray(calibrate(rewards_BR, inputs.table_PK[rows], is_sorted=True)),
            "preferred": preferred_BJ.astype(np.float32),
        }
        watch.lap(step, "data")
        return update(state, inputs.reference, put_batch(experiment.mesh, batch))

    begun = functools.partial(begin, experiment, seed=seed)
    return Trainer(optimizer, max(number, 1e-6), begun, trained_shardings(experiment), advance, shown=SHOWN)


def strength(method, table_PK, target_kl):
    """The number of a method: the one in its name, or that whose optimum spends the target KL.

    DPO's beta is in reward units a nat (its optimum is that of raw rewards), IPO's tau in units of u (its optimum is that
    of the identity), and n that of the best-of-n policy.
    """
    derived = {
        "dpo": lambda: starting_beta(table_PK, target_kl),
        "ipo": lambda: (
            optimal.resolve("identity", kl=target_kl, calibration_samples=table_PK.shape[1])[1] / math.sqrt(12)
        ),
        "raft": lambda: n_for_kl(target_kl),
    }
    number = methods.argument(method)
    return derived[methods.head(method)]() if number is None else number


def generator(seed, purpose, step):
    """NumPy's random numbers of one purpose at one step."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), int(step)])


def choose(kind, number, rewards_BK, rollouts, rng):
    """Which of each prompt's K reference rollouts a step trains on.

    RAFT draws `rollouts` responses from the best-of-n law. The others draw `rollouts // 2` groups without replacement
    (n for BoNBoN, two else), and take best and worst of each; chosen and rejected alternate.

    Returns:
      index_BR, and preferred_BJ: the probability that the chosen of each pair is preferred. For DPO it is Bradley and
      Terry's; elsewhere 1, and 1/2 for a tie.
    """
    B, K = rewards_BK.shape
    if kind == "raft":
        cumulative_BK = np.cumsum(best_of_n_weights(rewards_BK, number), 1)
        index_BR = (rng.random((B, rollouts, 1)) * cumulative_BK[:, None, -1:] > cumulative_BK[:, None]).sum(-1)
        return index_BR, np.ones((B, rollouts))
    pairs, size = max(rollouts // 2, 1), int(number) if kind.startswith("bonbon") else 2
    group_BJN = rng.permuted(np.broadcast_to(np.arange(K), (B, pairs, K)), axis=-1)[..., :size]
    rewards_BJN = np.take_along_axis(rewards_BK[:, None], group_BJN, -1)
    # The group's order is random, so ties are broken at random: the first of the best, the last of the worst.
    ends = [np.argmax(rewards_BJN, -1), size - 1 - np.argmin(rewards_BJN[..., ::-1], -1)]
    ends = ends[::-1] if kind == "bonbon_worst" else ends
    index_BJ2 = np.take_along_axis(group_BJN, np.stack(ends, -1), -1)
    chosen_BJ, rejected_BJ = (np.take_along_axis(rewards_BJN, end[..., None], -1)[..., 0] for end in ends)
    if kind == "dpo":
        preferred_BJ = special.expit(chosen_BJ.astype(np.float64) - rejected_BJ)
    else:
        preferred_BJ = np.where(chosen_BJ == rejected_BJ, 0.5, 1.0)
    return index_BJ2.reshape(B, -1), preferred_BJ


def offline_loss(model, kind, number, bonbon_sft, variables, reference_variables, batch):
    """The loss of one batch of reference rollouts and its metrics; `variables` is the only differentiated argument.

    batch: prompt_tokens [B,S], prompt_lengths [B], tokens [B,R,C], mask [B,R,C], rewards [B,R], calibrated [B,R],
    preferred [B,J]. For pairs R = 2J, chosen first.
    """
    prompt = batch["prompt_tokens"], batch["prompt_lengths"], batch["tokens"]
    variables = {**reference_variables, **variables}
    log_probs_BRC, reference_log_probs_BRC, kl_BRC, _ = completion_statistics(
        model, variables, reference_variables, *prompt, trained=True
    )
    mask_BRC, paired = batch["mask"], kind != "raft"
    log_probs_BR = masked_sum(log_probs_BRC, mask_BRC)
    log_ratios_BR = log_probs_BR - masked_sum(reference_log_probs_BRC, mask_BRC)
    chosen = slice(0, None, 2) if paired else slice(None)
    margins = log_ratios_BR[:, 0::2] - log_ratios_BR[:, 1::2] if paired else log_ratios_BR
    losses = {
        "dpo": lambda: dpo_loss(margins, number, batch["preferred"]),
        "ipo": lambda: ipo_loss(margins, number, batch["preferred"]),
        "bonbon_best": lambda: bonbon_loss(margins, log_probs_BR[:, chosen], number, bonbon_sft),
        "bonbon_worst": lambda: bonbon_loss(margins, log_probs_BR[:, chosen], number, bonbon_sft),
        "raft": lambda: -log_probs_BR.mean(),
    }
    loss = losses[kind]()
    return loss, {
        "loss": loss,
        "reward": mean_reward(batch["rewards"][:, chosen]),
        "calibrated": batch["calibrated"][:, chosen].mean(),
        "margin": margins.mean(),
        "kl": masked_sum(kl_BRC, mask_BRC).mean(),
    }


def make_step(loss, optimizer, microbatches):
    """The jitted step `(state, reference_variables, batch) -> (state, metrics)`; the state is donated.

    The metric `kl` is the exact KL along the reference's responses, not the policy's: rollouts of the policy are not drawn.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, reference_variables, batch):
        def loss_fn(variables, batch):
            return loss(variables, reference_variables, batch)

        gradients, metrics = accumulate(jax.grad(loss_fn, has_aux=True), state.variables, batch, microbatches)
        state, norm = apply_gradients(state, gradients, optimizer)
        return state, {**metrics, "gradient_norm": norm}

    return step


def reference_rollouts(inputs):
    """Tokens [P,K,C], mask [P,K,C] and rewards [P,K] of the calibration table's rollouts; drawn once a workdir.

    The same program with the same random bits as in stage `calibrate`, so they are the very responses of the table.

    Raises:
      ValueError: what was drawn before cannot be read; names the file.
    """
    experiment, prompts = inputs.experiment, inputs.prompts
    config, path = experiment.config, experiment.workdir / "calibrate" / FILE
    if workdir.has(path):
        return read_arrays(path, NAMES)
    K, size = config.calibrate.rollouts, config.calibrate.prompts_per_call
    count = K + config.calibrate.held_out
    found = scored_rollouts(experiment, inputs.reference, inputs.reward, prompts, count, size, "calibrate")
    arrays = {name: array[:, :K] for name, array in zip(NAMES, found, strict=True)}
    write_arrays(path, **arrays)
    return arrays
