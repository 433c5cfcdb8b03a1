"""Rewards: from texts to finite numbers, with cut responses treated as the config says."""

import functools
import importlib
import os
import sys
import threading
import traceback

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.data.tokenize import encode_prompts, encode_responses
from infalign_jax.models import heads
from infalign_jax.models.sharding import logical_axes
from infalign_jax.stages.classifier import PREFIX, classifier_reward
from infalign_jax.training import checkpoints
from infalign_jax.training import mesh as meshes

TRUNCATED = ("as_is", "penalty", "lowest")
# A finite reward below all others: cut responses tie with each other and lose to everything else.
LOWEST = np.float32(-1e30)


def python_reward(spec):
    """The function named by 'module:function', called as `f(prompts, completions) -> rewards`; the module may lie in the
    current folder.

    Raises:
      ValueError: no such module or function, or a module that fails to import; the function itself raises ValueError for
        whatever the user's code raises, with the line it came from.
    """
    module, _, name = spec.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
        raise ValueError(f"{spec!r} cannot be imported: {describe(error)}") from error
    if not callable(function):
        raise ValueError(f"{spec!r} is {type(function).__name__}, not a function")

    lock = threading.Lock()  # several runs may ask at the same time, and nobody said that it can bear that

    def reward(prompts, completions):
        try:
            with lock:
                return function(prompts, completions)
        except (Exception, SystemExit) as error:
            raise ValueError(f"the reward {spec!r} raised {describe(error)}") from error

    return reward


def describe(error):
    """An error of someone else's code in one line: type, words, and where in their code, if it came that far."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    theirs = [frame for frame in frames if "importlib" not in frame.filename]
    place = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def score(reward, prompts, completions, ended, *, truncated, penalty, where):
    """Rewards of completions, checked and with cut responses treated.

    Args:
      reward: `f(prompts, completions) -> [n]` finite floats.
      prompts: n strings.
      completions: n strings.
      ended: bool `[n]`, false where a response was cut at the limit.
      truncated: what a cut response scores: 'as_is', its reward; 'penalty', its reward minus `penalty`; 'lowest', below
        every finished response (all cut responses tie).
      penalty: reward units.
      where: words for errors, e.g. "align/raw step 12".

    Returns:
      float32 `[n]`.

    Raises:
      ValueError: the reward returned another number of values, or one that is not finite; names the prompt.
    """
    rewards = _as_numbers(reward(prompts, completions), where)
    if rewards.shape != (len(prompts),):
        raise ValueError(f"{where}: the reward returned shape {rewards.shape} for {len(prompts)} completions")
    bad = np.flatnonzero(~np.isfinite(rewards))
    if bad.size:
        i = bad[0]
        raise ValueError(
            f"{where}: the reward is {rewards[i]} for prompt {prompts[i][:80]!r}, completion {completions[i][:80]!r} "
            f"({bad.size} of {rewards.size} are not finite)"
        )
    cut = ~np.asarray(ended, bool)
    if truncated == "penalty":
        return np.where(cut, rewards - np.float32(penalty), rewards)
    if truncated == "lowest":
        return np.where(cut, LOWEST, rewards)
    return rewards


def mean_reward(rewards):
    """Mean of the rewards a reward function gave, as a metric: cut responses under 'lowest' have none and are left out.

    Of an array of any shape, NumPy's or traced; 0 if no response has a reward.
    """
    given = rewards > LOWEST
    return (rewards * given).sum() / jnp.maximum(given.sum(), 1)


def _as_numbers(values, where):
    try:
        rewards = np.asarray(values)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"{where}: the reward returned {type(values).__name__} that is no row of numbers") from error
    if rewards.dtype.kind in "OSUcmM":
        raise ValueError(f"{where}: the reward returned values of type {rewards.dtype}; they must be numbers")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and refused as that
        return rewards.astype(np.float32)


def open_reward(experiment, kind, model_folder):
    """The reward `f(prompts, completions) -> [n]` called `kind` in the config.

    Args:
      experiment: an `Experiment`.
      kind: 'gold' (the data's own), 'learned' (the model in `model_folder`), 'hf:FOLDER' (a Hugging Face classifier) or
        'module:function'.
      model_folder: a finished folder of stage `reward-model`.

    Raises:
      ValueError: no such reward, or the data has no gold reward.
    """
    if kind == "learned":
        return learned_reward(experiment, model_folder)
    if kind.startswith(PREFIX):
        prompts = [*experiment.dataset.train_prompts, *experiment.dataset.test_prompts]
        dialogues = {prompt.text: prompt.messages for prompt in prompts if prompt.messages}
        how = {name: experiment.config.model[name] for name in ("dtype", "param_dtype")}
        return classifier_reward(kind, experiment.mesh, dialogues=dialogues, **how)
    if ":" in kind:
        return python_reward(kind)
    if kind != "gold":
        raise ValueError(f"reward is {kind!r}; legal are 'gold', 'learned', 'hf:FOLDER' and 'module:function'")
    if experiment.dataset.judge is None:
        raise ValueError(
            f"data source {experiment.config.data.name!r} has no gold reward; choose 'learned' or 'module:function'"
        )
    return experiment.dataset.judge


def learned_reward(experiment, folder):
    """A trained reward model as a function of texts, so that its tokens need not be the policy's.

    Completions of one prompt that stand next to each other share its forward pass.
    """
    shapes, shardings = reward_shapes(experiment)
    variables = checkpoints.load_variables(folder / "variables", checkpoints.abstract(shapes, shardings))
    apply = jax.jit(functools.partial(heads.reward, experiment.model))

    def reward(prompts, completions):
        firsts = [i for i in range(len(prompts)) if i == 0 or prompts[i] != prompts[i - 1]]
        R = len(prompts) // len(firsts)
        if firsts != list(range(0, len(prompts), R)):
            firsts, R = list(range(len(prompts))), 1
        data, tokenizer = experiment.config.data, experiment.tokenizer
        texts = [prompts[i] for i in firsts]
        encoded = encode_prompts(tokenizer, texts, data.prompt_tokens, "truncate_left", tell=False)
        tokens_NC, mask_NC = encode_responses(tokenizer, completions, data.response_tokens, tell=False)
        lengths_BR = mask_NC.sum(1).astype(np.int32).reshape(len(firsts), R)
        arrays = (encoded.tokens_NS, encoded.lengths_N, tokens_NC.reshape(len(firsts), R, -1), lengths_BR)
        return meshes.fetch(apply(variables, *meshes.put_batch(experiment.mesh, arrays))).reshape(-1)

    reward.on_mesh = True
    return reward


def reward_shapes(experiment):
    """Shapes of a reward model's variables, and where each lies on the mesh."""
    shapes = jax.eval_shape(functools.partial(heads.init, experiment.model), jax.random.key(0))
    return shapes, meshes.param_shardings(experiment.mesh, shapes, logical_axes(shapes))
