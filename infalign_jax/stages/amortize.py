"""Stage `amortize`: the quantiles of the reference reward learned from the prompt, so that a new prompt needs no rollouts.

A quantile head on the reference trunk is trained on the calibration table with the pinball loss (Koenker and Bassett,
1978). Its levels are k/(M + 1), where the order statistics of M rollouts lie on average: its output is the row that a
table would have for the prompt, and everything that takes such a row takes it.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.core.calibration import calibrate
from infalign_jax.core.diagnostics import calibration_error, rollouts_needed
from infalign_jax.core.quantiles import pinball_loss
from infalign_jax.models import heads, transformer
from infalign_jax.models.sharding import logical_axes
from infalign_jax.stages.calibrate import load_table
from infalign_jax.stages.experiment import encode_split, load_reference, open_experiment
from infalign_jax.stages.reward import open_reward
from infalign_jax.stages.scoring import scored_rollouts
from infalign_jax.training import checkpoints, workdir
from infalign_jax.training import mesh as meshes
from infalign_jax.training.calls import in_calls
from infalign_jax.training.supervised import fit, make_supervised_step

SOURCES = ("table", "amortized")
_LEAST_SPREAD = 1e-3  # of the spread of all rewards: what a prompt whose rewards are all equal is taken to have


def levels(count):
    """k/(count + 1), k = 1 … count, float32: the expected quantiles of the order statistics of `count` rollouts."""
    return (np.arange(1, count + 1) / (count + 1)).astype(np.float32)


def quantile_loss(model, variables, batch):
    """Pinball loss of the predicted quantiles on rows of the table, each in units of its standard deviation.

    Calibration does not know units: without them prompts with large rewards would be all that is learned. The head's
    own predicted spread as the unit learns markedly less from few prompts.

    Args:
      model: `TransformerConfig` of the trunk.
      variables: trunk and quantile head.
      batch: prompt_tokens [B,S], prompt_lengths [B], rewards [B,K].

    Returns:
      The scalar loss and metrics.
    """
    quantiles_BM = heads.quantiles(model, variables, batch["prompt_tokens"], batch["prompt_lengths"])
    least = jax.lax.stop_gradient(_LEAST_SPREAD * variables["params"]["quantile_head"]["scale"])
    spread_B1 = jnp.maximum(batch["rewards"].std(-1, keepdims=True), least)
    loss = pinball_loss(quantiles_BM / spread_B1, batch["rewards"] / spread_B1, levels(quantiles_BM.shape[-1]))
    return loss, {}


def make_step(model, optimizer):
    """The jitted, donated step `(state, batch) -> (state, metrics)` of this stage."""
    return make_supervised_step(functools.partial(quantile_loss, model), optimizer)


def train_head(experiment, arrays, folder, name="amortize"):
    """Trains trunk and head on examples as from `make_examples`; saves under `folder`. Returns variables, last metrics."""
    section = experiment.config.amortize
    pooled_M, scale = pooled(arrays["rewards"], section.levels), float(arrays["rewards"].std()) or 1.0
    return fit(
        functools.partial(make_step, experiment.model),
        lambda trunk: heads.add_quantile_head(experiment.model, trunk, pooled_M, scale),
        shardings(experiment)[1],
        arrays,
        start=(load_reference(experiment),),
        mesh=experiment.mesh,
        section=section,
        seed=experiment.config.seed,
        name=name,
        folder=folder,
        shown=("loss",),
        log=experiment.config.log,
    )


def shardings(experiment):
    """Shapes of trunk and head, and where each lies on the mesh."""
    levels_M = np.zeros(experiment.config.amortize.levels, np.float32)

    def init(key):
        return heads.add_quantile_head(experiment.model, transformer.init(experiment.model, key), levels_M, 1.0)

    shapes = jax.eval_shape(init, jax.random.key(0))
    return shapes, meshes.param_shardings(experiment.mesh, shapes, logical_axes(shapes))


def pooled(rewards_PK, count):
    """The prompt-blind row `[count]`: quantiles of all prompts' rewards together, what an untrained head says."""
    return np.quantile(rewards_PK, levels(count)).astype(np.float32)


def predict(experiment, variables, prompts):
    """The predicted row `[P, M]` of each of some `Prompts`: a table for `calibrate(..., tails='exponential')`."""
    apply = jax.jit(functools.partial(heads.quantiles, experiment.model))

    def call(rows):
        batch = meshes.put_batch(experiment.mesh, (prompts.tokens_PS[rows], prompts.lengths_P[rows]))
        return meshes.fetch(apply(variables, *batch))

    return in_calls(call, len(prompts.texts), experiment.config.amortize.batch_size)


def predicted_table(experiment, prompts):
    """The rows of `prompts` by the head that this stage left in the workdir."""
    folder = experiment.workdir / "amortize" / "variables"
    variables = checkpoints.load_variables(folder, checkpoints.abstract(*shardings(experiment)))
    return predict(experiment, variables, prompts)


