"""Four times the training of `study_tones`: how much of the theoretical gain do policies reach when steps do not limit them?"""

from configs import study_tones


def get_config():
    study = study_tones.get_config()
    study.methods = (
        "raw_group_std",
        "optimal(worst_of(4))",
        "optimal(best_of(4))",
        "identity",
        "exponential(10)",
        "optimal(best_of(16))",
        "max_at_k(4)",
    )
    study.kls = (0.5,)
    study.learning_rates = (5e-3,)  # no search
    tones = study.tasks.tones
    with tones.unlocked():
        tones.align.steps, tones.align.kl_warmup = 2400, 1200
    return study
