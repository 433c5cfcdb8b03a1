"""How much of the theoretical gain a policy can reach: the optimal transforms, trained for longer than the quickstart's."""

from ml_collections import ConfigDict

from configs import study_tones


def get_config():
    study = study_tones.get_config()
    tones = study.tasks.tones
    with tones.unlocked():
        tones.align.steps, tones.align.rollouts = 300, 16
    study.tasks = ConfigDict({"tones_long": tones})
    study.methods = (
        "optimal(best_of(4))",
        "optimal(worst_of(4))",
        "optimal(best_of(8))",
        "optimal(best_of(16))",
        "optimal(best_of(32))",
    )
    study.kls, study.seeds = (0.5,), (0, 1)
    return study
