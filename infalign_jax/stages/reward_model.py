"""Stage `reward-model`: a Bradley-Terry reward on the reference policy's trunk, and where asked for a second one as judge."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.core.bradley_terry import bradley_terry_loss, expected_calibration_error
from infalign_jax.models import heads
from infalign_jax.stages.experiment import encode_examples, load_reference, open_experiment
from infalign_jax.stages.reward import reward_shapes
from infalign_jax.training import mesh as meshes
from infalign_jax.training import workdir
from infalign_jax.training.calls import in_calls
from infalign_jax.training.seeds import key_for
from infalign_jax.training.supervised import fit, make_supervised_step


def preference_loss(model, variables, batch):
    """Bradley-Terry loss of chosen over rejected; both share their prompt's forward pass.

    Args:
      model: `TransformerConfig` of the trunk.
      variables: trunk and scalar head.
      batch: prompt_tokens_BS, prompt_lengths_B, response_tokens_B2C (chosen, rejected), response_lengths_B2.

    Returns:
      The scalar loss and metrics.
    """
    rewards_B2 = heads.reward(
        model,
        variables,
        batch["prompt_tokens"],
        batch["prompt_lengths"],
        batch["response_tokens"],
        batch["response_lengths"],
    )
    chosen_B, rejected_B = rewards_B2[:, 0], rewards_B2[:, 1]
    return bradley_terry_loss(chosen_B, rejected_B), {"accuracy": jnp.mean(chosen_B > rejected_B)}


def make_step(model, optimizer):
    """The jitted, donated step `(state, batch) -> (state, metrics)` of this stage."""
    return make_supervised_step(functools.partial(preference_loss, model), optimizer)


def run(config):
    """Trains the reward models a config asks for; skips what is done. Returns the stage's numbers by model."""
    experiment = open_experiment(config)
    wanted = {
        "reward_model": (config.reward == "learned", experiment.dataset.preferences),
        "judge": (config.judge == "learned", experiment.dataset.judge_preferences),
    }
    return {name: _train(experiment, name, pairs) for name, (asked, pairs) in wanted.items() if asked}


def _train(experiment, name, pairs):
    started, config, folder = time.monotonic(), experiment.config, experiment.workdir / name
    if (result := workdir.done(folder)) is not None:
        return result
    if not pairs:
        raise ValueError(f"data source {config.data.name!r} has no preference pairs for the {name}")
    variables, last = fit(
        functools.partial(make_step, experiment.model),
        lambda trunk: heads.add_head(experiment.model, trunk, key_for(config.seed, f"{name}/init")),
        reward_shapes(experiment)[1],
        _encode(experiment, pairs),
        start=(load_reference(experiment),),
        mesh=experiment.mesh,
        section=config.reward_model,
        seed=config.seed,
        name=name.replace("_", "-"),
        folder=folder,
        shown=("loss", "accuracy"),
        log=config.log,
    )
    return workdir.finish(folder, {"pairs": len(pairs), **last, **_held_out(experiment, variables)}, started)


def _encode(experiment, pairs):
    """Chosen and rejected responses side by side: arrays with the pairs along the first axis."""
    prompts = [pair.prompt for pair in pairs]
    chosen = encode_examples(experiment, prompts, [pair.chosen for pair in pairs])
    rejected = encode_examples(experiment, prompts, [pair.rejected for pair in pairs])
    return {
        "prompt_tokens": chosen.prompt_tokens_NS,
        "prompt_lengths": chosen.prompt_lengths_N,
        "response_tokens": np.stack([chosen.response_tokens_NC, rejected.response_tokens_NC], 1),
        "response_lengths": np.stack([chosen.mask_NC.sum(1), rejected.mask_NC.sum(1)], 1).astype(np.int32),
    }


def _held_out(experiment, variables):
    """Accuracy, log-loss and calibration error on preference pairs no model was trained on."""
    pairs = experiment.dataset.held_out_preferences
    if not pairs:
        return {}
    arrays = list(_encode(experiment, pairs).values())
    score = jax.jit(functools.partial(heads.reward, experiment.model))

    def call(rows):
        return meshes.fetch(score(variables, *meshes.put_batch(experiment.mesh, [array[rows] for array in arrays])))

    rewards_P2 = in_calls(call, len(pairs), min(experiment.config.reward_model.batch_size, len(pairs)))
    margins_P = jnp.asarray(rewards_P2[:, 0] - rewards_P2[:, 1])
    return {
        "held_out_pairs": len(pairs),
        "held_out_accuracy": float(jnp.mean(0.5 * (1 + jnp.sign(margins_P)))),
        "held_out_loss": float(bradley_terry_loss(margins_P, 0.0)),
        "held_out_calibration_error": float(expected_calibration_error(margins_P)),
    }
