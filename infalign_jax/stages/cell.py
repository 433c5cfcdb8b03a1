"""One method of a study, measured: win rates of every prompt at the target KL, and what the run cost."""

import importlib.metadata
import platform
import time

import jax
import numpy as np

from infalign_jax.core import procedures
from infalign_jax.core.winrate import win_rate_per_prompt
from infalign_jax.sampling.blockwise import block_sizes
from infalign_jax.stages import decoded, methods
from infalign_jax.stages.align import method_folder
from infalign_jax.stages.evaluate import open_judges
from infalign_jax.stages.experiment import Prompts, encode_split, load_reference, open_experiment
from infalign_jax.stages.measure import at_equal_kl, make_step
from infalign_jax.stages.policies import interpolate, load_trained
from infalign_jax.training import workdir


def measure(config, names, split):
    """Measures the one method of a config as stage `evaluate` does, at the target KL.

    Args:
      config: resolved, with one method and one training seed; stage align is done.
      names: procedures, as texts: those that select among samples, and blockwise(K, M), which needs a prefix scorer.
      split: 'test', or 'train' for as many of the training prompts as there are held-out ones.

    Returns:
      A JSON object: KL in nats and win rates [P] by judge and procedure, both by prompt; mean rewards of policy and
      reference by judge, and their length in words; share of cut responses; rollouts drawn and seconds spent by stage; versions.
    """
    started, experiment = time.monotonic(), open_experiment(config)
    (method,), (seed,), section = config.align.methods, config.align.seeds, config.align
    prompts = _prompts(experiment, split)
    reference = load_reference(experiment)
    judges = open_judges(experiment)
    step = make_step(experiment, reference, prompts, {**judges, "words": count_words})
    base = step(reference, "evaluate/reference", 0.0)
    folder = method_folder(experiment.workdir, method, seed)
    trained = load_trained(experiment, folder / "variables")

    def at(alpha):
        return step(interpolate(reference, trained, alpha), "evaluate/policy", alpha)

    found = at_equal_kl(at, section.target_kl, config.evaluate.kl_tolerance)
    policy = interpolate(reference, trained, found.alpha)
    rewards = _rewards(experiment, prompts, judges, names, (found.rewards, policy), (base.rewards, reference))
    stages = {name: workdir.done(experiment.workdir / name) for name in ("sft", "calibrate")}
    stages["align"] = workdir.done(folder)
    return {
        "alpha": found.alpha,
        "kl_measured": float(found.kl_P.mean()),
        "kl_P": found.kl_P.tolist(),
        "groups": prompts.groups,
        "win_rates": {
            judge: {
                name: win_rate_per_prompt(procedure, ours[judge], theirs[judge]).tolist()
                for name, (procedure, ours, theirs) in rewards.items()
            }
            for judge in judges
        },
        "rewards": {judge: float(rewards.mean()) for judge, rewards in found.rewards.items()},
        "reference_rewards": {judge: float(rewards.mean()) for judge, rewards in base.rewards.items()},
        "truncated": float(1.0 - found.ended_PM.mean()),
        "rollouts": _rollouts(config, experiment, method),
        "calibration_rollouts": config.calibrate.rollouts,
        "seconds": {
            **{name: result["stage_seconds"] for name, result in stages.items()},
            "measure": time.monotonic() - started,
        },
        "device": jax.devices()[0].device_kind,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("jax", "infalign-jax")},
        },
    }


def _rewards(experiment, prompts, judges, names, policy, reference):
    """{name: (procedure, rewards of policy, of reference)}: of plain responses, or of those that a procedure decodes.

    `policy` and `reference` are each the rewards of plain responses, by judge, and the variables.
    """
    scorer = decoded.open_scorer(experiment) if any(map(block_sizes, names)) else None

    def by_blocks(variables, purpose, sizes):
        return decoded.rewards(experiment, variables, prompts, judges, scorer, *sizes, purpose=f"blockwise/{purpose}")

    found = {}
    for name in names:
        if sizes := block_sizes(name):
            both = by_blocks(policy[1], "policy", sizes), by_blocks(reference[1], "reference", sizes)
            found["blockwise({},{})".format(*sizes)] = procedures.standard(), *both
        else:
            procedure = procedures.from_name(name)
            found[procedure.name] = procedure, policy[0], reference[0]
    return found


def _prompts(experiment, split):
    prompts = encode_split(experiment, split)
    if split == "test":
        return prompts
    # Evenly spaced, for sources list their prompts group by group.
    rows = np.linspace(0, len(prompts.texts) - 1, len(experiment.dataset.test_prompts)).astype(int)
    return Prompts(
        *(column[rows] if isinstance(column, np.ndarray) else [column[i] for i in rows] for column in prompts)
    )


def count_words(prompts, completions):
    """A reward that is the length of the response, to be measured beside the judges'."""
    return [float(len(completion.split())) for completion in completions]


def _rollouts(config, experiment, method):
    """Responses drawn: of the reference for the table and its test, and of the policy as it trains (offline: none)."""
    section = config.align
    drawn = (
        0 if methods.module(method) == methods.OFFLINE else section.steps * section.prompts_per_step * section.rollouts
    )
    table = len(experiment.dataset.train_prompts) * (config.calibrate.rollouts + config.calibrate.held_out)
    return {"calibrate": table, "align": drawn}
