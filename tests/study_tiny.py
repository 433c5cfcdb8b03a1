"""A study that runs in seconds: two methods of the tiny recipe, and one that fails."""

from ml_collections import ConfigDict

from tests import tiny


def get_config():
    config = tiny.get_config()
    with config.unlocked():
        config.align.steps = 4
        config.evaluate.kl_tolerance = 0.5
        config.prefix_scorer.enabled, config.prefix_scorer.steps = True, 4
    study = ConfigDict()
    study.tasks = ConfigDict({"tones": config})
    study.methods = ("raw", "exponential(10)", "ipo")
    study.kls = (0.05,)
    study.seeds = (0, 1)
    study.procedures = ("standard", "best_of(2)", "worst_of(2)", "blockwise(2,2)")
    study.learning_rates = (2e-3,)
    study.tune_kl = 0.05
    study.tune_seed = 100
    return study
