"""The reduced study: does a transform win at the procedure it is made for, against identity and group-std? Two processes on two cores: five minutes."""

from configs import study_tones


def get_config():
    study = study_tones.get_config()
    study.methods = ("raw_group_std", "identity", "exponential(10)", "optimal(worst_of(4))")
    study.procedures = ("standard", "best_of(4)", "worst_of(4)")
    study.kls = (0.5,)
    study.seeds = (0, 1)
    study.learning_rates = (5e-3,)  # no search
    tones = study.tasks.tones
    with tones.unlocked():  # a third of the steps: the order shows, the shares of the gain do not
        tones.align.steps, tones.align.kl_warmup = 200, 100
        tones.prefix_scorer.enabled = False
    return study