def run(config):
    """Trains the head of a config and measures it on the held-out prompts against tables of rollouts.

    Raises:
      ValueError: fewer than two held-out prompts.
    """
    started, experiment = time.monotonic(), open_experiment(config)
    folder = experiment.workdir / "amortize"
    if (result := workdir.done(folder)) is not None:
        return result
    train, test = encode_split(experiment, "train"), encode_split(experiment, "test")
    if len(test.texts) < 2:
        raise ValueError(f"stage amortize measures on at least two held-out prompts, and there are {len(test.texts)}")
    examples = make_examples(experiment, train)
    variables, last = train_head(experiment, examples, folder)
    rewards_PR = reference_rewards(experiment, test)
    rows = {
        "amortized": predict(experiment, variables, test),
        "pooled": np.tile(pooled(examples["rewards"], config.amortize.levels), (len(test.texts), 1)),
    }
    if config.amortize.leave_out:
        rows["amortized_without_group"] = _leave_out(experiment, examples, train.groups, test, folder)
    numbers = {"prompts": len(train.texts), **last, **report(rows, rewards_PR, test.groups, config)}
    return workdir.finish(folder, numbers, started)


def make_examples(experiment, prompts):
    """What heads are trained on: training prompts and their rows of the calibration table."""
    rewards_PK = load_table(experiment.config, experiment.workdir / "calibrate").rewards_PK
    return {"prompt_tokens": prompts.tokens_PS, "prompt_lengths": prompts.lengths_P, "rewards": rewards_PK}


def reference_rewards(experiment, prompts):
    """Rewards `[P, K + held_out]` of new reference rollouts: tables to compare with, and what calibrations are judged by."""
    config = experiment.config
    reward = open_reward(experiment, config.reward, experiment.workdir / "reward_model")
    R = config.calibrate.rollouts + config.amortize.held_out
    size = min(config.calibrate.prompts_per_call, len(prompts.texts))
    return scored_rollouts(experiment, load_reference(experiment), reward, prompts, R, size, "amortize")[2]


def report(rows, rewards_PR, groups, config):
    """Calibration errors of predicted rows and of tables of K rollouts, on rollouts that neither has seen.

    Args:
      rows: {name: predicted rows [P, M]}.
      rewards_PR: as from `reference_rewards`: the first K columns make the tables, the others judge.
      groups: of the prompts.
      config: the run's.

    Returns:
      `error`: {name: expected |û − C| with its interval over prompts}; tables of K rollouts are named 'table(K)', K = 4,
      16, … and the run's; `error_by_group`; `equivalent_rollouts`: the K whose ranks are as wrong as the head.
    """
    K, groups = config.calibrate.rollouts, np.array(groups)
    sizes = sorted({4**i for i in range(1, 16) if 4**i < K} | {K})
    judged_PH = rewards_PR[:, K:]
    u = {name: calibrate(judged_PH, rows_PM, is_sorted=True, tails="exponential") for name, rows_PM in rows.items()}
    u |= {f"table({k})": calibrate(judged_PH, rewards_PR[:, :k]) for k in sizes}
    u = {name: np.asarray(u_PH, np.float64) for name, u_PH in u.items()}

    def errors(which):
        return {name: calibration_error(u_PH[which], judged_PH[which], seed=config.seed) for name, u_PH in u.items()}

    overall = errors(slice(None))
    many = [g for g in dict.fromkeys(groups.tolist()) if (groups == g).sum() > 1]  # one prompt has no interval
    by_group = {g: {name: e.absolute for name, e in errors(groups == g).items()} for g in many}
    found = overall["amortized"].absolute
    return {
        "error": {name: {"absolute": e.absolute, "low": e.low, "high": e.high} for name, e in overall.items()},
        "error_by_group": by_group,
        "calibration_error": found,
        "equivalent_rollouts": rollouts_needed(found) if 0 < found < 0.5 else None,
    }


def _leave_out(experiment, examples, train_groups, test, folder):
    """Each held-out prompt's row by a head that has seen no prompt of its group."""
    train_groups, test_groups = np.array(train_groups), np.array(test.groups)
    rows_PM = np.empty((len(test_groups), experiment.config.amortize.levels), np.float32)
    for i, group in enumerate(dict.fromkeys(test.groups)):
        rows = np.flatnonzero(train_groups != group)
        if not rows.size:
            raise ValueError(
                f"config.amortize.leave_out is True, and all training prompts are of group {group!r}; set it to False"
            )
        variables, _ = train_head(
            experiment,
            {key: array[rows] for key, array in examples.items()},
            folder / f"without_{i}",
            f"amortize without {group}",
        )
        mine = test_groups == group
        rows_PM[mine] = predict(experiment, variables, test)[mine]
    return rows_PM
