"""The comparison that two CPU cores can make: every method on the quickstart's task. See docs/evidence.md."""

from ml_collections import ConfigDict

from configs import base


def recipe(config):
    """What every method of the studies on two cores has, besides the recipe of `base`."""
    with config.unlocked():
        config.sft.batch_size = 128
        config.align.microbatches = 4  # the arrays of a quarter of a step fit the caches of a CPU
        # The closed-form beta for half of the steps: a controller that sees a policy still learning raises it too far.
        config.align.kl_warmup, config.align.kl_rate = 300, 0.1
        # Trained for the KL itself: weights between reference and policy have its KL and not its tails.
        config.align.kl_margin = 1.0
        config.evaluate.kl_tolerance = 0.02
        config.align.steps = 600
        config.align.learning_rate = 5e-3
    return config


def get_config():
    tones = recipe(base.get_config())
    with tones.unlocked():  # the task's texts fit these slots: the same task for less work
        tones.data.prompt_tokens, tones.data.response_tokens = 5, 6
        tones.prefix_scorer.enabled, tones.prefix_scorer.learning_rate = True, 3e-3  # for blockwise decoding
    study = ConfigDict()
    study.tasks = ConfigDict({"tones": tones})
    study.methods = (
        "raw_group_std",
        "identity",
        "optimal(best_of(4))",
        "optimal(worst_of(4))",
        "optimal(best_of(16))",
        "exponential(10)",
        "exponential(-5)",
        "log",
        "raw",
        "log_sigmoid",
        "max_at_k(4)",
        "bond",
        "dpo",
        "ipo",
        "bonbon_best(4)",
        "bonbon_worst(4)",
        "raft",
        "ppo",
    )
    study.kls = (0.5, 1.0, 0.25, 2.0)  # nats per sequence, in the order in which they are run
    study.seeds = (0, 1, 2)  # of the whole pipeline
    study.procedures = (
        "standard",
        *(f"best_of({n})" for n in (2, 4, 8, 16, 32)),
        *(f"worst_of({n})" for n in (2, 4, 8, 16)),
        "rewind_and_repeat(0.75,4)",
        "blockwise(4,2)",
    )
    study.learning_rates = (2e-3, 5e-3)  # tried for every method
    study.tune_kl = 0.5
    study.tune_seed = 100
    return study
