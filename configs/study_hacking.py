"""Reward hacking: the optimised reward pays for rambling, the true one does not; what happens to the truth as KL grows."""

from ml_collections import ConfigDict

from configs import base, study_tones


def get_config():
    flawed = study_tones.recipe(base.get_config())
    with flawed.unlocked():
        flawed.data.prompt_tokens = 5
        flawed.reward = "infalign_jax.data.length_flaw:rambles_seed_{seed}"
        flawed.judge = "infalign_jax.data.length_flaw:brief_seed_{seed}"
    study = ConfigDict()
    study.tasks = ConfigDict({"rambling": flawed})
    study.methods = ("raw", "raw_group_std", "identity", "exponential(10)")
    study.kls = (0.5, 1.0, 2.0, 4.0)  # a table of 64 rollouts cannot say more than 4.7 nats
    study.seeds = (0, 1, 2)
    study.procedures = ("standard", "best_of(4)", "worst_of(4)")
    study.learning_rates = (5e-3,)  # no search
    study.tune_kl = 0.5
    study.tune_seed = 100
    return study
