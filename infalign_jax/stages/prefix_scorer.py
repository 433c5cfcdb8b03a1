"""Stage `prefix-scorer`: the expected final reward of a response that is not finished, read off its prefix (CD-FUDGE).

A scalar head on the reference trunk is trained on the reference's own responses by squared error against the response's final
reward, at every token (Yang and Klein 2021, *FUDGE*, arXiv 2104.05218; Mudgal et al. 2023, *Controlled decoding from language
models*, arXiv 2310.17022): its minimiser is V(x, y_<=t) = E[reward(x, y) | x, y_<=t]. `sampling.blockwise` decodes with it.

The target is the calibrated reward u by default. Its law is the same for every prompt, so that no prompt weighs more than
another in a squared error and one head need not learn each prompt's unit and origin first; and V is then the chance that the
response, when finished, beats one of the reference.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.core.bootstrap import mean_interval
from infalign_jax.core.calibration import calibrate
from infalign_jax.core.masking import masked_mean
from infalign_jax.models import heads
from infalign_jax.stages.calibrate import load_table
from infalign_jax.stages.experiment import encode_split, load_reference, open_experiment
from infalign_jax.stages.reward import open_reward, reward_shapes
from infalign_jax.stages.scoring import scored_rollouts
from infalign_jax.training import mesh as meshes
from infalign_jax.training import workdir
from infalign_jax.training.calls import in_calls
from infalign_jax.training.seeds import key_for
from infalign_jax.training.supervised import fit, make_supervised_step

TARGETS = ("calibrated", "reward")
FOLDER = "prefix_scorer"


def prefix_loss(model, variables, batch):
    """Mean over all tokens of (V(x, y_<=t) − target)², the responses of a prompt sharing its forward pass.

    Args:
      model: `TransformerConfig` of the trunk.
      variables: trunk and scalar head.
      batch: prompt_tokens [B,S], prompt_lengths [B], tokens [B,R,C], mask [B,R,C], targets [B,R].

    Returns:
      The scalar loss and metrics.
    """
    return masked_mean(_squared_errors(model, variables, batch), batch["mask"]), {}


def _squared_errors(model, variables, batch):
    values_BRC = heads.values(model, variables, batch["prompt_tokens"], batch["prompt_lengths"], batch["tokens"])
    return jnp.square(values_BRC - batch["targets"][:, :, None])


def make_step(model, optimizer):
    """The jitted, donated step `(state, batch) -> (state, metrics)` of this stage."""
    return make_supervised_step(functools.partial(prefix_loss, model), optimizer)


def run(config):
    """Trains the scorer of a config and measures it on new responses to held-out prompts.

    Stage `calibrate` keeps rewards and not responses, hence responses of its own. Rewards as targets are put in units of their
    standard deviation about their mean (`location`, `scale` of the result): no choice among blocks depends on these.

    Raises:
      ValueError: fewer than two held-out prompts.
    """
    started, experiment = time.monotonic(), open_experiment(config)
    folder, section = experiment.workdir / FOLDER, config.prefix_scorer
    if (result := workdir.done(folder)) is not None:
        return result
    train, test = encode_split(experiment, "train"), encode_split(experiment, "test")
    if len(test.texts) < 2:
        raise ValueError(
            f"stage prefix-scorer measures on at least two held-out prompts, and there are {len(test.texts)}"
        )
    examples, rewards_PR = make_examples(experiment, train, section.rollouts)
    table_PK = load_table(config, experiment.workdir / "calibrate").rewards_PK
    location, scale = 0.0, 1.0
    if section.target == "reward":
        location, scale = float(rewards_PR.mean()), float(rewards_PR.std()) or 1.0
    examples["targets"] = targets(rewards_PR, table_PK, config, location, scale)
    mean = float(examples["targets"].mean())
    variables, last = fit(
        functools.partial(make_step, experiment.model),
        lambda trunk: heads.add_head(experiment.model, trunk, key_for(config.seed, "prefix-scorer/init"), mean),
        reward_shapes(experiment)[1],
        examples,
        start=(load_reference(experiment),),
        mesh=experiment.mesh,
        section=section,
        seed=config.seed,
        name="prefix-scorer",
        folder=folder,
        shown=("loss",),
        log=config.log,
    )
    held_out, rewards_PR = make_examples(experiment, test, config.calibrate.rollouts + section.held_out)
    table_PK, rewards_PR = np.split(rewards_PR, [config.calibrate.rollouts], axis=1)
    held_out |= {name: held_out[name][:, config.calibrate.rollouts :] for name in ("tokens", "mask")}
    held_out["targets"] = targets(rewards_PR, np.sort(table_PK, 1), config, location, scale)
    numbers = {"target": section.target, "location": location, "scale": scale, "prompts": len(train.texts), **last}
    return workdir.finish(folder, {**numbers, **report(experiment, variables, held_out, mean)}, started)


def make_examples(experiment, prompts, count):
    """(examples, rewards [P, count]) of new responses of the reference policy; examples lack their `targets`."""
    config = experiment.config
    reward = open_reward(experiment, config.reward, experiment.workdir / "reward_model")
    size = min(config.calibrate.prompts_per_call, len(prompts.texts))
    reference = load_reference(experiment)
    tokens_PRC, mask_PRC, rewards_PR = scored_rollouts(
        experiment, reference, reward, prompts, count, size, "prefix-scorer"
    )
    prompt = {"prompt_tokens": prompts.tokens_PS, "prompt_lengths": prompts.lengths_P}
    return {**prompt, "tokens": tokens_PRC, "mask": mask_PRC}, rewards_PR


def targets(rewards_PR, table_PK, config, location, scale):
    """What a response's prefixes are to say: u by the rows of a table, or (reward − location) / scale; float32 `[P, R]`."""
    if config.prefix_scorer.target == "reward":
        return ((rewards_PR - location) / scale).astype(np.float32)
    return np.asarray(calibrate(rewards_PR, table_PK, is_sorted=True, tails=config.calibrate.tails))


