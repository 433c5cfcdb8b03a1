"""Calibrated rewards for Tunix (GRPOLearner and those made from it), written against its reward functions of 0.1.7.

    from infalign_jax.integrations import tunix

    reward = tunix.RewardFunction(my_reward, "exponential(10)", kl=0.5, table="reference.jsonl")
    config = GRPOConfig(num_generations=8, **tunix.settings(reward))
    GRPOLearner(rl_cluster=cluster, algo_config=config, reward_fns=reward)

Tunix is not imported.
"""

import warnings

from infalign_jax.integrations.reward import CalibratedReward, beta_warnings

SCALE_KEPT = ("rloo", "drgrpo")


class RewardFunction(CalibratedReward):
    """A `CalibratedReward` that Tunix calls: `reward_fns=RewardFunction(...)`.

    Prompts and completions are texts, copies of a prompt next to each other; columns of the dataset arrive repeated. At the
    first call the learner's settings are checked, with a warning for each that undoes the transform: Tunix fills in the
    parameters of a reward function that are named like fields of its config.
    """

    checked = False

    def __call__(self, prompts, completions, *, advantage_estimator=None, beta=None, kl_loss_mode=None, **columns):
        """Scores, one for each completion: Tunix's `reward_fn`.

        Raises:
          ValueError: as `CalibratedReward.score`, and where the reward gives None, which Tunix cannot leave out.
        """
        if not self.checked and advantage_estimator is not None:
            _check(self, "GRPOConfig", advantage_estimator, beta, kl_loss_mode)
            self.checked = True
        raw, _, scores = self.score(list(prompts), list(completions), columns)
        if None in raw:
            raise ValueError(
                f"the reward is None for prompt {str(prompts[raw.index(None)])[-80:]!r}; Tunix needs a number"
            )
        return scores


def settings(reward, advantage_estimator="rloo"):
    """Keywords for GRPOConfig that keep the scale of the scores, and the KL coefficient if `reward` has one.

    `kl_loss_mode='mse_kl'` is the one of Tunix's three whose gradient on samples of the policy is, in expectation, that of
    the KL of each token; that of 'kl' has mean zero. Sums over tokens keep beta in nats per sequence.

    Args:
      reward: a `RewardFunction`.
      advantage_estimator: 'rloo' or 'drgrpo'.

    Raises:
      ValueError: an estimator that does not keep the scale.
    """
    if advantage_estimator not in SCALE_KEPT:
        raise ValueError(f"advantage_estimator is {advantage_estimator!r}; legal are {', '.join(SCALE_KEPT)}")
    kept = {"advantage_estimator": advantage_estimator, "kl_loss_mode": "mse_kl", "loss_agg_mode": "seq-mean-token-sum"}
    return kept | ({} if reward.beta is None else {"beta": reward.beta})


def check(reward, config):
    """Warns of each setting of a GRPOConfig that undoes the transform; returns the sentences.

    Args:
      reward: a `RewardFunction`.
      config: the config.
    """
    name = type(config).__name__
    return _check(reward, name, config.advantage_estimator, config.beta, getattr(config, "kl_loss_mode", None))


def _check(reward, name, advantage_estimator, beta, kl_loss_mode):
    found = []
    if advantage_estimator not in SCALE_KEPT:
        found.append(
            f"{name}.advantage_estimator is {advantage_estimator!r}: dividing by the standard deviation of a group erases "
            "the scale of the transform, which says how much a prompt matters; set 'rloo' or 'drgrpo'"
        )
    if beta and kl_loss_mode == "kl":
        found.append(f"{name}.kl_loss_mode is 'kl', whose gradient has mean zero: the KL is not held; set 'mse_kl'")
    found += beta_warnings(reward, beta, name)
    for sentence in found:
        warnings.warn(sentence, stacklevel=3)
    return found
