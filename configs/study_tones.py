"""The comparison that two CPU cores can make: thirteen methods on the quickstart's task. See docs/evidence.md."""

from ml_collections import ConfigDict

from configs import base


def get_config():
    tones = base.get_config()
    with tones.unlocked():  # the task's texts fit these slots: the same task for less work
        tones.data.prompt_tokens, tones.data.response_tokens = 5, 6
        tones.sft.batch_size = 128
        tones.align.microbatches = 4  # the arrays of a quarter of a step fit the caches of a CPU
        tones.align.kl_rate = 0.05  # the recipe's 0.15 swings the KL ever wider as the learning rate falls
    study = ConfigDict()
    study.tasks = ConfigDict({"tones": tones})
    study.methods = (
        "raw",
        "raw_group_std",
        "log_sigmoid",
        "ppo",
        "max_at_k(4)",
        "dpo",
        "bonbon_best(4)",
        "identity",
        "exponential(10)",
        "exponential(-5)",
        "optimal(best_of(4))",
        "optimal(worst_of(4))",
        "optimal(best_of(16))",
    )
    study.kls = (0.5, 1.0, 0.25)  # nats per sequence, in the order in which they are run
    study.seeds = (0, 1, 2)  # of the whole pipeline
    study.procedures = (
        "standard",
        *(f"best_of({n})" for n in (2, 4, 8, 16, 32)),
        *(f"worst_of({n})" for n in (2, 4, 8, 16)),
        "rewind_and_repeat(0.75,4)",
    )
    study.learning_rates = (2e-3,)  # the recipe's, for every method: no search
    study.tune_kl = 0.5
    study.tune_seed = 100
    return study
