"""What the reward functions for all trainers share: a reward, where reference rewards come from, and the transform."""

import inspect
import os

import numpy as np

from infalign_jax import references, shaping
from infalign_jax.core.checks import check_whole


class CalibratedReward:
    """A reward function made inference-aware: raw reward -> u, its quantile among the reference's rewards -> phi(u).

    Source: CTRL of InfAlign (arXiv 2412.19792). Exactly one of `table`, `column` and `sampler` says where the reference
    rewards of a prompt come from.

    Args:
      reward: a function of (prompts, completions) and of any further keywords the trainer passes, which it gets if it has
        parameters of their names (or `**kwargs`); returns one number for each completion. Must be the reward that the
        reference rewards were made with.
      transform: identity, log, exponential(t), or with `kl` optimal(PROCEDURE), for example optimal(best_of(8)).
      kl: KL to aim for, nats per sequence: sets `beta`, the KL coefficient with which to train.
      table: {prompt: reference rewards}, or the path of a JSONL, CSV or Parquet file with columns 'prompt' and 'reward'.
      column: name of a dataset column with each prompt's list of reference rewards.
      sampler: function (prompts, n) -> for each prompt the n completions of the reference policy, as `reward` takes them;
        asked once for each new prompt; the rewards are then remembered in `known`.
      rollouts: n, for `sampler`; for `column` the K that `beta` is computed for.
      tails: 'flat' or 'exponential', as in `calibrate`.

    Attributes:
      beta: KL coefficient for `kl`, on the scale of these scores (mean 0, variance 1 under the reference); else None.
      phi: the standardised transform.
      known: {key of the prompt: its reference rewards, ascending}, of a table or of what the sampler has been asked for.

    Raises:
      ValueError: not one source; unknown transform; a KL out of reach; bad reference rewards, with file and line.
    """

    def __init__(
        self, reward, transform="identity", *, kl=None, table=None, column=None, sampler=None, rollouts=64, tails="flat"
    ):
        sources = {"table": table, "column": column, "sampler": sampler}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of table, column and sampler, got {', '.join(given) or 'none'}")
        if not callable(reward) or inspect.iscoroutinefunction(reward):
            raise ValueError(f"reward must be a plain function of prompts and completions, got {reward!r}")
        self.reward, self.column, self.sampler = reward, column, sampler
        self.rollouts, self.known = check_whole("rollouts", rollouts), {}
        if table is not None:
            is_path = isinstance(table, (str, os.PathLike))
            self.known = references.read(table) if is_path else references.from_mapping(table)
            if not self.known:
                raise ValueError("table is empty; it must have reference rewards for every prompt")
            rollouts = references.typical_count(self.known)
        self.shaping = shaping.make_shaping(
            transform, kl=kl, rollouts=rollouts if kl is not None else None, tails=tails
        )
        self.phi, self.beta, self.kl = self.shaping.phi, self.shaping.beta, kl
        name = getattr(reward, "__name__", type(reward).__name__)
        self.__name__ = f"{self.phi.name}_of_{name}"  # trainers log under it

    def score(self, prompts, completions, columns):
        """(raw, u, scores): lists as long as `completions`; None where the reward gives None, which trainers leave out.

        Args:
          prompts, completions: as the trainer has them: texts, or lists of messages.
          columns: {name: values, one for each completion}, and whatever else the trainer passes.

        Raises:
          ValueError: another number of rewards, one that is not finite, or a prompt without reference rewards.
        """
        raw = self._rewards(prompts, completions, columns)
        rows = self._references(prompts, columns)
        scored = [i for i, value in enumerate(raw) if value is not None]
        u, scores = shaping.shape(self.shaping, [raw[i] for i in scored], [rows[i] for i in scored])
        columns = [dict(zip(scored, values.tolist(), strict=True)) for values in (u, scores)]
        return raw, *([column.get(i) for i in range(len(raw))] for column in columns)

    def _rewards(self, prompts, completions, columns):
        name = getattr(self.reward, "__name__", type(self.reward).__name__)
        values = list(self.reward(prompts=prompts, completions=completions, **_accepted(self.reward, columns)))
        if len(values) != len(completions):
            raise ValueError(f"reward {name} returned {len(values)} values for {len(completions)} completions")
        for prompt, completion, value in zip(prompts, completions, values, strict=True):
            if value is not None and not abs(float(value)) <= np.finfo(np.float32).max:
                where = f"prompt {str(prompt)[-80:]!r}, completion {str(completion)[:80]!r}"
                raise ValueError(f"reward {name} is {float(value)} for {where}; every reward must be finite")
        return [None if value is None else float(value) for value in values]

    def _references(self, prompts, columns):
        if self.column is not None:
            if columns.get(self.column) is None:
                raise ValueError(
                    f"the dataset has no column {self.column!r} with reference rewards; add it to every row"
                )
            return [
                references.row_of(row, f"column {self.column!r}, row {i}") for i, row in enumerate(columns[self.column])
            ]
        keys = [references.key(prompt) for prompt in prompts]
        if self.sampler is not None:
            self._sample(prompts, keys, columns)
        for name in keys:
            if name not in self.known:
                raise ValueError(f"the table has no reference rewards for the prompt {name[:80]!r}")
        return [self.known[name] for name in keys]

    def _sample(self, prompts, keys, columns):
        """Asks the sampler for the prompts that are new, and remembers the rewards of what it gives."""
        new = {name: i for i, name in enumerate(keys) if name not in self.known}
        if not new:
            return
        asked, n = [prompts[i] for i in new.values()], self.rollouts
        drawn = [list(completions) for completions in self.sampler(asked, n)]
        if [len(completions) for completions in drawn] != [n] * len(asked):
            counts = [len(completions) for completions in drawn]
            raise ValueError(f"sampler must give {n} completions for each of {len(asked)} prompts, it gave {counts}")
        repeat = [i for i in new.values() for _ in range(n)]
        own = {
            name: [values[i] for i in repeat] if _is_column(values, len(prompts)) else values
            for name, values in columns.items()
            if name != "completion_ids"  # of the policy's completions, not of these
        }
        flat = [completion for completions in drawn for completion in completions]
        rewards = self._rewards([prompts[i] for i in repeat], flat, own)
        for place, name in enumerate(new):
            row = [value for value in rewards[place * n : (place + 1) * n] if value is not None]
            self.known[name] = references.row_of(row, f"sampler, prompt {name[:80]!r}")


def _is_column(values, size):
    return isinstance(values, (list, tuple, np.ndarray)) and len(values) == size


def _accepted(function, keywords):
    """Those of the keywords that the function has parameters for."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return keywords
    return {name: value for name, value in keywords.items() if name in parameters}


def beta_warnings(reward, beta, where):
    """What is wrong with a trainer's KL coefficient, as a list of no or one sentence."""
    if not beta:
        return [f"{where}.beta is {beta}: nothing holds the policy near the reference, whatever the transform asks for"]
    if reward.beta is not None and not 0.5 <= beta / reward.beta <= 2:
        asked = f"a KL of {reward.kl:g} nats per sequence asks for about {reward.beta:.3g}"
        return [f"{where}.beta is {beta:g}, but {asked} on the scale of {reward.__name__}"]
    return []
