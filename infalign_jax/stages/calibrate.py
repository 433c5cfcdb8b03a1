"""Stage `calibrate`: K reference rollouts per training prompt, scored, kept as a sorted table that says where it is from."""

import io
import time
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
from absl import logging
from etils import epath

from infalign_jax.core.diagnostics import uniformity_test
from infalign_jax.reporting.progress import Progress
from infalign_jax.stages.experiment import draw, encode_split, load_reference, open_experiment
from infalign_jax.stages.reward import mean_reward, open_reward
from infalign_jax.stages.scoring import score_rollouts
from infalign_jax.training import preemption, workdir
from infalign_jax.training.distributed import is_first

TABLE = "table.npz"
PROMPTS = "prompts.json"  # the texts of the table's rows, for those who read a table without the data it was made on


class StoredTable(NamedTuple):
    """Rewards of the reference policy's rollouts, and what they were made with.

    rewards_PK: float32, ascending in each row; row p belongs to training prompt p.
    held_out_PH: float32, rewards of further rollouts of the same policy, which test the table.
    truncated_P: fraction of each prompt's rollouts that were cut at the limit.
    provenance: policy, reward, seed, K and sampling, as JSON values.
    """

    rewards_PK: np.ndarray
    held_out_PH: np.ndarray
    truncated_P: np.ndarray
    provenance: dict


def make_step(experiment, variables, reward, prompts):
    """The step `rows -> (rewards_BR, ended_BR)`: samples and scores the rollouts of some training prompts, table and held out."""
    config = experiment.config
    rollouts_per_prompt = config.calibrate.rollouts + config.calibrate.held_out

    def step(rows):
        rollouts = draw(experiment, variables, prompts, rows, rollouts=rollouts_per_prompt, purpose="calibrate")
        texts = [prompts.texts[i] for i in rows]
        (rewards_BR,), ended_BR = score_rollouts(experiment, rollouts, texts, [reward], "calibrate")
        return rewards_BR, ended_BR

    return step


def provenance(config):
    """What a table was made with: a table of another origin calibrates something else."""
    return {
        "reference_policy": workdir.fingerprint(
            [config[name].to_dict() for name in ("data", "tokenizer", "model", "sft")]
        ),
        "reward": config.reward,
        "reward_model": workdir.fingerprint(config.reward_model.to_dict()) if config.reward == "learned" else "",
        "seed": config.seed,
        "rollouts": config.calibrate.rollouts,
        "sampling": config.sampling.to_dict(),
    }


def load_table(config, folder):
    """The table in `folder`, checked against the config.

    Raises:
      ValueError: there is none, or it was made with another reference policy, reward, seed or K; names what differs.
    """
    if not all((folder / name).exists() for name in (TABLE, "provenance.json")):
        again = f"delete {folder / 'done.json'} and " if (folder / "done.json").exists() else ""
        raise ValueError(f"there is no calibration table in {folder}; {again}run stage calibrate first")
    made, wanted = workdir.read_json(folder / "provenance.json"), provenance(config)
    if changed := workdir.differences(made, wanted):
        raise ValueError(
            f"the calibration table in {folder} is of another origin ({'; '.join(changed)}); calibrate again"
        )
    arrays = read_arrays(folder / TABLE, ("rewards", "held_out", "truncated"))
    return StoredTable(arrays["rewards"], arrays["held_out"], arrays["truncated"], made)


def read_table(folder):
    """(the table in `folder`, the prompt of each of its rows), whatever config made it.

    Raises:
      ValueError: there is none, or it is damaged or of an older kind; names the file.
    """
    folder = epath.Path(folder)
    for name in (TABLE, "provenance.json", PROMPTS):
        if not (folder / name).exists():
            raise ValueError(
                f"{folder / name} does not exist; stage calibrate writes it (what it has drawn already is not drawn again "
                "once done.json beside it is deleted)"
            )
    arrays = read_arrays(folder / TABLE, ("rewards", "held_out", "truncated"))
    prompts = workdir.read_json(folder / PROMPTS)["prompts"]
    made = workdir.read_json(folder / "provenance.json")
    return StoredTable(arrays["rewards"], arrays["held_out"], arrays["truncated"], made), prompts


