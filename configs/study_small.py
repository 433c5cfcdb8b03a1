"""The reduced study: does exponential(10) beat identity, and identity the raw reward, at best-of-4? Five minutes on two cores."""

from ml_collections import ConfigDict

from configs import base


def get_config():
    tones = base.get_config()
    with tones.unlocked():
        tones.align.steps = 120
    study = ConfigDict()
    study.tasks = ConfigDict({"tones": tones})
    study.methods = ("raw", "identity", "exponential(10)")
    study.kls = (0.5,)
    study.seeds = (0, 1)
    study.procedures = ("standard", "best_of(4)", "worst_of(4)")
    study.learning_rates = (2e-3,)
    study.tune_kl = 0.5
    study.tune_seed = 100
    return study
