"""Calibrated rewards for TRL (RLOOTrainer, GRPOTrainer), written against its reward functions of 1.16.

    from infalign_jax.integrations import trl

    reward = trl.RewardFunction(my_reward, "exponential(10)", kl=0.5, table="reference.jsonl")
    config = RLOOConfig(..., **trl.settings(reward, "rloo"))
    RLOOTrainer(model=model, reward_funcs=reward, args=config, train_dataset=dataset)

TRL is not imported. Where a GPU is PyTorch's, set JAX_PLATFORMS=cpu, so that JAX takes no memory there.
"""

import warnings

from infalign_jax.integrations.reward import CalibratedReward, beta_warnings

# Settings of each trainer that leave the scale of the scores alone.
_KEPT = {
    "rloo": {"normalize_advantages": False, "reward_clip_range": None},
    "grpo": {"scale_rewards": "none", "multi_objective_aggregation": "sum_then_normalize", "loss_type": "dr_grpo"},
}


class RewardFunction(CalibratedReward):
    """A `CalibratedReward` that TRL calls: `reward_funcs=RewardFunction(...)`.

    Prompts and completions may be texts or lists of messages; a table's prompts must be of the same kind. Raw and calibrated
    rewards become columns of TRL's table of completions and metrics of its log. At the first call the trainer's settings are
    checked, with a warning for each that undoes the transform.
    """

    checked = False

    def __call__(self, prompts, completions, completion_ids=None, *, log_extra=None, log_metric=None, **columns):
        """Scores, one for each completion: TRL's `reward_func`. None where the reward gives None."""
        trainer = getattr(log_metric, "__self__", None)  # TRL hands over a method of its trainer
        if not self.checked and hasattr(trainer, "args"):
            check(self, trainer.args)
            self.checked = True
        raw, u, scores = self.score(prompts, completions, {"completion_ids": completion_ids, **columns})
        for name, values in (("raw_reward", raw), ("calibrated", u)):
            if log_extra is not None:
                log_extra(name, values)
            numbers = [value for value in values if value is not None]
            if log_metric is not None and numbers:
                log_metric(name, sum(numbers) / len(numbers))
        return scores


def settings(reward, trainer):
    """Keywords for RLOOConfig or GRPOConfig that keep the scale of the scores, and the KL coefficient if `reward` has one.

    RLOO subtracts beta times the sequence's log-ratio from the reward, which is the objective of the paper: prefer it. GRPO's
    own KL term has another gradient, so that its beta is a starting point only.

    Args:
      reward: a `RewardFunction`.
      trainer: 'rloo' or 'grpo'.

    Raises:
      ValueError: another trainer.
    """
    if trainer not in _KEPT:
        raise ValueError(f"trainer is {trainer!r}; legal are {', '.join(_KEPT)}")
    return _KEPT[trainer] | ({} if reward.beta is None else {"beta": reward.beta})


def check(reward, args):
    """Warns of each setting of an RLOOConfig or GRPOConfig that undoes the transform; returns the sentences.

    Args:
      reward: a `RewardFunction`.
      args: the config.
    """
    name, found = type(args).__name__, []
    if getattr(args, "scale_rewards", "none") not in ("none", False):
        found.append(
            f"{name}.scale_rewards is {args.scale_rewards!r}: dividing by a standard deviation erases the scale of "
            "the transform, which says how much a prompt matters; set scale_rewards='none'"
        )
    if getattr(args, "multi_objective_aggregation", "sum_then_normalize") != "sum_then_normalize":
        found.append(f"{name}.multi_objective_aggregation divides by standard deviations; set 'sum_then_normalize'")
    if getattr(args, "normalize_advantages", False):
        found.append(f"{name}.normalize_advantages is True: it changes the scale of the transform; set it to False")
    if (clip := getattr(args, "reward_clip_range", None)) is not None:
        found.append(f"{name}.reward_clip_range is {clip}: it flattens the transform; set it to None")
    found += beta_warnings(reward, args.beta, name)
    for sentence in found:
        warnings.warn(sentence, stacklevel=2)
    return found
