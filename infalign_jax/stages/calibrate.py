"""Stage `calibrate`: K reference rollouts per training prompt, scored, kept as a sorted table that says where it is from."""

import time
import io
from typing import NamedTuple

import numpy as np

from infalign_jax.reporting.progress import Progress
from infalign_jax.stages.experiment import draw, encode_split, load_policy_variables, open_experiment, texts_of
from infalign_jax.stages.reward import open_reward, score
from infalign_jax.training import workdir


class Table(NamedTuple):
    """Rewards of the reference policy's rollouts, and what they were made with.

    rewards_PK: float32, ascending in each row; row p belongs to training prompt p.
    truncated_P: fraction of each prompt's rollouts that were cut at the limit.
    provenance: policy, reward, seed, K and sampling, as JSON values.
    """

    rewards_PK: np.ndarray
    truncated_P: np.ndarray
    provenance: dict


def make_step(experiment, variables, reward, prompts):
    """The step `rows -> (rewards_BK, ended_BK)`: samples and scores K rollouts for some training prompts."""
    config = experiment.config

    def step(rows):
        K = config.calibrate.rollouts
        rollouts = draw(experiment, variables, prompts, rows, rollouts=K, purpose="calibrate")
        texts, completions, ended = texts_of(experiment, rollouts, [prompts.texts[i] for i in rows])
        rewards = score(
            reward,
            texts,
            completions,
            ended,
            truncated=config.sampling.truncated,
            penalty=config.sampling.penalty,
            where="calibrate",
        )
        return rewards.reshape(-1, K), ended.reshape(-1, K)

    return step


def provenance(config):
    """What a table was made with: a table of another origin calibrates something else."""
    return {
        "reference_policy": workdir.fingerprint([config[name].to_dict() for name in ("data", "tokenizer", "model", "sft")]),
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
    if not (folder / "table.npz").exists():
        raise ValueError(f"there is no calibration table in {folder}; run stage calibrate first")
    made, wanted = workdir.read_json(folder / "provenance.json"), provenance(config)
    if changed := workdir.differences(made, wanted):
        raise ValueError(f"the calibration table in {folder} is of another origin ({'; '.join(changed)}); calibrate again")
    arrays = _read(folder / "table.npz")
    return Table(arrays["rewards"], arrays["truncated"], made)


def run(config):
    """Draws and scores the reference rollouts of a config; goes on after the last part that was saved."""
    started = time.monotonic()
    experiment = open_experiment(config)
    folder = experiment.workdir / "calibrate"
    if (result := workdir.done(folder)) is not None:
        return result
    prompts = encode_split(experiment, "train")
    P, size = len(prompts.texts), config.calibrate.prompts_per_call
    variables = load_policy_variables(experiment, experiment.workdir / "sft" / "variables")
    reward = open_reward(experiment, config.reward, experiment.workdir / "reward_model")
    step, parts = make_step(experiment, variables, reward, prompts), []
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    with Progress(P, "calibrate") as bar:
        for first in range(0, P, size):
            path = folder / "parts" / f"{first:08d}.npz"
            if not path.exists():
                # The last call is filled up with prompts from the front, so that every call has one shape.
                rewards_BK, ended_BK = step(np.arange(first, first + size) % P)
                _write(path, rewards=rewards_BK, ended=ended_BK)
            part = _read(path)
            parts.append({name: array[: P - first] for name, array in part.items()})
            bar.update(min(first + size, P), {"reward": part["rewards"].mean(), "cut": 1 - part["ended"].mean()})
    rewards_PK, ended_PK = (np.concatenate([part[name] for part in parts]) for name in ("rewards", "ended"))
    _write(folder / "table.npz", rewards=np.sort(rewards_PK, axis=1), truncated=1.0 - ended_PK.mean(1))
    workdir.write_json(folder / "provenance.json", provenance(config))
    distinct = np.mean([len(np.unique(row)) for row in rewards_PK]) / rewards_PK.shape[1]
    return workdir.finish(
        folder,
        {"prompts": P, "rollouts": rewards_PK.shape[1], "truncated": 1.0 - ended_PK.mean(), "distinct": distinct}, started)


def _write(path, **arrays):
    """Writes arrays to `path` whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    temporary = path.parent / (path.name + ".tmp")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)


def _read(path):
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
        return dict(arrays)