def report(experiment, variables, held_out, constant):
    """Squared errors on responses that the scorer has not seen.

    Args:
      experiment: an `Experiment`.
      variables: trunk and head.
      held_out: examples as from `make_examples`, with their targets.
      constant: what is predicted without a scorer.

    Returns:
      `error` and `constant_error`, means over prompts of the mean over tokens; `explained`, 1 − error / constant_error, with its
      95 % interval over prompts; `explained_after`: the same by the number of tokens read, 1, 2, 4, ….
    """
    apply = jax.jit(functools.partial(_squared_errors, experiment.model))

    def call(rows):
        batch = meshes.put_batch(experiment.mesh, {name: array[rows] for name, array in held_out.items()})
        return meshes.fetch(apply(variables, batch))

    errors_PRC = in_calls(call, len(held_out["targets"]), experiment.config.prefix_scorer.batch_size).astype(np.float64)
    mask_PRC = held_out["mask"]
    constant_PRC = np.broadcast_to(np.square(held_out["targets"] - constant)[:, :, None], errors_PRC.shape)

    def means(read):
        return [
            np.array([e[m].mean() for e, m in zip(errors, read, strict=True)]) for errors in (errors_PRC, constant_PRC)
        ]

    error_P, constant_P = means(mask_PRC)
    low, high = mean_interval(error_P - constant_P, seed=experiment.config.seed)[1:]
    whole = constant_P.mean()
    after = {}
    for length in 2 ** np.arange(mask_PRC.shape[-1].bit_length()):
        read = mask_PRC & (np.arange(mask_PRC.shape[-1]) == length - 1)
        if read.any((1, 2)).all():
            ours, theirs = means(read)
            after[str(length)] = 1 - ours.mean() / theirs.mean()
    return {
        "error": error_P.mean(), "constant_error": whole, "explained": 1 - error_P.mean() / whole,
        "explained_low": -high / whole, "explained_high": -low / whole, "explained_after": after,
    }  # fmt: skip