def run(config):
    """Draws and scores the reference rollouts of a config; goes on after the last part that was saved."""
    started = time.monotonic()
    experiment = open_experiment(config)
    folder = experiment.workdir / "calibrate"
    if (result := workdir.done(folder)) is not None:
        return result
    prompts = encode_split(experiment, "train")
    P, size = len(prompts.texts), config.calibrate.prompts_per_call
    variables = load_reference(experiment)
    reward = open_reward(experiment, config.reward, experiment.workdir / "reward_model")
    step, parts = make_step(experiment, variables, reward, prompts), []
    with Progress(P, "calibrate", quiet=not is_first()) as bar:
        for first in range(0, P, size):
            path = folder / "parts" / f"{first:08d}.npz"
            if not workdir.has(path):
                # The last call is filled up with prompts from the front, so that every call has one shape.
                rewards_BR, ended_BR = step(np.arange(first, first + size) % P)
                write_arrays(path, rewards=rewards_BR, ended=ended_BR)
            part = read_arrays(path, ("rewards", "ended"))
            parts.append({name: array[: P - first] for name, array in part.items()})
            if preemption.noticed() and first + size < P:
                preemption.stop(f"calibrate, {first + size} of {P} prompts")
            bar.update(min(first + size, P), {"reward": mean_reward(part["rewards"]), "cut": 1 - part["ended"].mean()})
    rewards_PR, ended_PR = (np.concatenate([part[name] for part in parts]) for name in ("rewards", "ended"))
    rewards_PK, held_out_PH = np.split(rewards_PR, [config.calibrate.rollouts], axis=1)
    arrays = {"rewards": np.sort(rewards_PK, axis=1), "held_out": held_out_PH, "truncated": 1.0 - ended_PR.mean(1)}
    write_arrays(folder / TABLE, **arrays)
    workdir.write_json(folder / PROMPTS, {"prompts": prompts.texts})
    workdir.write_json(folder / "provenance.json", provenance(config))
    uniformity = uniformity_test(held_out_PH, rewards_PK, groups=prompts.groups, seed=config.seed)
    numbers = {
        "prompts": P,
        "rollouts": config.calibrate.rollouts,
        "truncated": 1.0 - ended_PR.mean(),
        "distinct_rewards": np.mean([len(np.unique(row)) for row in rewards_PK]) / rewards_PK.shape[1],
        "uniformity_p_value": uniformity.p_value,
        "uniformity_p_by_group": uniformity.p_by_group,
    }
    return workdir.finish(folder, numbers, started)


def check_uniform(table, mismatch, level=1e-4):
    """Warns, or refuses, when held-out reference rollouts are not calibrated by a table.

    Args:
      table: `StoredTable`.
      mismatch: 'warn', 'refuse' or 'ignore'.
      level: p-value of the uniformity test below which the table is not believed.

    Raises:
      ValueError: under 'refuse', with what to check.
    """
    if mismatch == "ignore":
        return
    p_value = uniformity_test(table.held_out_PH, table.rewards_PK).p_value
    if p_value >= level:
        return
    message = (
        f"the calibration table does not fit the reference policy: calibrated rewards of held-out reference rollouts are "
        f"not uniform (p = {p_value:.1g}); check that table and rollouts are of the same policy, reward and sampling"
    )
    if mismatch == "refuse":
        raise ValueError(message)
    logging.warning(message)


def write_arrays(path, **arrays):
    """Writes arrays to `path` whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    workdir.write_bytes(path, buffer.getvalue())


def read_arrays(path, names):
    """{name: array} of a file, all finite. Raises ValueError, with how to mend it, if it is damaged or holds anything else."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            arrays = {name: arrays[name] for name in names}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("it holds values that are not finite")
    except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        made = f" and {path.parent / 'done.json'}" if path.name == TABLE else ""
        raise ValueError(
            f"{path} is damaged ({error}); delete it{made} and start again: what is missing is made anew"
        ) from error
    return arrays
